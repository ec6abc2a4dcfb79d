"""Traces of a real session, as an OpenTelemetry collector receives them: OTLP over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from collector import Collector

from replicas.metrics import STAGES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_arrives_at_the_collector_with_its_stages(
    sharded: Any, collector: Collector, eventually: Callable[..., Any]
) -> None:
    body = {"model": "tiny-r1", "prompt": "12+34=", "max_tokens": 60, "ignore_eos": True, "stream": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    httpx.post(f"{sharded.url}/v1/completions", json=body, headers=headers, timeout=60).raise_for_status()
    spans = {span.name: span for span in eventually(lambda: collector.of(TRACE), 20, "the trace")}
    assert spans.keys() == {"request", *STAGES} and collector.services == {"moray-gateway"}
    whole = spans["request"]
    assert whole.parent_span_id.hex() == PARENT
    assert {spans[stage].parent_span_id for stage in STAGES} == {whole.span_id}
    times = [spans[stage].start_time_unix_nano for stage in STAGES] + [spans["stream"].end_time_unix_nano]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (whole.start_time_unix_nano, whole.end_time_unix_nano)
    attributes = {a.key: a.value.int_value or a.value.string_value for a in whole.attributes}
    assert attributes["gen_ai.usage.output_tokens"] == 60 and attributes["moray.ending"] == "DONE"
    (replica,) = sharded.status()["replicas"]
    assert attributes["moray.replica"] == replica["id"]
    decode = spans["decode"].end_time_unix_nano - spans["decode"].start_time_unix_nano
    assert decode > 0.5 * (whole.end_time_unix_nano - whole.start_time_unix_nano), "59 of 60 tokens"


def test_a_collector_that_goes_away_harms_no_request(sharded: Any, collector: Collector) -> None:
    collector.close()
    body = {"model": "tiny-r1", "prompt": "12+34=", "max_tokens": 8}
    for _ in range(5):
        assert httpx.post(f"{sharded.url}/v1/completions", json=body, timeout=60).status_code == 200

"""Traces of a real session, as an OpenTelemetry collector receives them: OTLP over HTTP."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from http_server import Answer, Asked, http_server
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from replicas.metrics import STAGES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self._serving = ExitStack()
        self.endpoint = f"{self._serving.enter_context(http_server(self._answer))}/v1/traces"

    def _answer(self, asked: Asked) -> Answer:
        packed = asked.headers.get("content-encoding") == "gzip"
        self.take(ExportTraceServiceRequest.FromString(gzip.decompress(asked.body) if packed else asked.body))
        return Answer()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def of(self, trace: str) -> list[Any]:
        return [span for span in self.spans if span.trace_id.hex() == trace]

    def close(self) -> None:
        self._serving.close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def traced(collector: Collector, new_session: Any) -> Iterator[Any]:
    with new_session({"experts.expert_parallel": "1", "metrics.otlp_endpoint": collector.endpoint}) as running:
        yield running


def test_a_request_arrives_at_the_collector_with_its_stages(
    traced: Any, collector: Collector, eventually: Callable[..., Any]
) -> None:
    body = {"model": "tiny-r1", "prompt": "12+34=", "max_tokens": 60, "ignore_eos": True, "stream": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    httpx.post(f"{traced.url}/v1/completions", json=body, headers=headers, timeout=60).raise_for_status()
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
    (replica,) = traced.status()["replicas"]
    assert attributes["moray.replica"] == replica["id"]
    decode = spans["decode"].end_time_unix_nano - spans["decode"].start_time_unix_nano
    assert decode > 0.5 * (whole.end_time_unix_nano - whole.start_time_unix_nano), "59 of 60 tokens"


def test_a_collector_that_goes_away_harms_no_request(traced: Any, collector: Collector) -> None:
    collector.close()
    body = {"model": "tiny-r1", "prompt": "12+34=", "max_tokens": 8}
    for _ in range(5):
        assert httpx.post(f"{traced.url}/v1/completions", json=body, timeout=60).status_code == 200

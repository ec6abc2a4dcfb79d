"""Spans of requests, with OpenTelemetry's own exporter for tests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
from ended import RECORD
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cluster.journal import Ended, Journal
from cluster.outcomes import RequestContext
from cluster.tracing import RequestTraces
from replicas.messages import Tenant
from replicas.metrics import STAGES

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


class Traced:
    """A gateway's journal, and the spans that come of it."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._traces = RequestTraces(self._exporter, "gateway-1")
        self._journal = Journal("m")
        self._journal.listeners.append(self._traces)

    def spans(self, *records: Ended, traceparent: str = "") -> Sequence[ReadableSpan]:
        """Of one HTTP request with these engine requests, the request's own span last."""
        context = RequestContext(Tenant(name="ann"), traceparent=traceparent)
        context.arrived_at = min(record.arrived_at for record in records)
        context.open_requests = len(records)
        for record in records:
            self._journal.ended(context, record)
        self._journal.answered(context)
        self._traces.flush()
        found = self._exporter.get_finished_spans()
        self._exporter.clear()
        return found


@pytest.fixture
def traced() -> Traced:
    return Traced()


def recently(**changes: object) -> Ended:
    """RECORD with its times as if it had just ended."""
    shift = time.monotonic() - 0.25 - RECORD.ended_at
    times = {name: getattr(RECORD, name) + shift for name in Ended._fields if name.endswith("_at")}
    return RECORD._replace(**(times | changes))


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_request_is_a_span_with_one_for_each_stage(traced: Traced) -> None:
    *stages, whole = traced.spans(recently())
    assert (whole.name, whole.kind, whole.parent) == ("request", SpanKind.SERVER, None)
    assert [span.name for span in stages] == list(STAGES)
    assert [seconds(span) for span in stages] == pytest.approx([0.01, 0.49, 0.002, 0.498, 0.4, 0.25], abs=0.02)
    assert {(span.parent.span_id, span.context.trace_id) for span in stages if span.parent and span.context} == {
        (whole.context.span_id, whole.context.trace_id)
    }
    assert whole.start_time == stages[0].start_time and whole.end_time == stages[-1].end_time
    for before, after in itertools.pairwise(stages):
        assert before.end_time == after.start_time
    assert abs(whole.end_time / 1e9 - time.time()) < 5
    assert whole.attributes == {
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "moray.tenant": "ann",
        "moray.priority": 0,
        "gen_ai.response.id": "r",
        "moray.cached_tokens": 4,
        "moray.replica": "a",
        "moray.version": "v1",
        "moray.ending": "DONE",
        "moray.resumes": 0,
        "moray.longest_gap_s": 0.0,
    }
    assert whole.status.status_code is StatusCode.UNSET
    assert dict(whole.resource.attributes)["service.name"] == "moray-gateway"
    assert dict(whole.resource.attributes)["service.instance.id"] == "gateway-1"


def test_the_clients_span_is_the_parent(traced: Traced) -> None:
    *stages, whole = traced.spans(recently(), traceparent=f"00-{TRACE:032x}-{PARENT:016x}-01")
    assert whole.parent is not None and (whole.parent.trace_id, whole.parent.span_id) == (TRACE, PARENT)
    assert {span.context.trace_id for span in stages if span.context} == {TRACE}
    assert traced.spans(recently(), traceparent=f"00-{TRACE:032x}-{PARENT:016x}-00") == (), "it does not sample"


@pytest.mark.parametrize("header", ["nonsense", "00-0-0-01", "x" * 10_000, f"00-{0:032x}-{PARENT:016x}-01"])
def test_a_header_that_is_none_begins_a_trace_of_its_own(traced: Traced, header: str) -> None:
    *_, whole = traced.spans(recently(), traceparent=header)
    assert whole.parent is None


def test_a_shed_request_has_the_stages_it_came_to(traced: Traced) -> None:
    shed = recently(ending="TOO_LATE", granted_at=None, submitted_at=None, first_token_at=None, last_token_at=None)
    *stages, whole = traced.spans(shed)
    assert [span.name for span in stages] == ["prepare", "queue"]
    assert seconds(stages[1]) == pytest.approx(1.39, abs=0.01), "until it was shed"
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "TOO_LATE")


def test_samples_of_one_request_are_in_one_trace(traced: Traced) -> None:
    *spans, whole = traced.spans(recently(request_id="0_r"), recently(request_id="1_r"))
    samples = {span.attributes["gen_ai.response.id"]: span for span in spans if span.name == "sample"}
    assert samples.keys() == {"0_r", "1_r"}
    assert all(span.parent.span_id == whole.context.span_id for span in samples.values())
    for sample in samples.values():
        assert [s.name for s in spans if s.parent.span_id == sample.context.span_id] == list(STAGES)
    assert whole.attributes is not None and whole.attributes["gen_ai.usage.output_tokens"] == 10

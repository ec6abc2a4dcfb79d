"""Traces of requests for an OpenTelemetry collector: a span for each HTTP request, under it one for each of its stages
(where n>1 asks for several samples, under one for each of these).

Made of the journal's records when the request is over, so that nothing happens on a token's way. The client's own span
is the parent where it sent a `traceparent`, whose sampled flag is heeded.
"""

import time
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.journal import ABORTED, DONE, Ended, Listener
from cluster.outcomes import RequestContext
from replicas.metrics import STAGES

SEND_EVERY_MS = 1000
KEPT_SPANS = 16_384  # while the collector is slow; more are dropped, which the SDK logs

Attributes = dict[str, str | int | float]


def otlp_exporter(endpoint: str) -> SpanExporter:
    """To a collector that speaks OTLP over HTTP. Its headers and certificates are OTEL_EXPORTER_OTLP_ variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint)


class RequestTraces(Listener):
    """Makes spans of what the journal tells."""

    def __init__(self, exporter: SpanExporter, gateway: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "moray-gateway", SERVICE_INSTANCE_ID: gateway})
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=KEPT_SPANS, schedule_delay_millis=SEND_EVERY_MS)
        )
        self._tracer = self._provider.get_tracer("moray")
        self._propagator = TraceContextTextMapPropagator()

    def answered(self, context: RequestContext, at: float) -> None:
        parent = Context()
        if context.traceparent:
            parent = self._propagator.extract({"traceparent": context.traceparent}, parent)
        offset_ns = time.time_ns() - time.monotonic_ns()
        begin, end = _ns(context.arrived_at, offset_ns), _ns(at, offset_ns)
        records = context.records
        attributes = _of_request(context) | (_of_record(records[0]) if len(records) == 1 else {})
        span = self._tracer.start_span("request", parent, SpanKind.SERVER, attributes, start_time=begin)
        if span.is_recording():
            if failed := [r.ending for r in records if r.ending not in (DONE, ABORTED)]:
                span.set_status(StatusCode.ERROR, failed[0])
            within = set_span_in_context(span, Context())
            for record in records:
                if len(records) == 1:
                    self._stages(within, record, at, offset_ns)
                    continue
                sample = self._tracer.start_span("sample", within, attributes=_of_record(record), start_time=begin)
                self._stages(set_span_in_context(sample, Context()), record, at, offset_ns)
                sample.end(end)
        span.end(end)

    def _stages(self, within: Context, record: Ended, answered_at: float, offset_ns: int) -> None:
        for stage, begin, end in stage_times(record, answered_at):
            self._tracer.start_span(stage, within, start_time=_ns(begin, offset_ns)).end(_ns(end, offset_ns))

    def flush(self) -> None:
        """Sends all that is finished, and waits for it."""
        self._provider.force_flush()


def stage_times(record: Ended, answered_at: float) -> Iterator[tuple[str, float, float]]:
    """(stage, begin, end) in monotonic seconds, as far as the request came; the last one ends where its request did."""
    times = record.times
    for number, (stage, begin) in enumerate(zip(STAGES, times, strict=True), 1):
        if begin is None:
            return
        end = times[number] if number < len(times) else answered_at
        yield stage, begin, record.ended_at if end is None else end


def _ns(monotonic_s: float, offset_ns: int) -> int:
    """Nanoseconds since 1970."""
    return int(monotonic_s * 1e9) + offset_ns


def _of_request(context: RequestContext) -> Attributes:
    records = context.records
    return {
        "gen_ai.request.model": records[0].model,
        "gen_ai.usage.input_tokens": records[0].prompt_tokens,
        "gen_ai.usage.output_tokens": sum(record.output_tokens for record in records),
        "moray.tenant": context.tenant.name,
        "moray.priority": records[0].priority,
    }


def _of_record(record: Ended) -> Attributes:
    """In OpenTelemetry's words where it has some (semantic conventions for generative AI)."""
    return {
        "gen_ai.response.id": record.request_id,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "moray.cached_tokens": record.cached_tokens,
        "moray.replica": record.replica or "",
        "moray.version": record.version,
        "moray.ending": record.ending,
        "moray.resumes": record.resumes,
        "moray.longest_gap_s": record.longest_gap_s,
    }

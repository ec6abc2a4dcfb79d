"""An OpenTelemetry collector: OTLP over HTTP."""

from __future__ import annotations

import gzip
from contextlib import ExitStack
from typing import Any

from http_server import Answer, Asked, http_server
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


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

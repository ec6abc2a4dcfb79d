"""Starts what a gateway tells of itself: metrics always, traces where a collector is named."""

from collections.abc import Callable

import msgspec
import ray
from prometheus_client import REGISTRY, disable_created_metrics

from cluster.journal import Journal
from cluster.request_metrics import RequestMetrics, Slo, serve


class TelemetrySpec(msgspec.Struct, frozen=True, kw_only=True):
    """The settings group `metrics`, as plain values; its defaults."""

    enabled: bool = True
    port: int | None = None
    gateways: int = 1  # of which several may be on one machine
    tenants: int = 100
    vllm: bool = True
    otlp_endpoint: str | None = None


def start_telemetry(
    spec: TelemetrySpec,
    journal: Journal,
    slo: Slo,
    gateway: str,
    listen: str | None,
    open_requests: Callable[[], int],
) -> str:
    """Adds its listeners to the journal; returns "host:port" of the metrics, "" where there are none. Raises NoPort.

    They are served from the registry that vLLM's are in, so that one scrape finds both; `listen` is the address, None:
    that of the Ray node.
    """
    if not spec.enabled:
        return ""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, and nobody asks for it
    journal.listeners.append(RequestMetrics(journal.model, slo, spec.tenants, REGISTRY, open_requests))
    if spec.otlp_endpoint is not None:
        from cluster.tracing import RequestTraces, otlp_exporter  # 0.3 s that only those pay who want it

        journal.listeners.append(RequestTraces(otlp_exporter(spec.otlp_endpoint), gateway))
    return serve(REGISTRY, listen or ray.util.get_node_ip_address(), spec.port, spec.gateways)

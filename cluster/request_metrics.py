"""A gateway's metrics: made of the journal's records, once a request; served on a port of the gateway's own."""

import errno
from collections.abc import Callable
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from cluster.journal import ABORTED, DONE, RESTARTED, Ended, Listener
from cluster.outcomes import Ending
from replicas import metrics
from replicas.metrics import Bounded, Kind, Metric

CLIENTS_OWN = frozenset(
    {ABORTED, RESTARTED} | {e.name for e in Ending if e.status < 429} | {Ending.RATE_LIMITED.name}
)  # endings that say nothing of the service; of what begins again, the answer that comes of it does


class Slo(NamedTuple):
    """What a request is held to. Seconds; None: not held to it. A request's own TTFT limit goes first."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def met_by(self, record: Ended) -> bool | None:
        """None: its client gave it up or got it wrong, or it has none."""
        if record.mirror or record.ending in CLIENTS_OWN:
            return None
        if record.ending != DONE:
            return False
        ttft_slo_s = self.ttft_s if record.ttft_slo_s is None else record.ttft_slo_s
        return _within(record.ttft_s, ttft_slo_s) and _within(record.tpot_s, self.tpot_s)


def _within(seconds: float | None, limit_s: float | None) -> bool:
    return seconds is None or limit_s is None or seconds <= limit_s


class RequestMetrics(Listener):
    """Keeps the gateway's part of the catalogue."""

    def __init__(
        self, model: str, slo: Slo, tenants: int, registry: CollectorRegistry, open_requests: Callable[[], int]
    ) -> None:
        """`tenants`: how many are counted one by one."""
        self._model = model
        self._slo = slo
        self._tenant = Bounded(tenants)
        self._requests = _counter(metrics.REQUESTS, registry)
        self._mirrored = _counter(metrics.MIRRORED_REQUESTS, registry)
        self._ttft = _histogram(metrics.TTFT_SECONDS, registry)
        self._tpot = _histogram(metrics.TPOT_SECONDS, registry)
        self._prompt_tokens = _counter(metrics.PROMPT_TOKENS, registry)
        self._cached_tokens = _counter(metrics.CACHED_PROMPT_TOKENS, registry)
        self._output_tokens = _counter(metrics.OUTPUT_TOKENS, registry)
        self._slo_requests = _counter(metrics.SLO_REQUESTS, registry)
        self._tenant_tokens = _counter(metrics.TENANT_TOKENS, registry)
        resumes = _counter(metrics.RESUMES, registry)
        self._gaps = _histogram(metrics.RESUME_GAP_SECONDS, registry).labels(model)
        stage = _histogram(metrics.STAGE_SECONDS, registry)
        # Series that are there from the start: a rate over a counter that appears with its first event misses that one.
        self._stages = {name: stage.labels(model, name) for name in metrics.STAGES}
        self._resumes = {cause: resumes.labels(model, cause) for cause in ("lost", "moved")}
        self._met = {met: self._slo_requests.labels(model, str(met).lower()) for met in (True, False)}
        open_gauge = Gauge(metrics.OPEN_REQUESTS.name, metrics.OPEN_REQUESTS.help, ("model",), registry=registry)
        open_gauge.labels(model).set_function(open_requests)

    def ended(self, record: Ended) -> None:
        model, version = self._model, record.version
        if record.mirror:
            self._mirrored.labels(model, version, record.ending).inc()
            return
        self._requests.labels(model, version, record.ending).inc()
        begin, *ends = record.times
        for stage, end in zip(metrics.STAGES, ends, strict=False):  # `stream` is its response's
            if begin is None or end is None:
                break
            self._stages[stage].observe(end - begin)
            begin = end
        if (ttft_s := record.ttft_s) is not None:
            self._ttft.labels(model, version).observe(ttft_s)
            self._prompt_tokens.labels(model, version).inc(record.prompt_tokens)
            self._cached_tokens.labels(model, version).inc(record.cached_tokens)
            self._output_tokens.labels(model, version).inc(record.output_tokens)
            tenant = self._tenant(record.tenant)
            self._tenant_tokens.labels(tenant, "prompt").inc(record.prompt_tokens)
            self._tenant_tokens.labels(tenant, "output").inc(record.output_tokens)
        if (tpot_s := record.tpot_s) is not None:
            self._tpot.labels(model, version).observe(tpot_s)
        if (met := self._slo.met_by(record)) is not None:
            self._met[met].inc()

    def resumed(self, cause: Literal["lost", "moved"], gap_s: float) -> None:
        self._resumes[cause].inc()
        self._gaps.observe(gap_s)

    def streamed(self, seconds: float) -> None:
        self._stages["stream"].observe(seconds)

    def refused(self, ending: str) -> None:
        self._requests.labels(self._model, "", ending).inc()


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    assert metric.kind is Kind.COUNTER
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def _histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    assert metric.kind is Kind.HISTOGRAM
    return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)


class NoPort(Exception):
    """No port for the gateway's metrics; the message is for the operator."""


def serve(registry: CollectorRegistry, host: str, port: int | None, gateways: int) -> str:
    """Serves a registry's metrics from a thread; returns "host:port". Raises NoPort.

    `port` is the first of as many as there are gateways, since several may be on one machine; None: a free one.
    """
    ports = [0] if port is None else list(range(port, port + gateways))
    for candidate in ports:
        try:
            server, _ = start_http_server(candidate, host, registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise NoPort(f"metrics cannot be served on {host}:{candidate}: {error.strerror}") from error
        else:
            return f"{host}:{server.server_port}"
    raise NoPort(f"metrics.port: {host}:{ports[0]} to {ports[-1]} are all in use; null takes a free port")

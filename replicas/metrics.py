"""The catalogue of Moray's metrics: every name, what it counts, in which unit, under which labels, and who tells it.

Nothing else in Moray spells a metric's name out. `moray metrics` prints this page's contents; ops/METRICS.md is made of
it. Names follow Prometheus' rules: base units, `_total` for counters.

Where they stand: a gateway serves its own on a port of its own, beside vLLM's, and under /metrics of the API. All
others go through Ray, which serves those of a node's processes on that node's metrics port, puts `ray_` before their
names, and adds labels of its own (`WorkerId`, `NodeAddress`; in a replica `deployment` and `replica`). GET
/moray/targets lists all of these addresses.

Labels are bounded: stages, endings, states and layers are closed sets; tenants and priorities are counted one by one up
to a limit and together, as "other", above it. No label holds a request, a client or a prompt.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OTHER = "other"  # the label of all that came after the limit


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Teller(enum.Enum):
    """Which process tells a metric, and so where it is scraped."""

    GATEWAY = "gateway"
    ROUTER = "router"
    REPLICA = "replica"
    CONTROLLER = "controller"


@dataclass(frozen=True)
class Metric:
    """One metric. `buckets` are a histogram's upper bounds, in its unit."""

    name: str
    kind: Kind
    teller: Teller
    unit: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def scraped(self) -> str:
        """Its name on its scrape target, as a query has it; a histogram's without _bucket, _sum or _count."""
        return self.name if self.teller is Teller.GATEWAY else f"ray_{self.name}"


def _seconds(*bounds: float) -> tuple[float, ...]:
    return bounds


_TTFT_S = _seconds(0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_TPOT_S = _seconds(0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_STAGE_S = _seconds(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAP_S = _seconds(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)

STAGES = ("prepare", "queue", "dispatch", "prefill", "decode", "stream")


def _counter(teller: Teller, name: str, unit: str, labels: Sequence[str], text: str) -> Metric:
    return Metric(name, Kind.COUNTER, teller, unit, tuple(labels), text)


def _gauge(teller: Teller, name: str, unit: str, labels: Sequence[str], text: str) -> Metric:
    return Metric(name, Kind.GAUGE, teller, unit, tuple(labels), text)


def _histogram(name: str, labels: Sequence[str], buckets: tuple[float, ...], text: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, Teller.GATEWAY, "seconds", tuple(labels), text, buckets)


# -- gateway ----------------------------------------------------------------------------------------------------------

REQUESTS = _counter(
    Teller.GATEWAY,
    "moray_requests_total",
    "requests",
    ("model", "version", "ending"),
    "Requests that ended, by how: DONE, ABORTED (the client left), ERROR (of the engine), RESTARTED (its version was "
    "gone, it began again from its prompt), or what the cluster decided. Samples of n>1 count one by one.",
)
MIRRORED_REQUESTS = _counter(
    Teller.GATEWAY,
    "moray_mirrored_requests_total",
    "requests",
    ("model", "version", "ending"),
    "Copies of requests that ran on a version under trial; no client sees one, and no other gateway figure counts it.",
)
STAGE_SECONDS = _histogram(
    "moray_request_stage_seconds",
    ("model", "stage"),
    _STAGE_S,
    "Where a request's time went. prepare: HTTP, template, tokenising. queue: at the router. dispatch: until it was "
    "sent to its replica. prefill: until its first token. decode: until its last one. stream: until the response was "
    "sent.",
)
TTFT_SECONDS = _histogram(
    "moray_ttft_seconds", ("model", "version"), _TTFT_S, "From a request's arrival to its first token at the gateway."
)
TPOT_SECONDS = _histogram(
    "moray_tpot_seconds", ("model", "version"), _TPOT_S, "Mean time from token to token of a request, after its first."
)
PROMPT_TOKENS = _counter(
    Teller.GATEWAY, "moray_prompt_tokens_total", "tokens", ("model", "version"), "Prompt tokens of requests that began."
)
CACHED_PROMPT_TOKENS = _counter(
    Teller.GATEWAY,
    "moray_cached_prompt_tokens_total",
    "tokens",
    ("model", "version"),
    "Of the prompt tokens, those that the replica's prefix cache had.",
)
OUTPUT_TOKENS = _counter(
    Teller.GATEWAY, "moray_output_tokens_total", "tokens", ("model", "version"), "Output tokens of requests that ended."
)
SLO_REQUESTS = _counter(
    Teller.GATEWAY,
    "moray_slo_requests_total",
    "requests",
    ("model", "met"),
    'Requests within the SLO (met="true") and not: first token and time per token both in time, by the router\'s '
    "SLO or else the alarms' limits (alarms.ttft_s, alarms.tpot_s). Shed and failed ones are not; what the client gave "
    "up, got wrong or has no quota for is not counted.",
)
TENANT_TOKENS = _counter(
    Teller.GATEWAY,
    "moray_tenant_tokens_total",
    "tokens",
    ("tenant", "kind"),
    'Tokens by tenant; kind is prompt or output. Tenants after the first metrics.tenants are "other"; "" where no keys '
    "are configured.",
)
OPEN_REQUESTS = _gauge(
    Teller.GATEWAY, "moray_open_requests", "requests", ("model",), "Requests that wait or run, of this gateway."
)
RESUMES = _counter(
    Teller.GATEWAY,
    "moray_resumes_total",
    "streams",
    ("model", "cause"),
    "Streams that went on elsewhere; cause is lost (their replica died or hung) or moved (it was drained).",
)
RESUME_GAP_SECONDS = _histogram(
    "moray_resume_gap_seconds", ("model",), _GAP_S, "How long a resumed stream had no token, as its gateway saw it."
)

# -- router -----------------------------------------------------------------------------------------------------------

QUEUE_REQUESTS = _gauge(
    Teller.ROUTER,
    "moray_queue_requests",
    "requests",
    ("model", "priority"),
    'Requests that wait, by priority class; classes after the first 16 are "other".',
)
QUEUE_OLDEST_SECONDS = _gauge(
    Teller.ROUTER,
    "moray_queue_oldest_seconds",
    "seconds",
    ("model",),
    "How long the oldest of them waits; 0: none.",
)
QUEUE_PROMPT_TOKENS = _gauge(
    Teller.ROUTER, "moray_queue_prompt_tokens", "tokens", ("model",), "Prompt tokens of all that wait."
)
REPLICAS = _gauge(
    Teller.ROUTER, "moray_replicas", "replicas", ("model", "state"), "Replicas by state: ready, draining or swapping."
)
GRANTS = _counter(Teller.ROUTER, "moray_grants_total", "requests", ("model",), "Requests granted to a replica.")
DENIALS = _counter(
    Teller.ROUTER, "moray_denials_total", "requests", ("model", "ending"), "Requests that the router ended, by how."
)
REPLICAS_LOST = _counter(
    Teller.ROUTER,
    "moray_replicas_lost_total",
    "replicas",
    ("model",),
    "Replicas that were lost: their connection ended or they fell silent. One that stops in order is not lost.",
)
ROUTER_START = _gauge(
    Teller.ROUTER,
    "moray_router_start_time_seconds",
    "seconds since 1970",
    ("model",),
    "When the router started: each change is a restart.",
)

# -- replica ----------------------------------------------------------------------------------------------------------

RUNNING_REQUESTS = _gauge(
    Teller.REPLICA, "moray_running_requests", "requests", ("model",), "Requests in the engine's batch."
)
ENGINE_WAITING_REQUESTS = _gauge(
    Teller.REPLICA,
    "moray_engine_waiting_requests",
    "requests",
    ("model",),
    "Requests that the engine has taken but cannot run yet; the router keeps it near 0.",
)
BATCH_FILL = _gauge(
    Teller.REPLICA, "moray_batch_fill_ratio", "0..1", ("model",), "Requests in the batch over engine.max_num_seqs."
)
KV_USED = _gauge(Teller.REPLICA, "moray_kv_used_ratio", "0..1", ("model",), "Share of KV blocks in use.")
KV_HEADROOM = _gauge(
    Teller.REPLICA, "moray_kv_headroom_tokens", "tokens", ("model",), "Tokens that the free KV blocks hold."
)
ENGINE_STEPS = _counter(Teller.REPLICA, "moray_engine_steps_total", "steps", ("model",), "Steps of the engine.")
PREFIX_QUERY_TOKENS = _counter(
    Teller.REPLICA,
    "moray_prefix_query_tokens_total",
    "tokens",
    ("model",),
    "Prompt tokens that were looked up in the prefix cache.",
)
PREFIX_HIT_TOKENS = _counter(
    Teller.REPLICA, "moray_prefix_hit_tokens_total", "tokens", ("model",), "Of these, the tokens that it had."
)
REPLICA_START = _gauge(
    Teller.REPLICA,
    "moray_replica_start_time_seconds",
    "seconds since 1970",
    ("model",),
    "When the replica's engine got ready.",
)
MODEL_VERSION = _gauge(
    Teller.REPLICA,
    "moray_model_version_info",
    "0 or 1",
    ("model", "version"),
    '1: the version of the model that the replica serves; 0: one that it had. "" where none is named.',
)
GPU_UTILIZATION = _gauge(
    Teller.REPLICA, "moray_gpu_utilization_ratio", "0..1", ("gpu",), "Time with a kernel running, of the last second."
)
GPU_MEMORY_USED = _gauge(
    Teller.REPLICA, "moray_gpu_memory_used_bytes", "bytes", ("gpu",), "Memory in use on the GPU, by whomever."
)
GPU_MEMORY_TOTAL = _gauge(Teller.REPLICA, "moray_gpu_memory_total_bytes", "bytes", ("gpu",), "The GPU's memory.")
EXPERT_IMBALANCE = _gauge(
    Teller.REPLICA,
    "moray_expert_load_max_over_mean",
    "ratio",
    ("layer",),
    "The most loaded expert's tokens over the mean of its layer, in the last minute.",
)
SHARD_IMBALANCE = _gauge(
    Teller.REPLICA,
    "moray_shard_load_max_over_mean",
    "ratio",
    ("layer",),
    "The most loaded shard's tokens over the mean of all, by layer, in the last minute.",
)
SHARD_SHARE = _gauge(
    Teller.REPLICA,
    "moray_shard_load_share",
    "0..1",
    ("shard",),
    "A shard's part of all tokens that experts were given in the last minute.",
)

# -- controller -------------------------------------------------------------------------------------------------------

ALARM_RAISED = _gauge(
    Teller.CONTROLLER,
    "moray_alarm_raised",
    "0 or 1",
    ("alarm", "severity", "model", "replica"),
    "1 while the alarm is raised.",
)
ALARMS = _counter(Teller.CONTROLLER, "moray_alarms_total", "alarms", ("alarm",), "Alarms that were raised.")
HEALINGS = _counter(
    Teller.CONTROLLER,
    "moray_healings_total",
    "actions",
    ("action", "outcome"),
    "What self-healing did to suspect replicas, and what came of it.",
)
WATCH_LAG = _gauge(
    Teller.CONTROLLER,
    "moray_watch_lag_seconds",
    "seconds",
    (),
    "Age of the newest observation: the controller is blind while it grows.",
)
ROLLOUT_PHASE = _gauge(
    Teller.CONTROLLER,
    "moray_rollout_phase",
    "0 or 1",
    ("model", "phase"),
    "1 for the phase of the rollout that runs, or of the last one.",
)
ROLLOUT_SHARE = _gauge(
    Teller.CONTROLLER,
    "moray_rollout_share",
    "0..1",
    ("model", "version"),
    "Share of the new requests that a version is to get; told while shares are set.",
)
ROLLOUTS = _counter(
    Teller.CONTROLLER,
    "moray_rollouts_total",
    "rollouts",
    ("model", "outcome"),
    "Rollouts that ended, by how: done, rolled-back, or failed (refused before a replica was touched).",
)
SWAP_SECONDS = _gauge(
    Teller.CONTROLLER,
    "moray_swap_seconds",
    "seconds",
    ("model",),
    "What the last replica whose weights were swapped took to load them.",
)

CATALOGUE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def of(teller: Teller) -> Iterator[Metric]:
    """What that process tells."""
    return (metric for metric in CATALOGUE if metric.teller is teller)


class Bounded:
    """Lets the first `limit` values of a label stand for themselves; all later ones are OTHER."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(value)
        return value

"""The settings tree: every option of Moray, its unit, its default and why that default.

Values only: nothing here reads a file, the environment or the machine (`cluster.config.load` does). A `Settings()` made
by hand may still hold `auto` or None where the value follows from the model or the machine; `cluster.resolution` fills
those in, and what `load` returns is always resolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, field_validator

from cluster.alarm_settings import Alarms
from cluster.autoscaling_settings import Autoscaling
from cluster.model_settings import Model
from cluster.policies import CONTINUOUS, POLICIES
from cluster.rollout_settings import Rollout
from cluster.settings_group import Group as _Group


@dataclass(frozen=True)
class Machine:
    """What a local session may use: CPUs this process may run on, GPUs it can see."""

    cpus: int
    gpus: int


class Engine(_Group):
    """The vLLM engine core inside each replica."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="What the engine computes on. auto: cuda if this machine has an NVIDIA GPU, else cpu. Set it when "
        "the session is started from a machine unlike those that serve.",
    )
    host: Literal["process", "thread"] = Field(
        "process",
        description="Where the engine core runs: in a process of its own, or in a thread of the replica. "
        "A thread shares the GIL with Ray: on two CPUs that costs a tenth of the throughput and 1-2 ms to the first "
        "token.",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="Requests in one step of a replica at most. null: 64 for the embedded model, else vLLM's default.",
    )
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens in one step of a replica at most: the prefill's share of a step, and so the pause between "
        "the tokens of running streams. null: 1024 for the embedded model, else vLLM's default.",
    )
    kv_cache_mib: int | None = Field(
        None,
        ge=1,
        description="KV cache of each shard, MiB. null: 64 for the embedded model, 4,096 for another on a CPU "
        "(vLLM would take 92% of the machine's memory, or refuse to start where less is free), else what vLLM finds "
        "free on the GPU.",
    )
    enforce_eager: bool | None = Field(
        None,
        description="Run without compilation and CUDA graphs. null: true on a CPU (compiling costs more than it gains "
        "for models that a CPU can serve), false on CUDA.",
    )
    own_cpu: bool | None = Field(
        None,
        description="Give the engine a CPU on which nothing else of the local session runs; for one replica with one "
        "shard, on a CPU. null: true if this machine has 2 to 4 CPUs: with more there is an idle one for whatever "
        "wakes. Sessions that share a machine would choose the same CPU: false.",
    )
    enable_prefix_caching: bool = Field(True, description="Reuse the KV blocks of prompts with the same beginning.")
    tuned_kernels: Path | None = Field(
        None,
        description="Folder of fused-MoE kernel configurations for a GPU and a shape of experts that vLLM brings none "
        "for, as `moray tune kernels` writes them; every node reads it. null: vLLM's own.",
    )
    extra: Mapping[str, Any] = Field(
        default_factory=dict,
        description="Further vLLM AsyncEngineArgs by name, passed through; the replica checks them against vLLM's own.",
    )

    @field_validator("extra")
    @classmethod
    def _not_shadowing(cls, extra: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, ours in _OURS_IN_EXTRA.items():
            if name in extra:
                raise ValueError(f"{name} has a setting of its own: {ours}")
        return dict(extra)


# vLLM's names of what other settings decide: two places for one value would have to fight it out.
_OURS_IN_EXTRA = MappingProxyType(
    {
        "model": "model.path",
        "served_model_name": "model.name",
        "dtype": "model.dtype",
        "max_model_len": "model.max_model_len",
        "reasoning_parser": "model.reasoning_parser",
        "max_num_seqs": "engine.max_num_seqs",
        "max_num_batched_tokens": "engine.max_num_batched_tokens",
        "kv_cache_memory_bytes": "engine.kv_cache_mib",
        "enforce_eager": "engine.enforce_eager",
        "enable_prefix_caching": "engine.enable_prefix_caching",
        "tensor_parallel_size": "experts.expert_parallel",
        "enable_expert_parallel": "experts.expert_parallel",
    }
)


class Experts(_Group):
    """How the experts are spread inside a replica."""

    expert_parallel: int | None = Field(
        None,
        ge=1,
        description="Shards of one replica: each holds 1/n of the experts (and of attention). null: 2 for the embedded "
        "model if this machine has a CPU (or GPU) for each shard of each replica, else 1.",
    )

    plan: Path | None = Field(
        None,
        description="File of a plan that says which experts each shard holds, as `moray plan experts` writes it; every "
        "node reads it. For a CPU; on CUDA vLLM's EPLB moves experts by Moray's policy: "
        "engine.extra.enable_eplb. null: as many neighbours for each shard.",
    )

    @property
    def shards(self) -> int:
        return self.expert_parallel or 1


class Replicas(_Group):
    """How many replicas, what each takes, and how long it may take to come and go."""

    count: int = Field(
        1,
        ge=1,
        description="Replicas of the model, each one a whole group of shards. With autoscaling.max_replicas: at first.",
    )
    cpus_per_shard: float = Field(1.0, ge=0, description="CPUs that Ray reserves for each shard of a replica.")
    gpus_per_shard: float | None = Field(
        None, ge=0, description="GPUs that Ray reserves for each shard. null: 1 on CUDA, 0 on a CPU."
    )
    start_timeout_s: float = Field(
        900.0,
        gt=0,
        description="Seconds a replica may take to load its model before it counts as failed. A 57 GB model took 148 s "
        "from a local disk; cold network storage takes several times that.",
    )
    drain_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that a stopping replica's running requests have to finish; then they resume elsewhere.",
    )
    hang_timeout_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without the end of an engine step after which a replica that has requests counts as hung: "
        "they resume elsewhere, and it is replaced. The slowest honest step must be well below half of it; the longest "
        "measured, a compilation in the midst of serving, took a few seconds.",
    )


class Gateway(_Group):
    """The HTTP side."""

    count: int | None = Field(
        None,
        ge=1,
        description="Gateway processes. One handles about 10,000 tokens a second, and an H200 makes more. null: one; "
        "four a replica before GPUs of this machine, as far as there are four CPUs for each.",
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on. 0.0.0.0 serves other machines: there is no TLS."
    )
    keys_file: Path | None = Field(
        None,
        description="YAML file of tenants, the hashes of their API keys and their limits (`moray key new` makes it), "
        "on each gateway's machine; a changed file counts within a second. A relative path in a YAML file is taken "
        "from that file's directory. null: no key is asked for.",
    )
    operators: tuple[str, ...] = Field(
        (),
        description="Tenants of the key file whose keys may command the cluster (`moray drain`). Without a key file "
        "whoever reaches the port may.",
    )
    allow_unauthenticated: bool = Field(
        False, description="Serve without API keys on an address that other machines can reach."
    )
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    max_body_mib: float = Field(8.0, gt=0, description="Largest request body, MiB; a larger one is answered with 413.")
    haproxy: bool = Field(
        True, description="HAProxy in front of the gateways, instead of Ray Serve's own proxy in Python."
    )
    stream_interval: int = Field(
        1,
        ge=1,
        description="Tokens in one event of a stream, after the first (vLLM's stream_interval). Each event costs "
        "gateway, proxy and client CPU of their own: more tokens in one save it where it is short.",
    )
    request_timeout_s: float = Field(
        600.0, gt=0, description="Seconds from a request's arrival to its last token at most."
    )
    allowed_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may call the API from a browser (CORS). Empty: none."
    )


class Router(_Group):
    """The cluster-wide queue."""

    policy: str = Field(
        CONTINUOUS,
        description="Which replica a request goes to, and when. continuous: Moray's own. Others bind it on arrival as "
        "other routers do, to compare with: " + ", ".join(name for name in POLICIES if name != CONTINUOUS) + ".",
        json_schema_extra={"enum": list(POLICIES)},
    )
    max_queue: int = Field(
        2048, ge=1, description="Requests that wait in the queue at most; one more is answered with 429."
    )
    no_replica_wait_s: float | None = Field(
        None,
        ge=0,
        description="Seconds a request waits while no replica is left (one is restarting) before it is answered 503. "
        "null: 30; with autoscaling.min_replicas 0, where a request waits for one to load, replicas.start_timeout_s.",
    )
    ttft_slo_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds in which a request's first token is wanted, unless its x-slo-ttft-ms header says "
        "otherwise: one that cannot get it in time is answered with 429 early. null: requests wait as long as they "
        "must.",
    )
    tpot_slo_s: float | None = Field(
        None,
        gt=0,
        description="Seconds between the tokens of a running stream, on average: new prompts are let in at a pace that "
        "keeps it. null: prompts are let in as they fit.",
    )
    starvation_s: float = Field(
        30.0, gt=0, description="Seconds after which a waiting request is overtaken by no other, whatever its size."
    )
    retry_after_s: int = Field(5, ge=1, description="Seconds in the Retry-After header of a 429 or 503.")

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str) -> str:
        if policy not in POLICIES:
            raise ValueError(f"there is no policy {policy!r}; the known ones are {', '.join(POLICIES)}")
        return policy


class Metrics(_Group):
    """What is told to Prometheus and to a trace collector. `moray metrics` lists every metric."""

    enabled: bool = Field(
        True,
        description="Keep metrics and traces of requests at the gateways. false serves none of them there, to measure "
        "what they cost: `moray bench telemetry`.",
    )
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="TCP port on which a gateway serves its metrics; with several gateways the first of as many ports. "
        "No key is asked for there. null: a free port. GET /moray/targets tells Prometheus which one.",
    )
    tenants: int = Field(
        100,
        ge=0,
        description="Tenants whose tokens are counted one by one by each gateway; those that come later are counted "
        "together. Each is two time series.",
    )
    vllm: bool = Field(
        True, description="Keep vLLM's own metrics (vllm:...) of the front end too, its time between tokens among them."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL of an OpenTelemetry collector that takes traces by OTLP over HTTP, such as "
        "http://collector:4318/v1/traces: each request is a span, with one for each of its stages. null: no traces.",
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _a_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"{endpoint!r} is no URL: write http://HOST:4318/v1/traces")
        return endpoint


class Ray(_Group):
    """The Ray cluster underneath."""

    address: str | None = Field(
        None, description="null: a Ray of our own on this machine, gone with the session. auto or host:port: join that."
    )
    num_cpus: int | None = Field(
        None, ge=1, description="CPUs that the local Ray may hand out. null: those of this machine."
    )
    dashboard: bool = Field(True, description="Start Ray's dashboard with the local Ray.")
    dashboard_port: int = Field(8265, ge=1, le=65535, description="TCP port of Ray's dashboard.")


class Log(_Group):
    """What is logged."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe level to log.")

    @field_validator("level", mode="before")
    @classmethod
    def _any_case(cls, level: object) -> object:
        return level.upper() if isinstance(level, str) else level


class Settings(_Group):
    """All of Moray's settings."""

    model: Model = Model()
    engine: Engine = Engine()
    experts: Experts = Experts()
    replicas: Replicas = Replicas()
    gateway: Gateway = Gateway()
    router: Router = Router()
    autoscaling: Autoscaling = Autoscaling()
    metrics: Metrics = Metrics()
    alarms: Alarms = Alarms()
    rollout: Rollout = Rollout()
    ray: Ray = Ray()
    log: Log = Log()

    @property
    def most_replicas(self) -> int:
        """That there may be at one time."""
        return self.autoscaling.max_replicas or self.replicas.count

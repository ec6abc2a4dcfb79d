"""What a replica must start, as plain values. `cluster.app` makes it from the settings; gateways read it too."""

from typing import Any, Literal

import msgspec


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One engine core, the same for every replica of a model."""

    model: str  # the name in the API
    version: str = ""  # which version of it a replica loads that has been told of no other; "": there are none
    engine_args: dict[str, Any]  # vLLM's AsyncEngineArgs by name
    host: Literal["thread", "process"]  # where the core runs: see the setting engine.host
    device: Literal["cpu", "cuda"]
    shards: int  # expert shards, each a worker process when there is more than one
    listen: str | None  # address that gateways reach the core by; None: that of the Ray node
    start_timeout_s: float
    drain_s: float  # what a stopping replica's requests have to end in
    hang_timeout_s: float = 30.0  # without the end of a step, while there are requests, the core counts as hung
    expert_plan: str | None = None  # file of an `experts.plan` to place experts by; None: as vLLM does
    tuned_kernels: str | None = None  # folder of fused-MoE configurations, as vLLM's VLLM_TUNED_CONFIG_FOLDER
    own_cpu: int | None = None  # the CPU that the engine's threads keep to, as in os.sched_setaffinity
    core: str = "replicas.vllm_core:VllmCore"  # the `core.EngineCore` to build with this spec, as module:class

"""How near measured steps come to what the GPU can do at most: its bandwidth, its FLOP/s. Pure.

Counted is what a step cannot do without: weights that its tokens touch, read once, the KV cache of what they attend to,
multiplications and additions. Which experts are touched is counted as if the gates chose them evenly, which is what the
stand-ins' gates do. Activations are not counted, nor is what a kernel reads twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experts.model_spec import ModelSpec
from experts.sharding import passed_parameters
from experts.step_model import touched
from experts.topology import GPUS, Gpu

_BYTES = 2.0  # of a weight and of a KV value: bfloat16


class Demand(NamedTuple):
    """What a step has to read, and to compute."""

    bytes: float
    flops: float


def decode(spec: ModelSpec, batch: int, context: int) -> Demand:
    """A step in which `batch` sequences get a token each, with so many tokens before it."""
    pairs = batch * context * spec.layers * spec.attention.flop_per_pair()
    return Demand(
        bytes=_read(spec, batch) * _BYTES + batch * context * spec.kv_bytes_per_token(_BYTES),
        flops=2.0 * batch * passed_parameters(spec) + pairs,
    )


def prefill(spec: ModelSpec, prompts: int, prompt: int) -> Demand:
    """A step of whole prompts. The output's table is passed by their last tokens only."""
    tokens, tables = prompts * prompt, spec.vocabulary * spec.hidden
    pairs = prompts * prompt * (prompt + 1) / 2 * spec.layers * spec.attention.prefill_flop_per_pair()
    return Demand(
        bytes=_read(spec, tokens) * _BYTES + tokens * spec.kv_bytes_per_token(_BYTES),
        flops=2.0 * (tokens * (passed_parameters(spec) - tables) + prompts * tables) + pairs,
    )


def reached(demand: Demand, gpu: Gpu, seconds: float) -> dict[str, Any]:
    """Shares of the GPU's bandwidth and of its bf16 FLOP/s, and which of the two bounds the step."""
    bandwidth, compute = demand.bytes / gpu.bandwidth / seconds, demand.flops / gpu.bf16_flops / seconds
    return {
        "gbytes": round(demand.bytes / 1e9, 2),
        "tflop": round(demand.flops / 1e12, 3),
        "of_bandwidth": round(bandwidth, 3),
        "of_flops": round(compute, 3),
        "bound": "bandwidth" if bandwidth > compute else "compute",
        "most_gain": round(1.0 / max(bandwidth, compute), 2),  # by which no kernel can make the step shorter than
    }


def rooflines(rows: Iterable[Mapping[str, Any]], spec: ModelSpec, gpu: Gpu) -> list[dict[str, Any]]:
    """Of the rows that the GPU bench writes, those of a step that only decodes, and of one of whole prompts alone."""
    found = []
    for row in rows:
        if row["what"] == "decode":
            step = {"phase": "decode", "batch": row["batch"], "context": row["context"], "ms": row["ms_per_step"]}
            found.append(step | reached(decode(spec, row["batch"], row["context"]), gpu, row["ms_per_step"] / 1e3))
        elif row["what"] == "prefill":
            step = {"phase": "prefill", "prompts": row["prompts"], "prompt": row["prompt"], "ms": row["ms"]}
            found.append(step | reached(prefill(spec, row["prompts"], row["prompt"]), gpu, row["ms"] / 1e3))
    return found


def gpu_named(name: str | None) -> Gpu | None:
    """By NVML's name of it, such as "NVIDIA H100 80GB HBM3". None: its rates are not known here."""
    words = (name or "").replace("-", " ").split()
    fitting = [gpu for kind, gpu in GPUS.items() if kind.partition("-")[0] in words]
    sized = [gpu for gpu in fitting if gpu.name.partition("-")[2] in words]
    return next(iter(sized or fitting[-1:]), None)


def _read(spec: ModelSpec, tokens: int) -> float:
    """Parameters that a step of so many tokens reads: of the tables the output's, of the experts those touched."""
    others = spec.parameters - spec.routed_parameters - spec.embedding_parameters
    share = touched(tokens, 0, spec.top_k / spec.experts, 1.0)
    return others + spec.vocabulary * spec.hidden + spec.routed_parameters * share

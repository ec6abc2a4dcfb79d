"""The mission's headline figures, each an engine beside another: what experts, bf16 and int8 are worth; the 7B tier.

All by one measurement of the raw engine (`profile`), so that they compare; of the 32B tier in bf16 it is a part of
`compare`, which has that engine up already.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ops.bench.gpu.checkpoint import dense_like, int8, tier
from ops.bench.gpu.raw_engine import RawEngine
from ops.bench.gpu.raw_steps import decode
from ops.bench.gpu.record import Notes, Step
from ops.bench.gpu.runs import GpuRun
from ops.bench.gpu.sides import Bench, measure_raw, moray_side, raw_latency

BATCHES = (1, 64, 256)  # and the sizes that CUDA graphs are captured for, so that these start sooner
FP32_LAYERS = 24  # of 48: in float32 the whole tier takes 114 GB
_NEEDS_S = 130.0
_SMALLER_NEEDS_S = 90.0
_OLMOE_CONTEXT = 4096


def profile(bench: Bench, raw: RawEngine, name: str = "32b bf16") -> None:
    """First token, time a token by batch, and throughput of one engine."""
    raw.run(bench.ask(bench.scale.work(256, 256, 8), 1))
    raw_latency(bench, raw, name)
    for batch in BATCHES:
        decode(bench, raw, batch, 128, name)
    work, measure = bench.scale.work(256, 256, 128), measure_raw(bench, raw)
    for turn in range(2):
        bench.notes.add(what="run", side=name, workload=work.name, turn=turn, **measure(work, 200 + turn))


def headline(run: GpuRun) -> list[Step]:
    """Beside `compare`'s 32B tier in bf16."""

    def engine(name: str, config: Mapping[str, Any], **args: Any) -> Any:
        def step(notes: Notes) -> None:
            args.setdefault("compilation_config", {"cudagraph_capture_sizes": list(BATCHES)})
            bench = Bench(notes, run.scale, run.scale.engine(run.where, name.replace(" ", "-"), config, **args))
            bench.wait_until_free()
            with bench.raw_engine() as raw:
                notes.add(what="start", side=name, load_s=round(raw.load_s, 1))
                profile(bench, raw, name)

        return step

    def seven(notes: Notes) -> None:
        args = {"max_model_len": min(_OLMOE_CONTEXT, run.scale.args["max_model_len"])}
        moray_side(Bench(notes, run.scale, run.scale.engine(run.where, "7b", tier("7b"), **args)), time.monotonic(), 1)

    whole = tier("32b")
    half = whole | {"num_hidden_layers": FP32_LAYERS}
    return [
        Step("int8", _NEEDS_S, engine("32b int8", int8(whole), dtype="bfloat16")),
        Step("dense", _NEEDS_S, engine("dense bf16", dense_like(whole))),
        Step("7b", _SMALLER_NEEDS_S, seven),
        Step("bf16-half", _SMALLER_NEEDS_S, engine("half bf16", half)),
        Step("fp32-half", _SMALLER_NEEDS_S, engine("half fp32", half, dtype="float32")),
    ]

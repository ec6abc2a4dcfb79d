"""What `moray bench gpu` wrote down, as what a fit needs: steps with their seconds, and workloads to judge it by. Pure.

| a row's `what` | is |
| --- | --- |
| `machine` | GPU and engine arguments, the first one's for the whole file |
| `decode` | milliseconds of a step that decodes `batch` sequences of `context` tokens |
| `prefill` | the same until each of `prompts` prompts has its first token; `cached` tokens of it were computed before |
| `latency` | the same for one prompt, the median of many |
| `mixed` | of a step with a chunk of `prompt` tokens beside `decoding` sequences of `context` tokens |
| `run`, `held_out` | a whole workload, never fitted; `rate`: Poisson arrivals a second, else all come at once |
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experts.step_model import pairs
from experts.topology import GPUS
from ops.bench.gpu.record import lines
from ops.calibrate.replay import StepShape, limits, steps_of
from ops.errors import UserError
from ops.tune.space import own_graphs
from replicas.messages import Capacity

RAW_STEPS = ("raw", "calibration")  # parts of a run that measure the raw engine of the 32B tier


class Measured(NamedTuple):
    """Steps one after the other, and what they took; `request`: with a request's way to the engine and back."""

    name: str
    steps: tuple[StepShape, ...]
    request: bool
    seconds: float


class Workload(NamedTuple):
    """Requests of one length; `rate`: Poisson arrivals a second with `seed`, None: all at once."""

    requests: int
    prompt: int
    output: int
    rate: float | None = None
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.requests}x{self.prompt}x{self.output}" + (f" at {self.rate:g}/s" if self.rate else "")


class HeldOut(NamedTuple):
    """What a whole workload came to, medians of its turns; `ttft_p50_s` None: not measured."""

    workload: Workload
    requests_per_s: float
    ttft_p50_s: float | None


@dataclass(frozen=True)
class DataSet:
    """One file: an engine on one machine. `graph_sizes` as in `StepTime`, `ahead` as in `SimulatedEngine`."""

    name: str
    gpu: str  # as in `experts.topology.GPUS`, where it is known
    capacity: Capacity
    graph_sizes: tuple[int, ...]
    ahead: bool
    measured: tuple[Measured, ...]
    held_out: tuple[HeldOut, ...]


def read(file: Path) -> DataSet:
    """A `results.jsonl`, or an object with `rows` as in `ops/bench/results/gpu.json`. Raises UserError."""
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    try:
        whole = json.loads(text)
        rows = whole["rows"] if isinstance(whole, dict) and "rows" in whole else list(lines(file))
    except ValueError:
        rows = list(lines(file))
    try:
        return data_set(file.name, rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} holds a row that is none of `moray bench gpu`: {error}") from None


def data_set(name: str, rows: Iterable[Mapping[str, Any]]) -> DataSet:
    """Raises UserError where there is nothing to fit; KeyError, TypeError, ValueError for rows that are none."""
    rows = list(rows)
    machine = next((row for row in rows if row["what"] == "machine"), None)
    if machine is None:
        raise UserError(f"{name} does not say on which machine it was measured: take a results.jsonl as it was written")
    args = machine["args"]
    capacity = limits(args["max_num_seqs"], args["max_num_batched_tokens"], args["max_model_len"])
    measured: list[Measured] = []
    runs: list[HeldOut] = []
    for row in rows:
        if row.get("step") in RAW_STEPS:
            measured += _measured(row, capacity)
            runs += _held_out(row)
    if not measured:
        raise UserError(f"{name} has no step of a raw engine in it: `moray bench gpu calibration` measures them")
    return DataSet(
        name=name,
        gpu=_gpu(machine),
        capacity=capacity,
        graph_sizes=own_graphs(args),
        # vLLM's default everywhere; but a CPU has nothing that would run a step while the next is scheduled.
        ahead=machine.get("gpu") is not None and args.get("async_scheduling") is not False,
        measured=tuple(measured),
        held_out=_medians(runs),
    )


def _measured(row: Mapping[str, Any], capacity: Capacity) -> Iterable[Measured]:
    """None or one of them."""
    match row["what"]:
        case "decode":
            batch, context = row["batch"], row["context"]
            shape = StepShape(0, 0.0, batch, batch * context)
            yield Measured(f"decode {batch} of {context:,}", (shape,), False, row["ms_per_step"] / 1e3)
        case "prefill":
            count, prompt, cached = row["prompts"], row["prompt"], row.get("cached", 0)
            steps = (_chunk(cached, prompt - cached),) if cached else steps_of(capacity, count, prompt)
            behind = f" behind {cached:,}" if cached else ""
            yield Measured(f"prefill {count} x {prompt - cached:,}{behind}", steps, True, row["ms"] / 1e3)
        case "latency":
            prompt = int(row["workload"].split("x")[1])
            yield Measured(f"first token of {prompt:,}", steps_of(capacity, 1, prompt), True, row["ttft_p50_ms"] / 1e3)
        case "mixed":
            decoding, prompt = row["decoding"], row["prompt"]
            step = StepShape(prompt, pairs(0, prompt), decoding, decoding * row["context"])
            yield Measured(f"prefill {prompt:,} beside {decoding}", (step,), False, row["ms"] / 1e3)


def _chunk(computed: int, tokens: int) -> StepShape:
    return StepShape(tokens, pairs(computed, tokens), 0, 0)


def _held_out(row: Mapping[str, Any]) -> Iterable[HeldOut]:
    if row["what"] == "run":
        requests, prompt, output = map(int, row["workload"].partition("c")[0].split("x"))
        yield HeldOut(Workload(requests, prompt, output), row["req_s"], None)
    elif row["what"] == "held_out":
        work = Workload(row["requests"], row["prompt"], row["output"], row["rate"], row["seed"])
        yield HeldOut(work, row["req_s"], row["ttft_p50_ms"] / 1e3)


def _medians(runs: Iterable[HeldOut]) -> tuple[HeldOut, ...]:
    by_work: dict[Workload, list[HeldOut]] = {}
    for run in runs:
        by_work.setdefault(run.workload, []).append(run)

    def median(turns: list[HeldOut]) -> HeldOut:
        ttft = [turn.ttft_p50_s for turn in turns if turn.ttft_p50_s is not None]
        speed = statistics.median(turn.requests_per_s for turn in turns)
        return HeldOut(turns[0].workload, speed, statistics.median(ttft) if ttft else None)

    return tuple(median(turns) for turns in by_work.values())


def _gpu(machine: Mapping[str, Any]) -> str:
    """The name that we know it by, or its own."""
    told, memory = machine.get("gpu") or "CPU", (machine.get("gpu_memory_gib") or 0.0) * (1 << 30)
    alike = [gpu for gpu in GPUS.values() if gpu.name.partition("-")[0] in told]
    return min(alike, key=lambda gpu: abs(gpu.memory - memory)).name if alike else str(told)

"""The parts of a run on a GPU: each fits ten minutes, and each step of one writes down what it finds by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ops.bench.gpu.checkpoint import tier
from ops.bench.gpu.http_load import HttpLoad
from ops.bench.gpu.null_server import null_servers
from ops.bench.gpu.raw_steps import contexts, decode_steps, prefills
from ops.bench.gpu.record import Notes, Step
from ops.bench.gpu.scale import Scale
from ops.bench.gpu.sides import Bench, moray_side, raw_side, stock_side

TURNS = 3
_STOP_NEEDS_S = 20.0  # a session's end
_START_NEEDS_S = 120.0  # an engine of the 32B tier with its compilation cached, and one turn behind it


class Run:
    """What the steps of one run share: where checkpoints go, and how large all is."""

    def __init__(self, scale: Scale, where: Path) -> None:
        self.scale, self.where = scale, where

    def bench(self, notes: Notes, **args: object) -> Bench:
        return Bench(notes, self.scale, self.scale.engine(self.where, "32b", tier("32b"), **args))


def smoke(run: Run) -> list[Step]:
    """Does the whole stack run here at all; what does the engine take for its first start, and for its steps."""

    def small(notes: Notes) -> None:
        engine = run.scale.engine(run.where, "32b-4-layers", tier("32b") | {"num_hidden_layers": 4})
        moray_side(Bench(notes, run.scale, engine), time.monotonic(), turns=1)

    def raw(notes: Notes) -> None:
        raw_side(run.bench(notes), time.monotonic(), 1, (decode_steps, contexts, prefills))

    def moray(notes: Notes) -> None:
        moray_side(run.bench(notes), time.monotonic() + notes.left_s - _STOP_NEEDS_S, turns=2)

    return [
        Step("generator", 10, lambda notes: generator(run, notes)),
        Step("small", 60, small),
        Step("raw-first-start", _START_NEEDS_S, raw),
        Step("moray-second-start", _START_NEEDS_S, moray),
    ]


def generator(run: Run, notes: Notes) -> None:
    """What the load generator takes from servers that only stream."""
    bench, processes = run.bench(notes), run.scale.load_processes
    with null_servers(processes) as url:
        for work in bench.main:
            taken = HttpLoad(processes).run(url, bench.prompts.bodies(work, 0), work.concurrency)
            notes.add(what="generator", workload=work.name, processes=processes, **taken.summary())


def compare(run: Run) -> list[Step]:
    """The raw engine, vLLM's server and Moray, each by the same workloads; what time there is, is shared out evenly."""
    sides: list[tuple[str, Callable[[Bench, float], None]]] = [
        ("raw", lambda bench, ends: raw_side(bench, ends, TURNS)),
        ("vllm-serve", lambda bench, ends: stock_side(bench, ends, TURNS)),
        ("moray", lambda bench, ends: moray_side(bench, ends, TURNS)),
    ]

    def step(number: int) -> Step:
        name, side = sides[number]

        def begin(notes: Notes) -> None:
            side(run.bench(notes), time.monotonic() + (notes.left_s - _STOP_NEEDS_S) / (len(sides) - number))

        return Step(name, _START_NEEDS_S, begin)

    return [Step("generator", 10, lambda notes: generator(run, notes)), *map(step, range(len(sides)))]


PHASES: dict[str, Callable[[Run], list[Step]]] = {"smoke": smoke, "compare": compare}

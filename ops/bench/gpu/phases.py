"""The parts of a run on a GPU: each fits ten minutes, and each step of one writes down what it finds by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from ops.bench import start
from ops.bench.gpu.batching import static_and_continuous
from ops.bench.gpu.calibration_steps import calibration_side
from ops.bench.gpu.headline import headline, profile
from ops.bench.gpu.http_load import HttpLoad
from ops.bench.gpu.null_server import null_servers
from ops.bench.gpu.raw_steps import contexts, decode_steps
from ops.bench.gpu.record import Notes, Step
from ops.bench.gpu.runs import GpuRun
from ops.bench.gpu.sides import Bench, moray_side, raw_side, stock_side
from ops.bench.gpu.tuning import tune

TURNS = 3
_STOP_NEEDS_S = 20.0  # a session's end
_FIRST_START_NEEDS_S = 220.0  # the engine of the 32B tier, compiled, and one turn behind it
_START_NEEDS_S = 140.0  # the same with the compilation cached
_AGAIN_NEEDS_S = 90.0  # a start alone, and the session's end


def compare(run: GpuRun) -> list[Step]:
    """The raw engine, Moray and vLLM's server, each by the same workloads; then how soon Moray starts once more.

    The raw engine comes first, so that it is its start that compiles: what is kept of that, the others find.
    """

    def raw(notes: Notes) -> None:
        raw_side(run.bench(notes), ends(notes), TURNS, (profile, decode_steps, contexts))

    def moray(notes: Notes) -> None:
        moray_side(run.bench(notes), ends(notes), TURNS, further=(static_and_continuous,))

    def stock(notes: Notes) -> None:
        stock_side(run.bench(notes), ends(notes), TURNS)

    return [
        Step("generator", 10, lambda notes: generator(run, notes)),
        Step("raw", _FIRST_START_NEEDS_S, raw),
        Step("moray", _START_NEEDS_S, moray),
        Step("vllm-serve", _START_NEEDS_S, stock),
        Step("start", _AGAIN_NEEDS_S, lambda notes: start_again(run.bench(notes))),
    ]


def start_again(bench: Bench) -> None:
    """Of a session that finds all that `moray` kept: compiled kernels, what it measured of the GPU's memory."""
    bench.wait_until_free()
    took = start.one(bench.engine.settings({"replicas.start_timeout_s": str(bench.scale.start_timeout_s)}))
    bench.notes.add(
        what="start",
        side="moray again",
        session_s=round(took.ready_s, 1),
        stages_s=dict(took.stages_s),
        answer_s=round(took.answer_s, 2),
    )


def calibration(run: GpuRun) -> list[Step]:
    """What `moray calibrate` fits to, and what judges it."""
    return [Step("calibration", _FIRST_START_NEEDS_S, lambda notes: calibration_side(run.bench(notes), ends(notes)))]


def generator(run: GpuRun, notes: Notes) -> None:
    """What the load generator takes from servers that only stream."""
    bench, processes = run.bench(notes), run.scale.load_processes
    with null_servers(processes) as url:
        for work in bench.main:
            taken = HttpLoad(processes).run(url, bench.prompts.bodies(work, 0), work.concurrency)
            notes.add(what="generator", workload=work.name, processes=processes, **taken.summary())


def ends(notes: Notes) -> float:
    """When (monotonic) a step is to begin no further turn."""
    return time.monotonic() + notes.left_s - _STOP_NEEDS_S


PHASES: dict[str, Callable[[GpuRun], list[Step]]] = {
    "compare": compare,
    "headline": headline,
    "calibration": calibration,
    "tune": tune,
}

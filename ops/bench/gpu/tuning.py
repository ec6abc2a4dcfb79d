"""What tuning gains on the GPU at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cluster.app import engine_spec
from cluster.config import load
from ops.bench.direct_engine import BenchFailed
from ops.bench.gpu.record import Notes, Step, lines
from ops.bench.gpu.runs import GpuRun
from ops.bench.gpu.sides import Bench
from ops.bench.gpu.watching import machine
from ops.tune import space
from ops.tune.attainment import Slo
from ops.tune.engine import Work
from ops.tune.state import State
from ops.tune.tuning import Goal, search

SLO = Slo(ttft_s=1.0, tpot_s=0.05)
# What vLLM's server takes on an H100 or H200, and Moray with it (vLLM 0.32, engine/arg_utils.py), its own CUDA graphs
# instead of the bench's few: the default to be better than.
SERVERS_OWN: Mapping[str, Any] = MappingProxyType(
    {"max_num_batched_tokens": 8192, "max_num_seqs": 1024, "compilation_config": {}}
)
_STOP_NEEDS_S = 10.0
_TUNE_NEEDS_S = 150.0  # an engine of the 32B tier, loaded, and some trials


def tune(run: GpuRun) -> list[Step]:
    """A run that is cut off leaves `tune.jsonl` beside its results; one over the same folder goes on from it."""

    def tuned(notes: Notes) -> None:
        bench = run.bench(notes, **(SERVERS_OWN if run.scale.name == "full" else {}))
        bench.wait_until_free()
        work = run.scale.work(1, 512, 128)
        vocabulary = json.loads((bench.engine.directory / "config.json").read_text())["vocab_size"]
        trial_s, warm_s = (8.0, 3.0) if run.scale.name == "full" else (1.0, 0.3)
        goal = Goal(Work(work.prompt, work.output, vocabulary), SLO, trial_s, warm_s)
        settings = bench.engine.settings({"engine.own_cpu": "false"})
        spec = engine_spec(load(None, {}, settings).settings)
        file = notes.out / "tune.jsonl"
        known = State(file, _searched(run, goal, bench))
        before = len(known.trials) + len(known.checks)
        limit_s = notes.left_s - _STOP_NEEDS_S
        outcome = search(
            spec, goal, known, limit_s, lambda text: notes.add(what="note", text=text), notes.log("engine")
        )
        rows = list(lines(file))
        for row in rows[len(rows) - (outcome.trials - before) :]:
            notes.add(what="trial", **row)
        notes.add(
            what="tuned",
            slo=SLO._asdict(),
            prompt=work.prompt,
            output=work.output,
            default_req_s=round(outcome.default, 2),
            tuned_req_s=round(outcome.goodput, 2),
            ratio=round(outcome.ratio, 3),
            confirmed=bool(outcome.checked),
            finished=outcome.finished,
            trials=outcome.trials,
            default=space.settings(outcome.found.first, spec.engine_args),
            settings=space.settings(outcome.setting, spec.engine_args),
        )
        if not outcome.finished:
            raise BenchFailed("the search was cut off: the same run over the same folder goes on with it")

    return [Step("tune", _TUNE_NEEDS_S, tuned)]


def _searched(run: GpuRun, goal: Goal, bench: Bench) -> dict[str, Any]:
    """What has to be the same for trials of two runs to compare."""
    told = {name: value for name, value in machine().items() if name != "gpu_error"}
    return {"scale": run.scale.name, "args": dict(bench.engine.args), "slo": goal.slo._asdict(), "machine": told}


def tuned_goodput_ratio(rows: Any) -> dict[str, Any]:
    """For `figures`: of the last search that was written down, and what it has to say for itself."""
    last = next((row for row in reversed(list(rows)) if row["what"] == "tuned"), None)
    if last is None:
        return {}
    return {
        "tuned_goodput_ratio": last["ratio"],
        "tuned_goodput": {"of": [last["tuned_req_s"], last["default_req_s"]]}
        | {name: last[name] for name in ("confirmed", "finished", "trials", "settings", "default", "slo")},
    }

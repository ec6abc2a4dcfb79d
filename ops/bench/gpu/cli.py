"""`moray bench gpu`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ops.errors import UserError


def gpu(
    phase: Annotated[str, typer.Argument(help="Which part: compare (the three sides), headline, calibration, tune.")],
    out: Annotated[Path, typer.Option(help="Folder: results.jsonl, logs.tar.gz, work.", metavar="DIR")],
    limit_s: Annotated[float, typer.Option(min=10, help="Seconds for all: steps that no longer fit are left.")] = 540,
    scale: Annotated[str, typer.Option(help="full, or tiny: the same run on a CPU, to try it.")] = "full",
) -> None:
    """The whole stack on this machine's GPU, beside the raw engine and vLLM's own server, in one run.

    Weights are dummies of the 32B tier's real shape: figures are about speed only. Each line of results.jsonl is
    written as soon as it is known; a run over the same folder leaves out what an earlier one has measured on the same
    machine, and engines find there what was compiled. `python -m ops.bench.gpu` does the same where the command is
    not installed.

    Example: moray bench gpu compare --out build/gpu
    """
    from ops.bench.gpu.phases import PHASES
    from ops.bench.gpu.record import Notes
    from ops.bench.gpu.runs import GpuRun
    from ops.bench.gpu.scale import SCALES, prepare_environment
    from ops.bench.gpu.watching import boot, machine

    if phase not in PHASES:
        raise UserError(f"there is no part {phase!r}; take one of {', '.join(PHASES)}")
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: take one of {', '.join(SCALES)}")
    chosen = SCALES[scale]
    prepare_environment(chosen)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by exceptions, so that every engine and session ends
    # vLLM keeps compiled code by the model's path: the same for all runs over the same folder.
    work = out.resolve() / "work"
    notes = Notes(out, work / "logs" / phase, limit_s, console.print)
    notes.on_machine(phase=phase, scale=scale, args=dict(chosen.args), boot=boot(), **machine())
    notes.run(PHASES[phase](GpuRun(chosen, work)))
    typer.echo(json.dumps({"steps_done": sorted(notes.done())}))

"""`moray bench gpu`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ops.errors import UserError


def gpu(
    phase: Annotated[str, typer.Argument(help="Which part: compare (the three sides), headline, calibration, tune.")],
    out: Annotated[Path, typer.Option(help="Folder of what is found: results.jsonl, logs.tar.gz.", metavar="DIR")],
    limit_s: Annotated[float, typer.Option(min=10, help="Seconds for all: steps that no longer fit are left.")] = 540,
    scale: Annotated[str, typer.Option(help="full, or tiny: the same run on a CPU, to try it.")] = "full",
    work: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and logs. Default: a temporary one.", metavar="DIR")
    ] = None,
) -> None:
    """The whole stack on this machine's GPU, beside the raw engine and vLLM's own server, in one run.

    Weights are dummies of the 32B tier's real shape: figures are about speed only. Each line of results.jsonl is
    written as soon as it is known; a run over the same folder goes on where the last one was cut off. `python -m
    ops.bench.gpu` does the same where the command is not installed.

    Example: moray bench gpu compare --out build/gpu
    """
    from ops.bench.gpu.phases import PHASES
    from ops.bench.gpu.record import Notes
    from ops.bench.gpu.runs import GpuRun
    from ops.bench.gpu.scale import SCALES, prepare_environment
    from ops.bench.gpu.watching import machine

    if phase not in PHASES:
        raise UserError(f"there is no part {phase!r}; take one of {', '.join(PHASES)}")
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: take one of {', '.join(SCALES)}")
    chosen = SCALES[scale]
    prepare_environment(chosen)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    with tempfile.TemporaryDirectory(prefix="moray-gpu-") as temporary:
        where = work or Path(temporary)
        notes = Notes(out, where / "logs" / phase, limit_s, console.print)
        notes.add(what="machine", phase=phase, scale=scale, args=dict(chosen.args), **machine())
        notes.run(PHASES[phase](GpuRun(chosen, where)))
    typer.echo(json.dumps({"steps_done": sorted(notes.done())}))

"""The command `moray quantize`: arguments and output. The conversion lies in `experts.quantize`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ops.errors import UserError
from ops.options import AsJsonObject

EXAMPLES = "Example: `moray quantize --model ~/models/Qwen3-30B-A3B --out ~/models/Qwen3-30B-A3B-int8`"


def quantize(
    model: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face checkpoint in bf16, fp16 or fp32.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the int8 checkpoint goes; must not exist.")],
    as_json: AsJsonObject = False,
) -> None:
    """Write a checkpoint's int8 form: a quarter of fp32's size, half of bf16's.

    Weights in int8 with a scale for each output channel, activations quantised a token at a time (compressed-tensors
    W8A8, which vLLM serves on CUDA from sm75 on). After an interruption, run it again: it goes on with the file that
    it was at.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from experts.quantize import MANIFEST, NotConverted, convert

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)
        try:
            summary = convert(
                model.expanduser(),
                out.expanduser(),
                lambda file, done, total: progress.update(task, description=file, completed=done, total=total),
            )
        except NotConverted as error:
            raise UserError(str(error)) from None
    if as_json:
        figures = asdict(summary) | {"size_ratio_fp32": summary.ratio_to_fp32, "size_ratio_bf16": summary.ratio_to_bf16}
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    console = Console()
    console.print(
        f"{out}: {summary.bytes_after / 1e6:,.1f} MB of weights, {summary.ratio_to_fp32:.2f}x under fp32 and "
        f"{summary.ratio_to_bf16:.2f}x under bf16; {summary.parameters_in_int8 / summary.parameters:.1%} of "
        f"{summary.parameters:,} parameters are int8. Hashes: {MANIFEST}",
        highlight=False,
        soft_wrap=True,
    )

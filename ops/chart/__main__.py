"""Writes what of helm/moray is made by a program: `python -m ops.chart`. `--check` only says what is not up to date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ops.chart.commented import BadValues
from ops.chart.generated import CHART, generated, stale


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if a file is not up to date.")
    ] = False,
) -> None:
    """Make the chart's schema, its VALUES.md, and its copies of the alert rules and dashboards."""
    try:
        files = generated(CHART)
    except BadValues as error:
        sys.exit(str(error))
    old = stale(CHART, files)
    for path in () if check else old:
        target = CHART / path
        if path in files:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(files[path])
        else:
            target.unlink()
    for path in old:
        sys.stdout.write(f"{'not up to date' if check else 'written'}: {_shown(CHART / path)}\n")
    if check and old:
        sys.exit("run `python -m ops.chart`")


def _shown(path: Path) -> str:
    return str(path.relative_to(CHART.parents[1]))


if __name__ == "__main__":
    typer.run(main)

"""What all `moray bench` commands share: `--json`, and how they tell what they are at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def reporter(quiet: bool) -> Callable[[str], None]:
    """Prints a line for each step of a bench, beside its figures; nothing if `quiet`."""
    console = Console(stderr=True)
    return lambda line: None if quiet else console.print(line, style="dim", highlight=False)

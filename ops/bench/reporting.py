"""How all `moray bench` commands tell what they are at."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console


def reporter(quiet: bool) -> Callable[[str], None]:
    """Prints a line for each step of a bench, beside its figures; nothing if `quiet`."""
    console = Console(stderr=True)
    return lambda line: None if quiet else console.print(line, style="dim", highlight=False, soft_wrap=True)

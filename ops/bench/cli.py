"""`moray bench …`: performance is measured here, never by timed tests."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure Moray. Every bench takes --json.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.callback()
def bench() -> None:
    """Measure Moray. Ratios are taken side by side in one run: absolute figures belong to the machine."""


@app.command()
def frontend(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each alternates between both sides.")] = 5,
    output_tokens: Annotated[int, typer.Option(min=2, max=2048, help="Tokens that each request generates.")] = 128,
    stream_interval: Annotated[int, typer.Option(min=1, help="Tokens in one event of a stream.")] = 1,
    as_json: AsJson = False,
) -> None:
    """What HTTP, proxy, gateway, router and Ray cost around the engine, at concurrency 1, 32 and 128.

    The same unsharded engine core is driven directly in one process and through the whole stack, in turns, on the
    same machine, load generator included. throughput_ratio_N: tokens/s through the stack over the engine's alone.
    added_ttft_p50_ms_1: first token's delay added at concurrency 1. cpu_us_per_token_32: CPU microseconds that each
    hop spends per streamed token, requests' own cost included.

    Example: moray bench frontend --rounds 3 --json
    """
    from ops.bench.frontend import measure

    _show("moray bench frontend", measure(rounds, output_tokens, stream_interval, _reporter(as_json)), as_json)


@app.command()
def transport(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each alternates between both ways.")] = 3,
    frames: Annotated[int, typer.Option(min=100, help="Frames in each round and way.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """What a frame of tokens costs from replica to gateway: through Ray, and over our own connection.

    Example: moray bench transport --json
    """
    from ops.bench.transport import measure

    _show("moray bench transport", measure(rounds, frames), as_json)


def _reporter(quiet: bool) -> Any:
    console = Console(stderr=True)
    return lambda line: None if quiet else console.print(line, style="dim", highlight=False)


def _show(title: str, figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        if isinstance(value, dict):
            for part, number in value.items():
                table.add_row(f"{name}.{part}", f"{number:,}")
        else:
            table.add_row(name, str(value))
    Console().print(table)

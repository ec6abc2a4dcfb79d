"""The command `moray soak`: arguments and output."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ops.options import AsJsonLine

EXAMPLES = "Examples: `moray soak` · `moray soak --minutes 3 --seed 7 --json`"


def soak(
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Minutes of load and disturbances; start, accounts and end come on top.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the disturbances, their order and victims, and of the load.")] = 0,
    replicas: Annotated[int, typer.Option(min=2, help="Replicas; each takes a CPU.")] = 2,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    as_json: AsJsonLine = False,
) -> None:
    """Kill and stop processes of a session under load; no answer may show it, and nothing may be left behind.

    A session of its own serves the embedded model with real engines. A catalogue of requests (chat, completions,
    streamed, whole, logprobs, stop strings, guided JSON, tools, penalties, seeded samples, shared prefixes) is asked
    undisturbed first, three times; what is not the same each time is dropped and counted (dropped_bodies). Then
    clients ask at random, some go away in the midst of an answer, and one after another engine cores and Serve
    replicas are killed (SIGKILL) or stopped (SIGSTOP), the router is killed, replicas are drained by migration.

    Must be 0: broken_streams (cut, error, no [DONE]), wrong_answers (a token missing, repeated or another than
    undisturbed), leaked (kv: replicas with requests or KV blocks in use; tickets: requests that router or gateway
    still keep; handles: descriptors above the level before; processes). not_mended says what did not come back in
    two minutes. Else, or if no stream was resumed at all, the exit code is 1. quarantined: requests that saw two
    replicas die and were told so, by design. retried: answers 429 and 503 with Retry-After, asked again.
    """
    from rich.console import Console
    from rich.table import Table

    from ops.soak.soak import failures, measure

    told = Console(stderr=True)

    def report(line: str) -> None:
        told.print(line, style="dim", soft_wrap=True, markup=False, highlight=False)

    figures = measure(minutes, seed, replicas, concurrency, report)
    failed = failures(figures)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        table = Table(title="moray soak", show_header=False)
        for name, value in figures.items():
            table.add_row(name, _cell(value))
        Console().print(table)
    if failed:
        told.print(f"failed: {', '.join(failed)}", style="bold red", soft_wrap=True)
        raise typer.Exit(1)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {n}" for name, n in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)

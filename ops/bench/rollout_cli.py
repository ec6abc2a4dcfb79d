"""`moray bench rollout` and `moray bench gates`: rollouts on the real stack, and their decisions simulated."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from ops.bench.reporting import reporter
from ops.options import AsJsonLine


def rollout(
    faults: Annotated[
        str | None, typer.Option(help="Some of the bad versions, by commas. Default: all.", metavar="NAMES")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=2, help="Requests in flight.")] = 12,
    share: Annotated[float, typer.Option(min=0.01, max=0.5, help="Of new requests, that a canary gets.")] = 0.2,
    min_samples: Annotated[int, typer.Option(min=20, help="Requests of each version before it is judged.")] = 50,
    step_s: Annotated[float, typer.Option(min=1, help="Seconds for which a canary is watched at least.")] = 15,
    deadline_s: Annotated[float, typer.Option(min=20, help="Seconds without a verdict until it goes back.")] = 300,
    as_json: AsJsonLine = False,
) -> None:
    """The embedded v2 takes v1's place under load, in place; then bad versions have to go back by themselves.

    failed, truncated, mixed: of all requests; each answer is compared with its version's own. extra_replicas: most that
    ever were beyond two. in_place: seconds of each replica without requests, longest gap between two tokens.
    rollback_s: from a bad version's first token at a client until no replica has it, of the worst; none: it gave none.
    bad_share: of the answers begun meanwhile, the bad version's, of the worst, with the canary's share beside it.

    Example: moray bench rollout --faults slow,crash-at-load --json
    """
    from ops.bench.rollout import Options, measure, table

    names = tuple(name.strip() for name in (faults or "").split(",") if name.strip())
    options = Options(concurrency, share, min_samples, step_s, deadline_s, names)
    found = measure(options, reporter(as_json))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for made in table(found):
            Console().print(made)


def gates(
    rollouts: Annotated[int, typer.Option(min=1, help="Rollouts of each new version.")] = 200,
    replicas: Annotated[int, typer.Option(min=1, help="1: the new version is compared with the old one's last.")] = 4,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 10.0,
    min_samples: Annotated[
        int | None, typer.Option(min=20, help="Requests of each version that a step needs. Default: a rollout's own.")
    ] = None,
    as_json: AsJsonLine = False,
) -> None:
    """How often a rollout's gates roll back a version just like the old one, and find a worse one.

    Whole simulated rollouts with the default steps and gates; requests are skewed, of many sizes, and come in bursts.
    false_rollback: share of rollouts of an identical version that did not end promoted, by a gate or the deadline.
    detected: the least share of rollouts of a worse version that were rolled back, of all kinds of worse.
    rollback_p50_s: from the first canary token to the decision. bad_share_p50: share of that time's requests that the
    worse version answered. Exactly repeatable.

    Example: moray bench gates --rollouts 50 --json
    """
    from ops.bench.gates import measure, table
    from ops.rollout.spec import RolloutSpec

    spec = RolloutSpec(version="v2") if min_samples is None else RolloutSpec(version="v2", min_samples=min_samples)
    figures = measure(rollouts, replicas, rate, spec, reporter(as_json))
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        Console().print(table(figures))

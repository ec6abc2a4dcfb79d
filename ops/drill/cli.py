"""The command `moray drill`: arguments and output."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from ops.drill.choosing import DrillRefused, Fault
from ops.options import ApiKey, WhichPort

app = typer.Typer(no_args_is_help=True, help="Strike a running cluster, watch it mend, print a recovery report.")

Replica = Annotated[
    str | None, typer.Option("--replica", metavar="ID", help="Its id, or a beginning of it. Default: the busiest.")
]
EvenTheLast = Annotated[bool, typer.Option("--even-the-last", help="Even if no other replica is ready.")]
Url = Annotated[str | None, typer.Option("--url", help="A cluster elsewhere instead of the local session.")]
LoadOption = Annotated[
    int, typer.Option("--load", min=0, help="Streams of its own that run beside; 0: only the traffic that is there.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that the recovery may take.")]
Linger = Annotated[
    float, typer.Option("--linger", min=0.0, help="Seconds to wait for alarms to be resolved, once it has recovered.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", envvar="RAY_ADDRESS", help="Of Ray's head, to strike what is on another host."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it strikes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]

LOAD, TIMEOUT_S, LINGER_S = 8, 300.0, 60.0


@dataclass(frozen=True)
class Common:
    """What every fault's command is given."""

    port: int | None
    url: str | None
    api_key: str | None
    load: int
    timeout_s: float
    linger_s: float
    ray_address: str | None
    yes: bool
    as_json: bool


@app.callback()
def drill() -> None:
    """Strike a running cluster, watch it mend, print a recovery report.

    Streams of the drill's own run beside, greedy, and every token is compared with an undisturbed run before. The exit
    code is 1 if a stream broke, a token was wrong, or capacity did not come back in time. For operators; it asks
    before it strikes.
    """


@app.command(
    "kill-replica",
    epilog="Examples: `moray drill kill-replica` · `moray drill kill-replica --replica 3xk --load 32 --yes --json` · "
    "`moray drill kill-replica --url http://cluster:8000 --ray-address head:6379`",
)
def kill_replica(
    replica: Replica = None,
    even_the_last: EvenTheLast = False,
    port: WhichPort = None,
    url: Url = None,
    api_key: ApiKey = None,
    load: LoadOption = LOAD,
    timeout: Timeout = TIMEOUT_S,
    linger: Linger = LINGER_S,
    ray_address: RayAddress = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Kill (SIGKILL) a replica's engine: its streams resume on the others, and Ray Serve replaces it."""
    common = Common(port, url, api_key, load, timeout, linger, ray_address, yes, as_json)
    _run(Fault.KILL_REPLICA, common, replica, even_the_last)


@app.command(
    "freeze-replica",
    epilog="Examples: `moray drill freeze-replica` · `moray drill freeze-replica --for 20 --load 0 --yes`",
)
def freeze_replica(
    replica: Replica = None,
    even_the_last: EvenTheLast = False,
    for_: Annotated[
        float, typer.Option("--for", min=0.0, help="Seconds; 0: until the cluster has replaced it.", metavar="SECONDS")
    ] = 0.0,
    port: WhichPort = None,
    url: Url = None,
    api_key: ApiKey = None,
    load: LoadOption = LOAD,
    timeout: Timeout = TIMEOUT_S,
    linger: Linger = LINGER_S,
    ray_address: RayAddress = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Stop (SIGSTOP) a replica's engine: up, but not serving. It goes on (SIGCONT) when the drill ends, however."""
    common = Common(port, url, api_key, load, timeout, linger, ray_address, yes, as_json)
    _run(Fault.FREEZE_REPLICA, common, replica, even_the_last, for_)


@app.command(
    "slow-replica",
    epilog="Examples: `moray drill slow-replica` · `moray drill slow-replica --share 0.8 --for 60 --yes --json`",
)
def slow_replica(
    replica: Replica = None,
    even_the_last: EvenTheLast = False,
    for_: Annotated[float, typer.Option("--for", min=1.0, help="Seconds.", metavar="SECONDS")] = 20.0,
    share: Annotated[
        float, typer.Option("--share", min=0.05, max=0.95, help="Of the time that it is stopped, in 20 ms slices.")
    ] = 0.5,
    port: WhichPort = None,
    url: Url = None,
    api_key: ApiKey = None,
    load: LoadOption = LOAD,
    timeout: Timeout = TIMEOUT_S,
    linger: Linger = LINGER_S,
    ray_address: RayAddress = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Slow a replica's engine down: SIGSTOP and SIGCONT in turns. It goes on when the drill ends, however."""
    common = Common(port, url, api_key, load, timeout, linger, ray_address, yes, as_json)
    _run(Fault.SLOW_REPLICA, common, replica, even_the_last, for_, share)


@app.command("kill-router", epilog="Examples: `moray drill kill-router` · `moray drill kill-router --load 32 --yes`")
def kill_router(
    port: WhichPort = None,
    url: Url = None,
    api_key: ApiKey = None,
    load: LoadOption = LOAD,
    timeout: Timeout = TIMEOUT_S,
    linger: Linger = LINGER_S,
    ray_address: RayAddress = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Kill (SIGKILL) the router: running streams do not notice, Ray starts it anew, it is told all that is open."""
    common = Common(port, url, api_key, load, timeout, linger, ray_address, yes, as_json)
    _run(Fault.KILL_ROUTER, common)


def _run(
    fault: Fault,
    common: Common,
    replica: str | None = None,
    even_the_last: bool = False,
    for_s: float = 0.0,
    stopped_share: float = 0.0,
) -> None:
    from rich.console import Console

    from ops.drill.drill import Options, carry_out, prepare
    from ops.drill.rendering import render, verdict
    from ops.session import find_url

    options = Options(
        fault=fault,
        url=common.url.rstrip("/") if common.url is not None else find_url(common.port),
        api_key=common.api_key,
        replica=replica,
        even_the_last=even_the_last,
        for_s=for_s,
        stopped_share=stopped_share,
        load=common.load,
        timeout_s=common.timeout_s,
        linger_s=common.linger_s,
        ray_address=common.ray_address,
    )
    said = Console(stderr=True)

    def tell(line: str) -> None:
        said.print(line, style="dim", soft_wrap=True, markup=False, highlight=False)

    prepared = prepare(options)
    tell(prepared.intention)
    if not common.yes:
        _ask()
    report = asyncio.run(carry_out(prepared, tell))
    if common.as_json:
        sys.stdout.write(json.dumps(report) + "\n")
        said.print(verdict(report))
    else:
        console = Console()
        for part in render(report):
            console.print(part)
    if report["held"] is False:
        raise typer.Exit(1)


def _ask() -> None:
    """Raises DrillRefused unless a person says yes."""
    if not sys.stdin.isatty():
        raise DrillRefused("nobody is there to say yes to that: run it in a terminal, or with --yes")
    if not typer.confirm("Go on?", err=True):
        raise DrillRefused("nothing was struck")

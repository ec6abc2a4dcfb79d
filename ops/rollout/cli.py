"""The command `moray rollout`: arguments and output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import UserError
from ops.options import ApiKey, AsJson, WhichPort

if TYPE_CHECKING:
    from ops.rollout.client import Client

LOOK_EVERY_S = 1.0
AWAY_S = 60.0  # gateway or controller may be away for so long (Ray restarts them) before `watch` gives up

app = typer.Typer(no_args_is_help=True, help="Roll the model from one version to another, watched, and back by itself.")

Url = Annotated[str | None, typer.Option("--url", help="A cluster elsewhere instead of the local session.")]


Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end, as `moray rollout watch`.")]


@app.callback()
def rollout() -> None:
    """Roll the model from one version to another, watched, and back by itself.

    The new version's files are verified first. Then some replicas get it, one at a time, with a growing share of the
    traffic, and gates compare it with the old one over the same time: time to the first token, time per token, errors,
    the answers' length, golden prompts. What is worse goes back by itself; what cannot be told by the deadline, too.
    No request is dropped, and no answer mixes versions. Versions are made by `moray model add`.
    """


@app.command(
    epilog="Examples: `moray rollout start v2` · `moray rollout start v2 --watch` · "
    "`moray rollout start v2 --steps 0.05,0.25,0.5 --step-s 300 --mirror 0.1` · "
    "`moray rollout start v2 --strategy surge --gate ttft_ratio=1.1 --json`",
)
def start(
    version: Annotated[str, typer.Argument(help="The version to roll out; `moray model list` shows them.")],
    strategy: Annotated[
        str | None, typer.Option(help="in-place (no GPU more), surge (new replicas first), or auto.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="SHARES", help="Shares of the traffic, one after the other: 0.1,0.5.")
    ] = None,
    mirror: Annotated[float | None, typer.Option(help="Share of requests to copy to it, unseen by clients.")] = None,
    min_samples: Annotated[int | None, typer.Option(help="Requests of each version that a step needs.")] = None,
    step_s: Annotated[float | None, typer.Option(help="Seconds that a step is watched at least.")] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Seconds in which a step's gates have to be passed.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A gate's bound, e.g. --gate errors=0.01. Repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other part, e.g. --set finish_s=60. Repeatable."),
    ] = None,
    watch: Watch = False,
    port: WhichPort = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Start a rollout. What is not given here is as the cluster's settings have it (`rollout.…`)."""
    spec: dict[str, Any] = {"version": version}
    given = {
        "strategy": strategy,
        "steps": _shares(steps) if steps is not None else None,
        "mirror": mirror,
        "min_samples": min_samples,
        "step_s": step_s,
        "deadline_s": deadline_s,
        "gates": dict(_pair("--gate", pair) for pair in gate) if gate else None,
    }
    spec |= {name: value for name, value in given.items() if value is not None}
    spec |= dict(_pair("--set", pair) for pair in set_ or ())
    client = _client(port, url, api_key)
    _say_or_follow(client, client.start(spec), watch, as_json)


@app.command(epilog="Examples: `moray rollout status` · `moray rollout status --json | jq .current.phase`")
def status(port: WhichPort = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the rollout that runs: its step, its gates, its replicas; and which versions are served."""
    _say(_client(port, url, api_key).report(), as_json)


@app.command(epilog="Examples: `moray rollout watch` · `moray rollout watch --json | jq .why`")
def watch(port: WhichPort = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Follow the rollout that runs to its end. The exit code is 1 unless the new version is served everywhere then."""
    client = _client(port, url, api_key)
    current = client.report()["current"]
    if current is None:
        raise UserError(
            "no rollout runs: `moray rollout start VERSION` starts one, `moray rollout history` shows what was"
        )
    follow(client, current["id"], as_json)


@app.command(epilog="Examples: `moray rollout pause`, and later `moray rollout resume`")
def pause(port: WhichPort = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Begin nothing new: shares and replicas stay as they are. A version that its gates find bad still goes back."""
    _say(_client(port, url, api_key).command("pause"), as_json)


@app.command(epilog="Examples: `moray rollout resume`")
def resume(port: WhichPort = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Go on with a paused rollout."""
    _say(_client(port, url, api_key).command("resume"), as_json)


@app.command(epilog="Examples: `moray rollout promote`")
def promote(port: WhichPort = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Give the new version to all replicas now, without waiting for gates. Its files and golden prompts still count."""
    _say(_client(port, url, api_key).command("promote"), as_json)


@app.command(epilog="Examples: `moray rollout abort`")
def abort(port: WhichPort = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Stop the rollout and give the old version back to all replicas."""
    _say(_client(port, url, api_key).command("abort"), as_json)


@app.command(epilog="Examples: `moray rollout undo --watch` · `moray rollout undo --gated`")
def undo(
    gated: Annotated[
        bool,
        typer.Option("--gated", help="By steps and gates, as any rollout; else all replicas get it at once."),
    ] = False,
    watch: Watch = False,
    port: WhichPort = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Start a rollout back to the version before the last rollout that was done."""
    client = _client(port, url, api_key)
    _say_or_follow(client, client.undo(gated), watch, as_json)


@app.command(
    epilog="Examples: `moray rollout history` · `moray rollout history --audit` · `moray rollout history --json`"
)
def history(
    audit: Annotated[
        bool, typer.Option("--audit", help="The audit log instead: who did what, when, from where. For operators.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Entries of the audit log at most.")] = 100,
    port: WhichPort = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show the rollouts that ended and what came of them."""
    from rich.console import Console

    from ops.rollout import show

    client = _client(port, url, api_key)
    if audit:
        entries = client.audit(count)
        if as_json:
            _print_json(entries)
        else:
            Console().print(show.audit(entries))
        return
    report = client.report()
    if as_json:
        _print_json(report["history"])
    else:
        Console().print(show.history(report, time.time()))


# -- following one ----------------------------------------------------------------------------------------------------


def _say_or_follow(client: Client, report: dict[str, Any], watch: bool, as_json: bool) -> None:
    """Of a rollout that has begun."""
    if watch:
        follow(client, report["current"]["id"], as_json)
    else:
        _say(report, as_json)


def follow(client: Client, rollout_id: str, as_json: bool) -> None:
    """Shows it until it has ended. Exit code 1 if it did not end as done."""
    from rich.console import Console

    from ops.rollout import show

    console, last = Console(), dict[str, Any]()
    if as_json or not console.is_terminal:
        for last in _looks(client, rollout_id, lambda _: None):
            _print_line(last, as_json)
    else:
        from rich.console import Group
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:

            def draw(report: dict[str, Any]) -> None:
                live.update(Group(*show.render(report, time.time())), refresh=True)

            for look in _looks(client, rollout_id, draw):
                last = look
        console.print(show.line(last), highlight=False)
    if last.get("phase") != "done":
        raise typer.Exit(1)


def _looks(client: Client, rollout_id: str, each_time: Callable[[dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """The rollout as it is, whenever that has changed; the last one has ended. `each_time` gets each report."""
    from ops.gateway_calls import Away
    from ops.rollout import show

    told, since = "", time.monotonic()
    while True:
        try:
            report = client.report()
        except Away:
            if time.monotonic() - since > AWAY_S:
                raise
            time.sleep(LOOK_EVERY_S)
            continue
        since = time.monotonic()
        each_time(report)
        current = report["current"]
        ended = next((one for one in report["history"] if one["id"] == rollout_id), None)
        if current is None or current["id"] != rollout_id:
            if ended is None:
                raise UserError(f"rollout {rollout_id} is not known any more; `moray rollout history` shows what was")
            yield ended
            return
        if (said := show.line(current)) != told:
            told = said
            yield current
        time.sleep(LOOK_EVERY_S)


def _print_line(one: dict[str, Any], as_json: bool) -> None:
    from ops.rollout import show

    typer.echo(json.dumps(one) if as_json else show.line(one))


# -- arguments and output ---------------------------------------------------------------------------------------------


def _client(port: int | None, url: str | None, api_key: str | None) -> Client:
    from ops.rollout.client import Client
    from ops.session import find_url

    return Client(url.rstrip("/") if url else find_url(port), api_key)


def _shares(text: str) -> list[float]:
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--steps {text}: write shares with commas between them, as 0.1,0.5") from None


def _pair(option: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{option} {text}: write it as name=value")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


def _say(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    from rich.console import Console

    from ops.rollout import show

    console = Console()
    for part in show.render(report, time.time()):
        console.print(part, highlight=False)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")

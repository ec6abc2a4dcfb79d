"""The `moray` command: its arguments and its output. What the commands do lies in the modules beside this one.

Nothing heavy is imported before the command that needs it: `moray --help` has to answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ops import alarms_cli as alarming
from ops import key_cli as keys
from ops import metrics_reference as metrics
from ops import quantize as quantizing
from ops.calibrate import cli as calibrating
from ops.drill import cli as drilling
from ops.errors import UserError, say_error
from ops.k8s import cli as kubernetes
from ops.models import cli as modelling
from ops.options import ApiKey, AsJson, Config, Set, WhichPort, load_settings
from ops.planner import cli as planner
from ops.rollout import cli as rolling
from ops.simulate import cli as simulation
from ops.soak import cli as soaking
from ops.tune import cli as tuning

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="moray",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Moray serves mixture-of-experts models with vLLM engines on a Ray cluster.",
    epilog='First steps: `moray doctor`, `moray up`, then in another terminal `moray ask "What is 27 + 48?"`.',
)

ModelDir = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Hugging Face checkpoint. Default: the embedded tiny-r1.")
]
ReplicaCount = Annotated[int | None, typer.Option("--replicas", help="Replicas of the model.")]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="TIER|FILE", help="Settings for a tier on 8 A100-80GB (7b, 16b, 32b), or a file."
    ),
]
Shards = Annotated[int | None, typer.Option("--expert-parallel", help="Shards of each replica's experts.")]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.")]
Port = Annotated[int | None, typer.Option("--port", "-p", help="Port to listen on. Default: 8000.")]


@app.command(
    epilog="Examples: `moray up` · `moray up --model ~/models/Qwen3-30B-A3B --expert-parallel 4` · "
    "`moray up --profile 32b --model ~/models/Qwen3-30B-A3B` · `moray up --port 8001 --detach`"
)
def up(
    config: Config = None,
    profile: Profile = None,
    model: ModelDir = None,
    replicas: ReplicaCount = None,
    expert_parallel: Shards = None,
    host: Host = None,
    port: Port = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is ready; `moray down` ends it.")
    ] = False,
    set_: Set = None,
) -> None:
    """Start a session: Ray, a router, replicas and gateways. Ctrl-C stops it all."""
    flags = _flags(profile, model, replicas, expert_parallel, host, port)
    loaded = load_settings(config, flags, set_)
    from ops.up import check_before_start, detached, foreground

    check_before_start(loaded.settings, loaded.origins["ray.dashboard_port"] != "default")
    if detach:
        detached(loaded.settings, _again(config, flags, set_), _console())
    else:
        foreground(loaded.settings, config, _console())


@app.command(epilog="Examples: `moray status` · `moray status --json | jq '.replicas[].state'`")
def status(port: WhichPort = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the running session: replicas, their load, and which experts live on which shard."""
    from ops.session import find
    from ops.status import fetch, render

    record = find(port)
    if record.url is None:
        raise UserError(f"the session on port {record.port} (pid {record.pid}) is still starting")
    report = fetch(record.url, api_key)
    if as_json:
        _print_json(report)
        return
    console = _console()
    console.print(f"{record.url}  pid {record.pid}  dashboard {record.dashboard_url or 'off'}")
    for part in render(report):
        console.print(part)


@app.command(epilog="Examples: `moray experts` · `moray experts --json > load.json`")
def experts(port: WhichPort = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the load of every expert: a heat map of layers and experts, max over mean, the hottest ones.

    Counted in the engines' workers, over the last minute of work: how often the gates chose each expert.
    """
    from ops.experts import render
    from ops.session import find_url
    from ops.status import fetch

    report = fetch(find_url(port), api_key, "/moray/experts")
    if as_json:
        _print_json(report)
        return
    console = _console()
    for part in render(report):
        console.print(part)


@app.command(
    epilog='Examples: `moray ask "What is 27 + 48?"` · `moray ask --system "Be brief." --max-tokens 64 "…"` · '
    "`cat question.txt | moray ask -`"
)
def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    model: Annotated[str | None, typer.Option(help="Name of the model. Default: the first that is served.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of thinking and answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0: always the likeliest token.")] = 0.0,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    port: WhichPort = None,
    url: Annotated[str | None, typer.Option(help="A server elsewhere instead of the local session.")] = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask the running model; its thinking is shown dim, apart from the answer."""
    from ops.ask import ask as stream
    from ops.ask import collect, connect, served_model, show
    from ops.session import find_url

    text = sys.stdin.read() if question == "-" else question
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    with connect(url or find_url(port), api_key) as client:
        body: dict[str, Any] = {
            "model": model or served_model(client),
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if as_json:
            _print_json({"model": body["model"], **collect(stream(client, body))})
            return
        show(_console(), stream(client, body))


@app.command(
    epilog="Examples: `moray drain 3xk` · `moray drain 3xk --migrate` · `moray drain 3xk --undo`. "
    "`moray status` shows the replicas."
)
def drain(
    replica: Annotated[str, typer.Argument(help="The replica's id, or a beginning that no other has.")],
    migrate: Annotated[bool, typer.Option("--migrate", help="Move its streams to other replicas at once.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take requests again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if no other replica takes requests.")] = False,
    wait: Annotated[bool, typer.Option(help="Return when nothing runs there any more.")] = True,
    port: WhichPort = None,
    api_key: ApiKey = None,
) -> None:
    """Take a replica out of service: it gets no more requests, and those that it has end there, or move."""
    from ops.drain import drain as ask_for
    from ops.drain import follow
    from ops.session import find_url

    url, console = find_url(port), _console()
    which = ask_for(url, replica, api_key, migrate=migrate, undo=undo, force=force)
    if undo:
        console.print(f"{which} takes requests again", highlight=False)
        return
    console.print(f"{which} gets no more requests", highlight=False)
    if wait:
        follow(url, which, api_key, lambda left: console.print(f"{left} requests run there", highlight=False))


@app.command(epilog="Examples: `moray down` · `moray down --port 8001`")
def down(port: WhichPort = None) -> None:
    """Stop the running session and everything it started. Does nothing if none runs."""
    from ops.session import NoSessionError, find, stop

    console = _console()
    try:
        record = find(port)
    except NoSessionError as nothing:
        console.print(str(nothing).partition(";")[0], highlight=False)
        return
    stop(record, lambda said: console.print(f"session on port {record.port}: {said}", highlight=False))
    console.print("stopped")


@app.command(
    epilog="Examples: `moray config` · `moray config --profile 32b` · `MORAY_GATEWAY__PORT=8001 moray config --json`"
)
def config(
    config: Config = None,
    profile: Profile = None,
    model: ModelDir = None,
    replicas: ReplicaCount = None,
    expert_parallel: Shards = None,
    host: Host = None,
    port: Port = None,
    set_: Set = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each setting does.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the effective settings, where each comes from, and what a session with them would miss here."""
    loaded = load_settings(config, _flags(profile, model, replicas, expert_parallel, host, port), set_, to_run=False)
    values = loaded.settings.model_dump(mode="json")
    if as_json:
        _print_json({"settings": values, "origins": dict(loaded.origins), "lacking": list(loaded.lacking)})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "from", *(["what it does"] if explain else []))
    for key, origin in loaded.origins.items():
        group, name = key.split(".", 1)
        if name.startswith("extra."):
            value = values[group]["extra"][name.removeprefix("extra.")]
        else:
            value = values[group][name]
        row = [Text(key), Text(json.dumps(value)), Text(origin, style="dim" if origin == "default" else "")]
        table.add_row(*row, *([Text(_description(group, name))] if explain else []))
    console = _console()
    console.print(table)
    for sentence in loaded.lacking:
        console.print(Text.assemble(("not here: ", "bold yellow"), sentence), soft_wrap=True)


@app.command(
    epilog="Examples: `moray doctor` · `moray doctor --model ~/models/Qwen3-30B-A3B --expert-parallel 4 --json`"
)
def doctor(
    config: Config = None,
    profile: Profile = None,
    model: ModelDir = None,
    expert_parallel: Shards = None,
    port: Port = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check what this machine can run, what is missing, and the way out."""
    loaded = load_settings(config, _flags(profile, model, None, expert_parallel, None, port), set_)
    from ops.doctor import Level, examine

    findings = list(examine(loaded.settings))
    if as_json:
        _print_json(
            [{"what": f.what, "level": f.level.value, "found": f.found, "way_out": f.way_out} for f in findings]
        )
    else:
        from rich.table import Table
        from rich.text import Text

        styles = {Level.OK: "green", Level.WARNING: "yellow", Level.MISSING: "bold red"}
        table = Table("", "what")
        for column in ("found", "way out"):
            table.add_column(column, overflow="fold")
        for f in findings:
            table.add_row(Text(f.level.value, style=styles[f.level]), f.what, Text(f.found), Text(f.way_out))
        _console().print(table)
    if any(f.level is Level.MISSING for f in findings):
        raise typer.Exit(1)


app.add_typer(drilling.app, name="drill")
app.add_typer(kubernetes.app, name="k8s")
app.add_typer(keys.app, name="key")
app.add_typer(modelling.app, name="model")
app.add_typer(planner.app, name="plan")
app.add_typer(rolling.app, name="rollout")
app.add_typer(tuning.app, name="tune")
app.command(epilog=alarming.EXAMPLES)(alarming.alarms)
app.command(epilog=calibrating.EXAMPLES)(calibrating.calibrate)
app.command("metrics", epilog=metrics.EXAMPLES)(metrics.reference)
app.command(epilog=quantizing.EXAMPLES)(quantizing.quantize)
app.command(epilog=simulation.EXAMPLES)(simulation.simulate)
app.command(epilog=soaking.EXAMPLES)(soaking.soak)


# `ops/bench/` brings its own sub-commands; its libraries are imported when they are asked for.
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help="Measure a session: load, latency, throughput.",
)
def bench(ctx: typer.Context) -> None:
    from ops.bench.cli import app as bench_app

    bench_app(args=ctx.args, prog_name="moray bench")


def main() -> None:
    """The console script: what a person can put right is told in one message, without a traceback."""
    try:
        app()
    except UserError as error:
        say_error(str(error))
        _leave(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave(code: int) -> NoReturn:
    """Exit; without Ray's exit hooks, which wait some ten seconds for a Ray that has broken down or is gone."""
    if "ray" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _flags(
    profile: str | None,
    model: Path | None,
    replicas: int | None,
    expert_parallel: int | None,
    host: str | None,
    port: int | None,
) -> dict[str, Any]:
    """The options that stand for settings, by their keys; those not given are left out."""
    given = {
        "model.profile": profile,
        "model.path": model,
        "replicas.count": replicas,
        "experts.expert_parallel": expert_parallel,
        "gateway.host": host,
        "gateway.port": port,
    }
    return {key: value for key, value in given.items() if value is not None}


def _again(config: Path | None, flags: dict[str, Any], pairs: list[str] | None) -> list[str]:
    """The arguments that make the same `up` again, in the foreground."""
    chosen = [f"{key}={value}" for key, value in flags.items()] + (pairs or [])
    return ["up", *(["--config", str(config)] if config else []), *(arg for pair in chosen for arg in ("--set", pair))]


def _description(group: str, name: str) -> str:
    from cluster.config import Settings

    groups: Any = Settings.model_fields[group].annotation
    return str(groups.model_fields[name.split(".")[0]].description)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()

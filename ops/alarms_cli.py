"""`moray alarms`: its arguments and its output."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ops.options import ApiKey, AsJson, Config, WhichPort

EXAMPLES = (
    "Examples: `moray alarms` · `moray alarms --watch` · `moray alarms --json | jq '.alarms[].name'` · "
    "`moray alarms --replay night.jsonl --config stricter.yaml` · `moray alarms --replay minutes.jsonl --stretch 300`"
)
WATCH_S = 2.0


def alarms(
    port: WhichPort = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every two seconds, until Ctrl-C.")] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="No session: what a recording's alarms would have been (alarms.record_path).", metavar="FILE"
        ),
    ] = None,
    stretch: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="With --replay: multiply its time by this, so that minutes of a rehearsal count as the hours and days "
            "that drifts and slow burns take.",
            metavar="FACTOR",
        ),
    ] = 1.0,
    config: Config = None,
) -> None:
    """Show the alarms that are raised, those of late, and which replicas were restarted for them, or why not.

    With --replay, the alarms that the settings of --config would have raised on what was recorded.
    """
    if replay is None and stretch != 1.0:
        raise typer.BadParameter("--stretch is for a recording: name one by --replay")
    if replay is not None:
        for change in _replayed(replay, config, stretch):
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change["at_s"]))
            what = "raised  " if change["raised"] else "resolved"
            line = (
                json.dumps(change)
                if as_json
                else f"{at} {what} {change['alarm']['name']}: {change['alarm']['summary']}"
            )
            typer.echo(line)
        return
    from rich.console import Console, Group
    from rich.live import Live

    from ops.alarms import render
    from ops.errors import UserError
    from ops.session import find
    from ops.status import fetch

    record = find(port)
    if (url := record.url) is None:
        raise UserError("the session is still starting; `moray status` tells when it is ready")
    report = fetch(url, api_key, "/moray/alarms")
    if as_json and watch:
        raise typer.BadParameter("--watch draws on a screen: leave it out, or --json")
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    elif watch:
        with Live(Group(*render(report, time.time())), auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(WATCH_S)
                live.update(Group(*render(fetch(url, api_key, "/moray/alarms"), time.time())), refresh=True)
    else:
        console = Console()
        for part in render(report, time.time()):
            console.print(part)


def _replayed(recording: Path, config: Path | None, stretch: float) -> Iterator[dict[str, Any]]:
    from cluster.config import load
    from ops.anomaly.recording import NotARecording, read, stretched
    from ops.anomaly.recording import replay as replay_recording
    from ops.controller.news import Change, recent
    from ops.controller.spec import controller_spec
    from ops.errors import UserError

    limits = controller_spec(load(config, os.environ, {}, to_run=False).settings).limits
    try:
        with recording.open("rb") as lines:
            for event in replay_recording(stretched(read(lines), stretch), limits):
                yield recent(Change(event.at_s, event.raised, event.alarm))
    except OSError as error:
        raise UserError(f"--replay {recording}: {error.strerror}") from error
    except NotARecording as error:
        raise UserError(f"--replay {recording}: {error}") from error

"""`moray alarms`: its arguments and its output."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer

from ops.options import ApiKey, AsJson, WhichPort

EXAMPLES = "Examples: `moray alarms` · `moray alarms --watch` · `moray alarms --json | jq '.alarms[].name'`"
WATCH_S = 2.0


def alarms(
    port: WhichPort = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Show the alarms that are raised, those of late, and which replicas were restarted for them, or why not."""
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

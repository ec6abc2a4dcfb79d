"""Options that several commands share, and the settings that come of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import say_error

if TYPE_CHECKING:
    from cluster.config import Loaded

# Usage and settings are the caller's to mend before anything ran; 1 is left to what failed while running.
USAGE_ERROR = 2

WhichPort = Annotated[int | None, typer.Option("--port", "-p", help="Which session, if several run.")]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="MORAY_API_KEY", help="API key, where the session asks for one.", metavar="KEY"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
AsJsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
AsJsonLine = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="MORAY_CONFIG", help="YAML file of settings.", metavar="FILE"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. --set engine.max_num_seqs=128. Repeatable."),
]


def load_settings(
    config: Path | None, flags: Mapping[str, Any], pairs: Sequence[str] | None, to_run: bool = True
) -> Loaded:
    """`flags` by the keys of settings, `pairs` as of `Set`; a mistake in them ends the command with the whole list."""
    from cluster.config import ConfigError, load

    overrides = dict(flags)
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            say_error(f"--set {pair}: write it as key=value, e.g. --set gateway.port=8001")
            raise typer.Exit(USAGE_ERROR)
        overrides[key.strip()] = value.strip()
    try:
        return load(config, os.environ, overrides, to_run=to_run)
    except ConfigError as error:
        say_error(str(error))
        raise typer.Exit(USAGE_ERROR) from None

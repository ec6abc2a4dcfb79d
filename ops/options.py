"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

WhichPort = Annotated[int | None, typer.Option("--port", "-p", help="Which session, if several run.")]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="MORAY_API_KEY", help="API key, where the session asks for one.", metavar="KEY"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="MORAY_CONFIG", help="YAML file of settings.", metavar="FILE"),
]

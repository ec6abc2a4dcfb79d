"""The command `moray key`: arguments and output. What it does to a key file lies in `ops.keys`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ops.options import AsJson

app = typer.Typer(no_args_is_help=True, help="API keys of tenants.")


@app.callback()
def key() -> None:
    """API keys of tenants. A session takes them from the file that the setting gateway.keys_file names."""


@app.command(
    epilog="Examples: `moray key new` · `moray key new --tenant acme --file keys.yaml`, then "
    "`moray up --set gateway.keys_file=keys.yaml` and `MORAY_API_KEY=moray-… moray status`",
)
def new(
    tenant: Annotated[str | None, typer.Option(help="Whose key; a tenant that the file has not is added.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Key file to add its hash to; made (mode 0600) if it is not there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown this once; the key file holds only its hash."""
    if (tenant is None) != (file is None):
        raise typer.BadParameter("--tenant and --file go together: whose key it is, and which file to add it to")
    from rich.console import Console

    from cluster.tenants import hash_of
    from ops.keys import add_to_file, new_key

    made = new_key()
    if tenant and file:
        add_to_file(file, tenant, made)
    if as_json:
        sys.stdout.write(json.dumps({"key": made, "hash": hash_of(made)}, indent=2) + "\n")
        return
    console = Console()
    console.print(made, soft_wrap=True, highlight=False, markup=False)
    if file:
        said = f"{tenant}'s new key is in {file}; gateways that serve with it know it within a second."
    else:
        said = f"For the key file, under the tenant's `keys`:\n      - {hash_of(made)}"
    console.print(f"\n{said}\nThe key is shown this once.", soft_wrap=True, highlight=False, markup=False)

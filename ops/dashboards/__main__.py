"""Writes generated/*.json beside this file. `python -m ops.dashboards`"""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from ops.dashboards.pages import all_pages

GENERATED = Path(__file__).with_name("generated")


def rendered() -> dict[str, str]:
    """File name -> JSON."""
    return {
        f"{name}.json": json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, board in all_pages()
    }


def write() -> None:
    """Also removes what no page makes any more."""
    GENERATED.mkdir(exist_ok=True)
    files = rendered()
    for stale in {path.name for path in GENERATED.glob("*.json")} - files.keys():
        (GENERATED / stale).unlink()
    for name, text in files.items():
        (GENERATED / name).write_text(text)


if __name__ == "__main__":
    write()

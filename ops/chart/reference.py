"""VALUES.md of the chart: every value with its type, default and comment, from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ops.chart.typed_elsewhere import REFUSED

_HEAD = """\
# Values of the chart

Made of `values.yaml` by `python -m ops.chart`: change that, not this page. What is not listed is refused by name
(`values.schema.json`). Below `settings` are Moray's own, as in a settings file; what is left out has Moray's default.
Helm's `--set` takes 0.5 for a text: give numbers with a point in a file or with `--set-json`.
"""


def page(schema: str) -> str:
    """Of the schema's text (`ops.chart.schema`)."""
    top = json.loads(schema)["properties"]
    alone = {name: value for name, value in top.items() if not value.get("properties")}
    parts = [_HEAD, _table(row for name, value in alone.items() for row in _rows(name, value))]
    for name, value in top.items():
        if name not in alone:
            parts += [f"## {name}", value["description"], _table(_inner(name, value))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: Iterable[str]) -> str:
    return "\n".join(["| value | type | default | what |", "| --- | --- | --- | --- |", *rows])


def _rows(key: str, value: dict[str, Any]) -> Iterator[str]:
    what = value.get("description", "").replace("|", "\\|")
    yield f"| `{key}` | {_type(value)} | {_default(value)} | {what} |"
    yield from _inner(key, value)


def _inner(key: str, value: dict[str, Any]) -> Iterator[str]:
    below = f"{key}[]" if "items" in value else key
    for name, inner in value.get("items", value).get("properties", {}).items():
        if inner.get("$comment") == REFUSED:
            continue
        yield from _rows(f"{below}.{name}", inner)


def _type(value: dict[str, Any]) -> str:
    if "enum" in value:
        return " \\| ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    if "allOf" in value or "$ref" in value:
        [ref] = value.get("allOf", [value])
        return str(ref["$ref"]).rsplit("/", 1)[-1]
    types = value.get("type", "any")
    names = [types] if isinstance(types, str) else types
    of = {"array": f"list of {_type(value['items'])}" if "items" in value else "list", "object": "map"}
    return " or ".join(of.get(name, name) for name in names)


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return ""
    default = value["default"]
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return f"{len(default)} of them, see `values.yaml`"
    return f"`{json.dumps(default, ensure_ascii=False)}`"

"""VALUES.md of the chart: every value with its type, default and comment, from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_HEAD = """\
# Values of the chart

Made of `values.yaml` by `python -m ops.chart`: change that, not this page. What is not listed is refused by name
(`values.schema.json`). Below `settings` are Moray's own, as in a settings file; what is left out there has Moray's default.
"""


def page(schema: str) -> str:
    """Of the schema's text (`ops.chart.schema`)."""
    tree = json.loads(schema)
    parts = [_HEAD]
    for name, value in tree["properties"].items():
        rows = list(_rows(name, value))
        table = ["| value | type | default | what |", "| --- | --- | --- | --- |", *rows]
        parts.append(f"## {name}\n\n{value['description']}\n\n" + "\n".join(table) if value.get("properties") else "")
    alone = [row for name, value in tree["properties"].items() if not value.get("properties") for row in _rows(name, value)]
    parts.insert(1, "\n".join(["| value | type | default | what |", "| --- | --- | --- | --- |", *alone]))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _rows(key: str, value: dict[str, Any]) -> Iterator[str]:
    items = value.get("items", {})
    properties = value.get("properties") or items.get("properties")
    if not value.get("properties"):
        what = value.get("description", "").replace("|", "\\|")
        yield f"| `{key}` | {_type(value)} | {_default(value)} | {what} |"
    for name, inner in (properties or {}).items():
        yield from _rows(f"{key}[].{name}" if items else f"{key}.{name}", inner)


def _type(value: dict[str, Any]) -> str:
    if "enum" in value:
        return " \\| ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    if "allOf" in value or "$ref" in value:
        ref = value["$ref"] if "$ref" in value else value["allOf"][0]["$ref"]
        return str(ref).rsplit("/", 1)[-1]
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}"
    types = value.get("type", "any")
    return " or ".join(types) if isinstance(types, list) else str(types)


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return ""
    default = value["default"]
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return f"{len(default)}, see `values.yaml`"
    return f"`{json.dumps(default, ensure_ascii=False)}`"

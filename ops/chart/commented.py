"""A commented values.yaml as a tree: each value's default, its comment and what `# @schema` notes say of it.

    # Pods of this group.
    # @schema {minimum: 0}
    replicas: 2 # each with whole expert groups

A value's comment is the lines right above its key, as far in as the key, and what stands behind the value. A note is a
YAML map behind `@schema`: keywords of JSON Schema, or those of `ops.chart.schema`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

NOTE = "@schema"
_BEHIND = re.compile(r"\s+#\s?(?P<said>.*)$")


class BadValues(ValueError):
    """values.yaml, or a note in it, cannot be used; one sentence with the line."""


@dataclass(frozen=True)
class Value:
    key: str  # dotted, from the top; "[]" for the items of a list
    default: Any
    description: str
    notes: Mapping[str, Any]
    children: tuple[Value, ...]  # of a map its values; of a list of maps those of its first item
    line: int  # from 1

    @property
    def name(self) -> str:
        return self.key.rsplit(".", 1)[-1]


def read(text: str) -> tuple[Value, ...]:
    """The top-level values. BadValues: no map, a key twice, a note that is no map."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise BadValues(f"values.yaml is no YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise BadValues("values.yaml is no map of values")
    return _children(root, "", text.splitlines())


def _children(node: yaml.MappingNode, prefix: str, lines: list[str]) -> tuple[Value, ...]:
    values = tuple(_value(key, value, prefix, lines) for key, value in node.value)
    names = [value.name for value in values]
    if twice := next((value for value in values if names.count(value.name) > 1), None):
        raise BadValues(f"values.yaml:{twice.line}: {twice.key} is there twice")
    return values


def _value(key: yaml.Node, node: yaml.Node, prefix: str, lines: list[str]) -> Value:
    dotted = f"{prefix}{key.value}"
    children: tuple[Value, ...] = ()
    if isinstance(node, yaml.MappingNode):
        children = _children(node, f"{dotted}.", lines)
    elif isinstance(node, yaml.SequenceNode) and node.value and isinstance(node.value[0], yaml.MappingNode):
        children = _children(node.value[0], f"{dotted}[].", lines)
    description, notes = _comment(key, node, lines)
    default = yaml.SafeLoader("").construct_object(node, deep=True)
    return Value(dotted, default, description, notes, children, key.start_mark.line + 1)


def _comment(key: yaml.Node, node: yaml.Node, lines: list[str]) -> tuple[str, dict[str, Any]]:
    said: list[str] = []
    notes: dict[str, Any] = {}
    for number in _lines_above(key, lines):
        text = lines[number].strip().removeprefix("#").strip()
        if text.startswith(NOTE):
            notes |= _note(text.removeprefix(NOTE), number + 1)
        else:
            said.append(text)
    if isinstance(node, yaml.CollectionNode):
        in_one_line = bool(node.flow_style)
    else:
        in_one_line = isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">")
    end = node.end_mark if in_one_line else key.end_mark
    if behind := _BEHIND.match(lines[end.line][end.column :].removeprefix(":")):
        said.append(behind["said"].strip())
    return " ".join(filter(None, said)), notes


def _lines_above(key: yaml.Node, lines: list[str]) -> list[int]:
    """Numbers of the comment's lines. A list's first key has them above the item's dash, or further up."""
    indent = " " * key.start_mark.column + "#"
    dash = re.compile(r"\s*- $")
    if dash.match(lines[key.start_mark.line][: key.start_mark.column]):
        indent = " " * (key.start_mark.column - 2) + "#"
    number = key.start_mark.line
    while number > 0 and lines[number - 1].startswith(indent):
        number -= 1
    return list(range(number, key.start_mark.line))


def _note(text: str, line: int) -> dict[str, Any]:
    try:
        note = yaml.safe_load(text)
    except yaml.YAMLError:
        note = None
    if not isinstance(note, dict):
        raise BadValues(f"values.yaml:{line}: write `# {NOTE} {{keyword: value}}`, not `{text.strip()}`")
    return note

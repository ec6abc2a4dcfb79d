"""values.schema.json of the chart, made of its commented values.yaml; `python -m ops.chart` writes it.

A value's type is its default's, closed at every level; a note `# @schema {…}` says more, in JSON Schema's keywords and

    kubernetes: V1Toleration   a type of Kubernetes' API
    keysOf: ray.worker         beside `properties`: whatever that map of values.yaml may hold, too
    from: settings             Moray's settings; the keys in `without: [model.path]` are left to the templates to refuse
    from: rollout              how a version is rolled

What says nothing of itself (null, {}, []) needs a note, and every value a comment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ops.chart import typed_elsewhere
from ops.chart.commented import BadValues, Value
from ops.chart.typed_elsewhere import KubernetesTypes, Schema

_OURS = {"kubernetes", "from", "without"}
_SAYS_THE_TYPE = {"type", "enum", "const", "$ref", "anyOf", "oneOf"}
_SAYS_WHAT_IS_IN_IT = {"items", "additionalProperties"}
_TYPES = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"))
# Helm gives the values of this name to every chart of a release.
_GLOBAL = {"type": "object", "description": "Values that a chart above this one gives to all of its charts. Not used."}


def schema(values: Iterable[Value]) -> str:
    """The file's text. BadValues: a value without a comment or of no known type."""
    types = KubernetesTypes()
    tree = _object(tuple(values), types)
    tree = _with_keys(tree, tree)
    tree["properties"]["global"] = _GLOBAL
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "Made of values.yaml by python -m ops.chart: change that, not this file.",
    }
    made = head | tree | ({"definitions": types.definitions} if types.definitions else {})
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def value_schema(value: Value, types: KubernetesTypes) -> Schema:
    """Of one value, with its description and, unless it is a map of values, its default."""
    if not value.description:
        raise BadValues(f"values.yaml:{value.line}: {value.key} has no comment that says what it is")
    made = _without_description(value, types)
    if made.keys() == {"$ref"}:  # draft 7 hears nothing that stands beside it
        made = {"allOf": [made]}
    default = {} if "properties" in made else {"default": value.default}
    return {"description": value.description} | default | made


def _without_description(value: Value, types: KubernetesTypes) -> Schema:
    notes = value.notes
    try:
        if "from" in notes:
            return _elsewhere(notes)
        said: Schema = _resolved(
            {word: each for word, each in notes.items() if word not in _OURS - {"kubernetes"}}, types
        )
    except ValueError as error:
        raise BadValues(f"values.yaml:{value.line}: {value.key}: {error}") from None
    if value.children and not (_SAYS_THE_TYPE | _SAYS_WHAT_IS_IN_IT) & said.keys():
        of_children = _object(value.children, types)
        return ({"type": "array", "items": of_children} if isinstance(value.default, list) else of_children) | said
    made = said if _SAYS_THE_TYPE & said.keys() else {"type": _type(value)} | said
    if (made.get("type") == "object" and "additionalProperties" not in made) or (
        made.get("type") == "array" and "items" not in made
    ):
        raise BadValues(f"values.yaml:{value.line}: {value.key}: say what it may hold, as `# @schema {{items: …}}`")
    return made


def _elsewhere(notes: Mapping[str, Any]) -> Schema:
    if notes["from"] == "settings":
        return typed_elsewhere.settings(notes.get("without", ()))
    if notes["from"] == "rollout":
        return typed_elsewhere.rollout()
    raise ValueError(f"from: {notes['from']} is neither settings nor rollout")


def _resolved(said: Any, types: KubernetesTypes) -> Any:
    """`said` with `kubernetes: NAME` as a reference, wherever it stands."""
    if isinstance(said, list):
        return [_resolved(each, types) for each in said]
    if not isinstance(said, dict):
        return said
    rest = {word: _resolved(each, types) for word, each in said.items() if word != "kubernetes"}
    return rest | (types.ref(said["kubernetes"]) if "kubernetes" in said else {})


def _with_keys(said: Any, top: Schema) -> Any:
    """`said` with the properties that a `keysOf` in it names; their defaults are of the place where they stand."""
    if isinstance(said, list):
        return [_with_keys(each, top) for each in said]
    if not isinstance(said, dict):
        return said
    made = {word: _with_keys(each, top) for word, each in said.items() if word != "keysOf"}
    if isinstance(dotted := said.get("keysOf"), str):
        of = top
        for name in dotted.split("."):
            of = of.get("properties", {}).get(name, {})
        if not of:
            raise BadValues(f"values.yaml: a note's keysOf names {dotted}, which is no value")
        keys = {
            name: {word: each for word, each in one.items() if word != "default"}
            for name, one in of["properties"].items()
        }
        made["properties"] = keys | made["properties"]
    return made


def _object(children: tuple[Value, ...], types: KubernetesTypes) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {child.name: value_schema(child, types) for child in children},
    }


def _type(value: Value) -> str:
    for cls, name in _TYPES:
        if isinstance(value.default, cls):
            return name
    raise BadValues(
        f"values.yaml:{value.line}: {value.key} is null: say its types, as `# @schema {{type: [string, 'null']}}`"
    )

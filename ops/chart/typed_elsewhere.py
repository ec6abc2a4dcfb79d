"""JSON Schemas (draft 7) of values whose types stand elsewhere: Moray's settings, a rollout's fields, Kubernetes'.

Helm 3 reads draft 7, so what pydantic writes in draft 2020-12 is put into it. "X or null" becomes one schema of two
types: of an `anyOf` that fails, Helm says only that it does.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from cluster.rollout_settings import Rollout
from cluster.settings import Settings
from ops.rollout.spec import Gates, RolloutSpec

Schema = dict[str, Any]

REFUSED = "Refused by the chart's templates: another value decides it."
_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_CONTAINER = re.compile(r"(?P<kind>list|dict)[\[(](?:\w+, ?)?(?P<item>.+)[\])]$", re.IGNORECASE)
# The API's quantities are texts there; YAML's plain numbers are understood as well.
_QUANTITIES = {"limits", "requests"}


def settings(without: Collection[str]) -> Schema:
    """The settings tree. ValueError: one of `without` is no setting.

    The dotted keys `without` may be anything here: the chart itself refuses them, and says what to set instead.
    """
    tree = Settings.model_json_schema()
    groups = {name: _draft_7(ref, tree["$defs"]) for name, ref in tree["properties"].items()}
    for key in without:
        group, _, name = key.partition(".")
        if name not in groups.get(group, {}).get("properties", {}):
            raise ValueError(f"{key} is no setting of Moray")
        groups[group]["properties"][name] = {"$comment": REFUSED}
    return _closed(groups)


def rollout() -> Schema:
    """What a user_config may say of a rollout: RolloutSpec less its version, with the settings' units and reasons."""
    tree = Rollout.model_json_schema()
    fields = {name: _draft_7(each, tree.get("$defs", {})) for name, each in tree["properties"].items()}

    def of(struct: type[msgspec.Struct]) -> Schema:
        return {f.name: _no_default(fields[f.name]) for f in msgspec.structs.fields(struct) if f.name in fields}

    gates = _closed(of(Gates)) | {"description": "By how much the new version may be worse than the old one."}
    return _closed(of(RolloutSpec) | {"gates": gates})


class KubernetesTypes:
    """Definitions of the types of Kubernetes' API, by its Python client; those that were asked for, and theirs."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def ref(self, name: str) -> Schema:
        """To `name`, as V1Toleration. ValueError: there is no such type."""
        if name not in self.definitions:
            cls = getattr(importlib.import_module("kubernetes.client"), name, None)
            if cls is None or not hasattr(cls, "openapi_types"):
                raise ValueError(f"the Kubernetes API has no type {name}")
            self.definitions[name] = {}  # a type may hold itself
            names: Mapping[str, str] = cls.attribute_map
            self.definitions[name] |= _closed(
                {names[attribute]: self._typed(attribute, text) for attribute, text in cls.openapi_types.items()}
            )
        return {"$ref": f"#/definitions/{name}"}

    def _typed(self, attribute: str, text: str) -> Schema:
        if container := _CONTAINER.match(text):
            item = self._typed("", container["item"])
            if attribute in _QUANTITIES:
                item = {"type": ["string", "number"]}
            if container["kind"].lower() == "list":
                return {"type": "array", "items": item}
            return {"type": "object", "additionalProperties": item}
        if text in _PLAIN:
            return {"type": _PLAIN[text]}
        if text in ("object", "datetime"):  # of whatever kind: a port by number or name
            return {} if text == "object" else {"type": "string"}
        return self.ref(text)


def _draft_7(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    if ref := schema.get("$ref"):
        schema = definitions[ref.rsplit("/", 1)[-1]]
    if "anyOf" in schema:
        return _draft_7(_null_too(schema), definitions)
    kept = {word: value for word, value in schema.items() if word not in ("title", "format")}
    if "properties" in schema:
        kept["properties"] = {name: _draft_7(each, definitions) for name, each in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        kept["items"] = _draft_7(schema["items"], definitions)
    return kept


def _null_too(schema: Schema) -> Schema:
    """anyOf of one schema and null as one schema. ValueError: it is another anyOf."""
    some = [each for each in schema["anyOf"] if each != {"type": "null"}]
    if len(some) != 1 or len(schema["anyOf"]) != 2 or "type" not in some[0]:
        raise ValueError(f"a setting of these types is not foreseen: {schema['anyOf']}")
    merged: Schema = some[0] | {word: value for word, value in schema.items() if word != "anyOf"}
    merged["type"] = [some[0]["type"], "null"]
    if "enum" in merged:
        merged["enum"] = [*merged["enum"], None]
    return merged


def _no_default(schema: Schema) -> Schema:
    """What is left out is the setting's, whatever that is in this release."""
    return {word: value for word, value in schema.items() if word != "default"}


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}

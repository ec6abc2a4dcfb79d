"""The custom resources of KubeRay and prometheus-operator, made from their JSON schemas for the tests' API server.

The schemas (shared/schemas/crds.json) are closed for strict validation; in a CustomResourceDefinition the server itself
drops what a schema does not name. Left out is what its version does not take: CEL rules, and lists keyed by a property
that an item may lack.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx

# What the chart makes and `moray k8s` reads. Each costs the server about a second, in each version.
KINDS = (
    "ray.io/v1/RayCluster",
    "ray.io/v1/RayService",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
)
_AS_THEY_ARE = ("type", "format", "enum", "pattern", "nullable", "required", "minimum", "maximum", "minItems",
                "maxItems", "minLength", "maxLength", "anyOf", "oneOf", "allOf", "not",
                "x-kubernetes-preserve-unknown-fields", "x-kubernetes-map-type")  # fmt: skip
_LIST_TYPE, _LIST_KEYS = "x-kubernetes-list-type", "x-kubernetes-list-map-keys"


def create(http: httpx.Client, schemas: Mapping[str, Mapping[str, Any]], limit_s: float = 60) -> None:
    """Creates KINDS of these schemas, whose keys are `group/version/kind`, and returns when the server serves them.

    Raises TimeoutError if it does not in time.
    """
    for kind in KINDS:
        definition = _definition(*kind.split("/"), schemas[kind])
        answer = http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
        assert answer.is_success, answer.text
    deadline = time.monotonic() + limit_s
    while missing := [kind for kind in KINDS if not is_served(http, *kind.rpartition("/")[::2])]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not served within {limit_s} s: {missing}")
        time.sleep(0.05)


def structural(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as a CustomResourceDefinition of apiextensions.k8s.io/v1 takes it."""
    made = {name: schema[name] for name in _AS_THEY_ARE if name in schema}
    if isinstance(schema.get("type"), list):  # integer or string
        del made["type"]
        made["x-kubernetes-int-or-string"] = True
    if schema.get("default", "") != "":
        made["default"] = schema["default"]
    if "properties" in schema:
        made["properties"] = {name: structural(inner) for name, inner in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), Mapping):
        made["additionalProperties"] = structural(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = structural(schema["items"])
        if schema.get(_LIST_TYPE) == "map":
            always = {*made["items"].get("required", ()), *_with_default(made["items"])}
            if always.issuperset(schema[_LIST_KEYS]):
                made |= {_LIST_TYPE: "map", _LIST_KEYS: schema[_LIST_KEYS]}
        elif _LIST_TYPE in schema:
            made[_LIST_TYPE] = schema[_LIST_TYPE]
    return made


def _definition(group: str, version: str, kind: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    whole = structural(schema)
    whole["properties"]["metadata"] = {"type": "object"}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": whole}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [served | {"subresources": {"status": {}}}],
        },
    }


def _with_default(item: Mapping[str, Any]) -> set[str]:
    return {name for name, schema in item.get("properties", {}).items() if "default" in schema}


def is_served(http: httpx.Client, version: str, kind: str) -> bool:
    answer = http.get(f"/apis/{version}")  # 404 until the first kind of this version is there
    return answer.is_success and any(resource["kind"] == kind for resource in answer.json()["resources"])

"""What an API server stores, as plain JSON."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import httpx

# Made by the server itself, or not stored at all.
_NOT_STORED = {"componentstatuses", "events", "apiservices", "flowschemas", "prioritylevelconfigurations"}
# What two objects with the same content differ in.
_OWN_TO_EACH = ("uid", "resourceVersion", "managedFields", "creationTimestamp", "generation", "selfLink")

Objects = dict[str, dict[str, Any]]  # by "Kind/name"


def stored(http: httpx.Client, namespace: str) -> Objects:
    """Every object of this namespace and of the whole cluster."""
    found = {}
    for version in _versions(http):
        for resource in _get(http, version)["resources"]:
            plural = resource["name"]
            if "/" in plural or plural in _NOT_STORED or "list" not in resource["verbs"]:
                continue
            scope = f"{version}/namespaces/{namespace}" if resource["namespaced"] else version
            for item in _get(http, f"{scope}/{plural}")["items"]:
                found[f"{resource['kind']}/{item['metadata']['name']}"] = item
    return found


def content(item: dict[str, Any]) -> dict[str, Any]:
    """A copy of the object without what is its own whatever it holds."""
    copied = copy.deepcopy(item)
    for name in _OWN_TO_EACH:
        copied["metadata"].pop(name, None)
    return dict(_in_order(copied))


def _in_order(part: Any) -> Any:
    """What pods name in lists, sorted: server-side apply puts one that comes back behind those that stayed."""
    if isinstance(part, dict):
        return {
            key: sorted(_in_order(value), key=str) if key in ("env", "volumes", "volumeMounts") else _in_order(value)
            for key, value in part.items()
        }
    return [_in_order(each) for each in part] if isinstance(part, list) else part


def _versions(http: httpx.Client) -> Iterator[str]:
    """Paths of the API: the core's and of each group the version that it prefers."""
    yield "/api/v1"
    for group in _get(http, "/apis")["groups"]:
        yield f"/apis/{group['preferredVersion']['groupVersion']}"


def _get(http: httpx.Client, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = http.get(path).raise_for_status().json()
    return answer

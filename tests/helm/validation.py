"""Objects against the schemas of their kinds: Kubernetes' own, strictly, KubeRay's and the Prometheus operator's.

The latter are in `shared/schemas/crds.json` beside the checkout (or in SHARED_FOLDER); tests skip them without it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from helms import ROOT, Object

CRDS = Path(os.environ.get("SHARED_FOLDER") or ROOT.parent / "shared") / "schemas" / "crds.json"
# Kinds of the chart whose schemas nobody here has; the tests say themselves what is in them.
WITHOUT_SCHEMA = {"gateway.networking.k8s.io/v1/HTTPRoute", "monitoring.coreos.com/v1alpha1/ScrapeConfig"}
OLDEST = (1, 25)  # that kubernetes-validate knows


def kind(of: Object) -> str:
    return f"{of['apiVersion']}/{of['kind']}"


def is_custom(of: Object) -> bool:
    return any(part in of["apiVersion"] for part in ("ray.io/", "coreos.com/", "gateway.networking.k8s.io/"))


def core_problem(of: Object, version: str) -> str:
    """What Kubernetes `version` would refuse about an object of its own kinds, unknown fields included; "": nothing."""
    if of["apiVersion"] == "policy/v1beta1":  # gone in 1.25; what it holds is the same
        of = of | {"apiVersion": "policy/v1"}
    known = max(OLDEST, tuple(int(part) for part in version.split(".")[:2]))
    return _problem(json.dumps(of), ".".join(map(str, known)))


@functools.cache  # most objects are the same in most cases
def _problem(text: str, version: str) -> str:
    of = json.loads(text)
    try:
        kubernetes_validate.validate(of, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{kind(of)} {of['metadata']['name']}: {'.'.join(map(str, error.path))}: {error.message}"
    return ""


def custom_problem(of: Object) -> str:
    """What the CRD of an object would refuse; "": nothing."""
    schema = _schemas()[kind(of)]
    found = jsonschema.Draft7Validator(schema).iter_errors(_with_defaults(of, schema))
    return "; ".join(f"{kind(of)}: {'.'.join(map(str, error.path))}: {error.message}" for error in found)


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Where, and each pod template as the Pod that it makes, those of a RayService included."""
    for each in objects:
        where = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield where, each
        elif each["kind"] in ("Deployment", "Job"):
            yield where, _pod(where, each["spec"]["template"])
        elif each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            yield "head", _pod("head", cluster["headGroupSpec"]["template"])
            for group in cluster["workerGroupSpecs"]:
                yield f"worker {group['groupName']}", _pod("worker", group["template"])


def _pod(where: str, template: Object) -> Object:
    metadata = {"name": where.lower().replace(" ", "-")} | template.get("metadata", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@functools.cache
def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads(CRDS.read_text())
    return schemas


def _with_defaults(value: Any, schema: Any) -> Any:
    """As the API server completes it before it looks for what is required."""
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        rest = schema.get("additionalProperties")
        made = {name: each["default"] for name, each in inner.items() if "default" in each} | value
        of = {name: inner.get(name, rest if isinstance(rest, dict) else {}) for name in made}
        return {name: _with_defaults(each, of[name]) for name, each in made.items()}
    if isinstance(value, list):
        return [_with_defaults(each, schema.get("items", {})) for each in value]
    return value

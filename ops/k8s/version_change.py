"""`moray k8s rollout`: changes the version in a RayService's serveConfigV2, as field manager `moray`, never by force.

serveConfigV2 is one string, so one manager has all of it. What Helm installed, Helm changes: the conflict names the
command. KubeRay hands a changed user_config to Ray Serve in place, and the controller rolls (`ops.rollout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ops.errors import UserError
from ops.k8s.calls import FIELD_MANAGER, Api
from ops.k8s.pods import services_path
from ops.k8s.refusals import Conflict, other_managers

DEPLOYMENT = "Gateway"


def version_of(service: Mapping[str, Any]) -> str:
    """That its user_config asks for; "": none. Raises UserError."""
    config = (_gateway(_config(service)).get("user_config")) or {}
    return str(config.get("version") or "")


def with_version(service: Mapping[str, Any], version: str) -> str:
    """Its serveConfigV2 with another version in the Gateway's user_config, nothing else changed. Raises UserError."""
    config = _config(service)
    gateway = _gateway(config)
    gateway["user_config"] = dict(gateway.get("user_config") or {}) | {"version": version}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def change(api: Api, service: Mapping[str, Any], version: str) -> None:
    """Raises UserError; where another manager has the string, with the way to change it there."""
    metadata = service["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    wanted = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "namespace": namespace, "uid": metadata["uid"]},
        "spec": {"serveConfigV2": with_version(service, version)},
    }
    try:
        api.apply(services_path(namespace, name), wanted)
    except Conflict as conflict:
        owners = other_managers(conflict)
        if not owners:
            raise
        raise UserError(
            f"spec.serveConfigV2 of RayService {name} is managed by {', '.join(owners)}; {FIELD_MANAGER} does not take "
            f"it by force. {_way_out(service, version)}"
        ) from None


def _way_out(service: Mapping[str, Any], version: str) -> str:
    metadata = service["metadata"]
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    release = annotations.get("meta.helm.sh/release-name")
    if release is None and labels.get("app.kubernetes.io/managed-by") == "Helm":
        release = labels.get("app.kubernetes.io/instance")
    if release is None:
        return f"Change the version there, or start the rollout past it: moray rollout start {version} --url URL"
    namespace = annotations.get("meta.helm.sh/release-namespace") or metadata["namespace"]
    return (
        f"Helm has it, so change it there: helm upgrade {release} helm/moray --namespace {namespace} --reuse-values "
        f"--set model.version={version}"
    )


def _config(service: Mapping[str, Any]) -> dict[str, Any]:
    name = service["metadata"]["name"]
    try:
        config = yaml.safe_load(str((service.get("spec") or {}).get("serveConfigV2") or ""))
    except yaml.YAMLError as error:
        raise UserError(f"RayService {name}: its serveConfigV2 is no YAML ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"RayService {name} has no serveConfigV2: it is none of Moray's")
    return config


def _gateway(config: Mapping[str, Any]) -> dict[str, Any]:
    found = [
        deployment
        for application in config.get("applications") or ()
        for deployment in application.get("deployments") or ()
        if deployment.get("name") == DEPLOYMENT
    ]
    if len(found) != 1:
        raise UserError(
            f"serveConfigV2 has {len(found)} deployments named {DEPLOYMENT}, where one is needed: is this Moray's "
            "RayService? Name another by --rayservice"
        )
    gateway: dict[str, Any] = found[0]
    return gateway

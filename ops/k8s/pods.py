"""A RayService, its Ray clusters and their pods, as KubeRay keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.errors import UserError
from ops.k8s.calls import PATIENCE_S, Api
from ops.k8s.refusals import Missing

GPU = "nvidia.com/gpu"
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """One Ray node."""

    name: str
    uid: str
    cluster: str  # RayCluster
    role: str  # head or worker
    group: str
    node: str  # "": not scheduled as yet
    ips: tuple[str, ...]
    phase: str
    ready: bool
    restarts: int
    gpus: int
    tolerations: tuple[Json, ...]


def services_path(namespace: str, name: str = "") -> str:
    return f"/apis/ray.io/v1/namespaces/{namespace}/rayservices" + (f"/{name}" if name else "")


def find(api: Api, namespace: str, name: str | None) -> dict[str, Any]:
    """The RayService of that name, or the only one of the namespace. Raises UserError."""
    if name is not None:
        try:
            return api.get(services_path(namespace, name))
        except Missing:
            pass
    try:
        known = [one["metadata"]["name"] for one in api.get(services_path(namespace)).get("items") or ()]
    except Missing:
        raise UserError("this cluster knows no RayService: KubeRay is not installed on it (see README.md)") from None
    if name is None and len(known) == 1:
        return api.get(services_path(namespace, known[0]))
    there = f"there are: {', '.join(known)}" if known else "there is none"
    if name is None and known:
        raise UserError(f"namespace {namespace} has several RayServices: name one by --rayservice ({', '.join(known)})")
    what = f"no RayService {name}" if name else "no RayService"
    raise UserError(f"{what} in namespace {namespace} ({there}): name another --namespace, or --rayservice")


def clusters(service: Json) -> list[str]:
    """Names of its Ray clusters: the one that serves, and the one that is to follow it during an upgrade."""
    status = service.get("status") or {}
    parts = (status.get(key) or {} for key in ("activeServiceStatus", "pendingServiceStatus"))
    return [name for part in parts if (name := str(part.get("rayClusterName") or ""))]


def pods_of(api: Api, namespace: str, service: Json, patience_s: float = PATIENCE_S) -> list[Pod]:
    """Head and workers of all of its Ray clusters, those that have ended left out."""
    if not (names := clusters(service)):
        return []
    selector = {"labelSelector": f"ray.io/cluster in ({','.join(names)})"}
    listed = api.get(f"/api/v1/namespaces/{namespace}/pods", selector, patience_s)
    pods = [pod(one) for one in listed.get("items") or ()]
    return [one for one in pods if one.phase not in ("Succeeded", "Failed")]


def pod(one: Json) -> Pod:
    metadata, spec, status = one["metadata"], one.get("spec") or {}, one.get("status") or {}
    labels = metadata.get("labels") or {}
    ips = [str(entry["ip"]) for entry in status.get("podIPs") or () if entry.get("ip")]
    if status.get("podIP") and status["podIP"] not in ips:
        ips.append(str(status["podIP"]))
    containers: Sequence[Json] = spec.get("containers") or ()
    states = status.get("containerStatuses") or ()
    return Pod(
        name=str(metadata["name"]),
        uid=str(metadata.get("uid") or ""),
        cluster=str(labels.get("ray.io/cluster") or ""),
        role=str(labels.get("ray.io/node-type") or "?"),
        group=str(labels.get("ray.io/group") or ""),
        node=str(spec.get("nodeName") or ""),
        ips=tuple(ips),
        phase="Terminating" if metadata.get("deletionTimestamp") else str(status.get("phase") or "?"),
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()),
        restarts=sum(int(state.get("restartCount") or 0) for state in states),
        gpus=sum(int(((c.get("resources") or {}).get("limits") or {}).get(GPU) or 0) for c in containers),
        tolerations=tuple(spec.get("tolerations") or ()),
    )


def host_of(replica: Json) -> str:
    """Of one of /moray/status' replicas: the IP that it listens on, its pod's."""
    return str(replica.get("address") or "").rpartition(":")[0].strip("[]")

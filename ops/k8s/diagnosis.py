"""`moray k8s diagnose`: one .tar.gz with what somebody needs who looks into it from elsewhere.

Each part is asked for by itself; one that cannot be had is named in MISSING.txt, with the permission that was lacking.
Secrets are never asked for; what is named like one, or looks like one, is left out (`ops.k8s.redaction`).
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ops.errors import UserError
from ops.gateway_calls import call
from ops.k8s import pods, redaction
from ops.k8s.calls import Api
from ops.k8s.gateway import reached
from ops.k8s.refusals import Missing
from ops.status import fetch

GATEWAY_PARTS = {
    "gateway/status.json": "/moray/status?brief=true",
    "gateway/rollouts.json": "/moray/rollouts",
    "gateway/alarms.json": "/moray/alarms",
}
PATIENCE_S = 8.0  # of each part
Content = str | Mapping[str, Any] | list[Any]
Part = tuple[str, Callable[[], Content]]


class Bundle:
    """Parts by their names in the archive, and why others are missing."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, ask: Callable[[], Content]) -> None:
        try:
            content = ask()
        except UserError as error:
            self.missing[name] = redaction.text(str(error))
            return
        said = redaction.text(content) if isinstance(content, str) else json.dumps(redaction.thing(content), indent=2)
        self.parts[name] = said + ("" if said.endswith("\n") else "\n")

    def write(self, file: Path) -> None:
        """Readable by its owner alone. Raises UserError."""
        lines = [f"{name}: {why}" for name, why in self.missing.items()] or ["nothing"]
        files = {"MISSING.txt": "What could not be had, and why:\n" + "\n".join(lines) + "\n"} | self.parts
        root = file.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
        try:
            file.touch(mode=0o600, exist_ok=True)
            file.chmod(0o600)  # one that was there keeps its mode
            with tarfile.open(file, "w:gz") as archive:
                for name, said in files.items():
                    data = said.encode()
                    info = tarfile.TarInfo(f"{root}/{name}")
                    info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
                    archive.addfile(info, io.BytesIO(data))
        except OSError as error:
            raise UserError(f"--output {file}: {error.strerror or error}") from None


def collect(
    api: Api,
    namespace: str,
    rayservice: str | None,
    url: str | None,
    api_key: str | None,
    log_lines: int,
    report: Callable[[str], None],
) -> Bundle:
    """Raises UserError only if not even the RayService can be found."""
    service = pods.find(api, namespace, rayservice)
    name = service["metadata"]["name"]
    bundle = Bundle()
    for part, ask in _cluster_parts(api, namespace, service):
        report(part)
        bundle.add(part, ask)
    ours: list[dict[str, Any]] = []
    bundle.add("pods.json", lambda: _into(ours, _pods(api, namespace, service)))
    for part, ask in _logs(api, namespace, ours, log_lines):
        report(part)
        bundle.add(part, ask)
    report("gateway")
    try:
        with reached(api, namespace, name, url) as gateway:
            for part, path in GATEWAY_PARTS.items():
                bundle.add(part, partial(fetch, gateway, api_key, path))
            targets: list[Any] = []
            bundle.add(
                "gateway/targets.json",
                lambda: _into(targets, call("GET", gateway, "/moray/targets", api_key, list, timeout_s=PATIENCE_S)),
            )
    except UserError as error:
        bundle.missing |= dict.fromkeys([*GATEWAY_PARTS, "gateway/targets.json"], redaction.text(str(error)))
        targets = []
    for part, ask in _metrics(api, namespace, ours, targets):
        report(part)
        bundle.add(part, ask)
    return bundle


def _cluster_parts(api: Api, namespace: str, service: Mapping[str, Any]) -> Iterator[Part]:
    name = service["metadata"]["name"]
    named = f"/apis/ray.io/v1/namespaces/{namespace}"
    core = f"/api/v1/namespaces/{namespace}"
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}-node-watcher"
    yield "version.json", partial(_asked, api, "/version")
    yield "rayservice.json", lambda: service
    for cluster in pods.clusters(service):
        yield f"raycluster-{cluster}.json", partial(_asked, api, f"{named}/rayclusters/{cluster}")
    yield "events.json", partial(_asked, api, f"{core}/events")
    yield "services.json", partial(_asked, api, f"{core}/services")
    yield "endpoints.json", partial(_asked, api, f"{core}/endpoints")
    yield "disruption-budgets.json", partial(_budgets, api, namespace)
    yield "nodes.json", partial(_asked, api, "/api/v1/nodes")
    yield "node-events.json", partial(_asked, api, "/api/v1/events", {"fieldSelector": "involvedObject.kind=Node"})
    yield "node-watcher-lease.json", partial(_asked, api, lease)


def _asked(api: Api, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
    return api.get(path, query, PATIENCE_S)


def _budgets(api: Api, namespace: str) -> dict[str, Any]:
    try:
        return _asked(api, f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets")
    except Missing:  # before Kubernetes 1.21
        return _asked(api, f"/apis/policy/v1beta1/namespaces/{namespace}/poddisruptionbudgets")


def _pods(api: Api, namespace: str, service: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of its Ray clusters, also those that have ended; and the node watcher's."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    names = ",".join(pods.clusters(service))
    found = list(_asked(api, path, {"labelSelector": f"ray.io/cluster in ({names})"})["items"]) if names else []
    labels = service["metadata"].get("labels") or {}
    if instance := labels.get("app.kubernetes.io/instance"):
        watchers = f"app.kubernetes.io/instance={instance},app.kubernetes.io/component=node-watcher"
        found += _asked(api, path, {"labelSelector": watchers})["items"]
    return found


def _logs(api: Api, namespace: str, ours: list[dict[str, Any]], lines: int) -> Iterator[Part]:
    for pod in ours:
        name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
        containers = [*(pod["spec"].get("initContainers") or ()), *(pod["spec"].get("containers") or ())]
        states = (pod.get("status") or {}).get("containerStatuses") or ()
        restarted = {state["name"] for state in states if state.get("restartCount")}
        for container in (str(one["name"]) for one in containers):
            query: dict[str, str | int | bool] = {"container": container, "tailLines": lines, "timestamps": True}
            yield f"logs/{name}/{container}.log", partial(api.text, path, query, PATIENCE_S)
            if container in restarted:
                before = query | {"previous": True}
                yield f"logs/{name}/{container}.previous.log", partial(api.text, path, before, PATIENCE_S)


def _metrics(api: Api, namespace: str, ours: list[dict[str, Any]], targets: list[Any]) -> Iterator[Part]:
    """What Prometheus would scrape of our pods, through the API server."""
    names = {ip: pod["metadata"]["name"] for pod in ours if (ip := (pod.get("status") or {}).get("podIP"))}
    for group in targets:
        for address in group.get("targets") or ():
            host, _, port = str(address).rpartition(":")
            if (pod := names.get(host.strip("[]"))) is not None:
                path = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics"
                yield f"metrics/{pod}-{port}.txt", partial(api.text, path, None, PATIENCE_S)


def _into(kept: list[Any], found: list[Any]) -> list[Any]:
    """Also for the parts that follow from it."""
    kept.extend(found)
    return found

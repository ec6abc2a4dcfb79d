"""A Ray cluster of a RayService as KubeRay and the kubelets would keep it, written to a real API server by hand."""

from __future__ import annotations

import secrets
import socket
from typing import Any

import httpx
from cluster_objects import SERVE_CONFIG
from kube_api_server import ApiServer

from ops.k8s.calls import Api
from ops.k8s.connect import api_client

MERGE = {"Content-Type": "application/merge-patch+json"}
APPLY = {"Content-Type": "application/apply-patch+yaml"}
CONTAINER = {"name": "ray", "image": "registry.example/moray:1"}


def api_of(server: ApiServer) -> Api:
    """An administrator's, as `moray k8s` makes it."""
    return Api(api_client(server.client().configuration))


class ServedCluster:
    """Worker pods at 10.1.0.1, 10.1.0.2 …, each on a node of its own, whose names nobody else uses."""

    def __init__(self, http: httpx.Client, namespace: str, name: str, workers: int) -> None:
        self._http, self.namespace, self.name = http, namespace, name
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.service = f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/{name}"
        mark = secrets.token_hex(3)
        self.nodes = [f"gpu-{mark}-{number}" for number in range(1, workers + 1)]
        for number, node in enumerate(self.nodes, 1):
            self._made("/api/v1/nodes", {"metadata": {"name": node}})
            # No controller manager: the taint that a new node gets is ours to take away.
            self._patched(f"/api/v1/nodes/{node}", {"spec": {"taints": None}})
            ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            self._patched(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [ready]}})
            self.add_pod(f"worker-{number}", node, f"10.1.0.{number}")

    def add_service(self) -> None:
        """Where no chart has made it."""
        containers = {"spec": {"containers": [CONTAINER]}}
        spec = {
            "serveConfigV2": SERVE_CONFIG,
            "rayClusterConfig": {"headGroupSpec": {"rayStartParams": {}, "template": containers}},
        }
        made = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": self.name}, "spec": spec}
        self._made(self.service.rpartition("/")[0], made)

    def serve(self) -> None:
        """As KubeRay says once the application runs."""
        status = {"activeServiceStatus": {"rayClusterName": f"{self.name}-abc"}}
        self._patched(f"{self.service}/status", {"status": status})
        told = self._http.get(self.service).json()
        assert told["status"]["activeServiceStatus"]["rayClusterName"] == f"{self.name}-abc", told

    def add_pod(self, name: str, node: str, ip: str) -> None:
        labels = {"ray.io/cluster": f"{self.name}-abc", "ray.io/node-type": "worker", "ray.io/group": "gpus"}
        spec = {"nodeName": node, "containers": [CONTAINER]}
        self._made(self.pods, {"metadata": {"name": name, "labels": labels}, "spec": spec})
        ready = {"type": "Ready", "status": "True"}
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]}
        self._patched(f"{self.pods}/{name}/status", {"status": status})

    def cordon(self, node: str, wanted: bool = True) -> None:
        self._patched(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": wanted or None}})

    def node(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get(f"/api/v1/nodes/{name}").json()
        return found

    def remove(self) -> None:
        """What belongs to no namespace."""
        for node in self.nodes:
            self._http.delete(f"/api/v1/nodes/{node}")

    def _made(self, path: str, body: dict[str, Any]) -> None:
        answer = self._http.post(path, json=body)
        assert answer.is_success, answer.text

    def _patched(self, path: str, body: dict[str, Any]) -> None:
        answer = self._http.patch(path, json=body, headers=MERGE)
        assert answer.is_success, answer.text


def own_address() -> str | None:
    """An address of this machine that is not its loopback, without sending anything; None: it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address

"""What a cluster that serves Moray consists of, as the API server tells it: nodes, pods, a RayService."""

from __future__ import annotations

from typing import Any

from fake_api import NAMESPACE, PODS, SERVICES, FakeApi


def node(name: str, *, ready: str = "True", taints: list[Any] | None = None, cordoned: bool = False) -> dict[str, Any]:
    spec: dict[str, Any] = {"taints": taints} if taints else {}
    if cordoned:
        spec["unschedulable"] = True
    ready_condition = {"type": "Ready", "status": ready, "lastTransitionTime": "2026-11-28T10:00:00Z"}
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": [ready_condition]}}


def pod(name: str, on: str, ip: str, *, role: str = "worker", cluster: str = "moray-abc") -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"ray.io/cluster": cluster, "ray.io/node-type": role, "ray.io/group": "gpus"},
        },
        "spec": {
            "nodeName": on,
            "containers": [{"name": "ray", "resources": {"limits": {"nvidia.com/gpu": "4"}}}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
        "status": {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


SERVE_CONFIG = """\
http_options: {host: 0.0.0.0, port: 8000}
applications:
  - name: moray
    import_path: cluster.app:build
    args: {engine: {max_num_seqs: 64}}
    deployments:
      - name: Gateway
        user_config: {version: v1, rollout: {step_s: 60}}
"""


def rayservice(name: str = "moray", cluster: str = "moray-abc") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"serveConfigV2": SERVE_CONFIG},
        "status": {
            "activeServiceStatus": {
                "rayClusterName": cluster,
                "applicationStatuses": {"moray": {"status": "RUNNING"}},
            },
            "conditions": [{"type": "Ready", "status": "True"}],
            "numServeEndpoints": 2,
        },
    }


def cluster_of(api: FakeApi, *replicas_on: str) -> None:
    """A RayService with a head and one worker pod a node, at 10.0.0.1, 10.0.0.2 …"""
    api.put(f"{SERVICES}/moray", rayservice())
    api.put("/api/v1/nodes/head", node("head"))
    api.put(f"{PODS}/moray-head", pod("moray-head", "head", "10.0.0.100", role="head"))
    for number, name in enumerate(replicas_on, 1):
        api.put(f"/api/v1/nodes/{name}", node(name))
        api.put(f"{PODS}/worker-{number}", pod(f"worker-{number}", name, f"10.0.0.{number}"))

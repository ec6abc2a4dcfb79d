"""`moray k8s status`: the RayService, its pods by node, the replicas on them, the rollout that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ops.errors import UserError
from ops.k8s import nodes as judging
from ops.k8s import pods
from ops.k8s.calls import Api
from ops.k8s.gateway import reached
from ops.k8s.refusals import ApiRefused
from ops.status import fetch

Json = Mapping[str, Any]
NO_NODE = "(not scheduled)"


def collect(api: Api, namespace: str, rayservice: str | None, url: str | None, api_key: str | None) -> dict[str, Any]:
    """As `--json` prints it. What could not be had is a sentence under `lacking`. Raises UserError."""
    service = pods.find(api, namespace, rayservice)
    name = service["metadata"]["name"]
    ours = pods.pods_of(api, namespace, service)
    lacking: list[str] = []
    nodes: dict[str, Json] = {}
    events: list[Json] = []
    try:
        nodes = {one["metadata"]["name"]: one for one in api.get("/api/v1/nodes").get("items") or ()}
        about_nodes = {"fieldSelector": "involvedObject.kind=Node"}
        events = list(api.get("/api/v1/events", about_nodes).get("items") or ())
    except ApiRefused as refused:
        lacking.append(f"whether nodes must be left: {refused}")
    report: Json = {}
    rollouts: Json | None = None
    try:
        with reached(api, namespace, name, url) as gateway:
            report = fetch(gateway, api_key, "/moray/status?brief=true")
            rollouts = fetch(gateway, api_key, "/moray/rollouts")
    except UserError as error:
        lacking.append(f"{'the rollout' if report else 'replicas and rollout'}: {error}")
    reasons = judging.leaving(nodes.values(), events, ours).nodes if nodes else {}
    return {
        "rayservice": _service(service),
        "nodes": [
            {
                "name": node or NO_NODE,
                "leave": reasons[node].why if node in reasons else None,
                "pods": [_pod(pod, report) for pod in sorted(ours, key=lambda pod: pod.name) if pod.node == node],
            }
            for node in sorted({pod.node for pod in ours})
        ],
        "elsewhere": [_replica(one) for one in _elsewhere(ours, report)],
        "rollout": None if rollouts is None else rollouts.get("current"),
        "versions": None if rollouts is None else rollouts.get("versions"),
        "lacking": lacking,
    }


def render(found: Json) -> Iterator[RenderableType]:
    service = found["rayservice"]
    ready = service["ready"]
    yield Text.assemble(
        (f"RayService {service['name']}", "bold"), "  ",
        ("ready", "green") if ready else (f"not ready: {service['why'] or 'no reason given'}", "bold yellow"),
        f"  {service['endpoints']} serving endpoints",
    )  # fmt: skip
    for cluster in service["clusters"]:
        applications = ", ".join(f"{name} {state}" for name, state in cluster["applications"].items())
        yield Text(f"{cluster['role']} cluster {cluster['name']}: {applications or 'no application as yet'}")
    table = Table(title="nodes and pods", title_justify="left")
    for column in ("node", "pod", "role", "GPUs", "state", "replica", "version", "running", "KV used"):
        table.add_column(column, justify="right" if column in ("GPUs", "running", "KV used") else "left")
    for node in found["nodes"]:
        label = Text(node["name"], style="bold yellow" if node["leave"] else "")
        for pod in node["pods"] or [None]:
            for row in _rows(pod):
                table.add_row(label, *row)
                label = Text("")
    yield table
    for node in found["nodes"]:
        if node["leave"]:
            yield Text(f"node {node['name']} {node['leave']}", style="yellow")
    if found["elsewhere"]:
        names = ", ".join(f"{one['id']} at {one['address']}" for one in found["elsewhere"])
        yield Text(f"replicas at addresses of none of these pods: {names}", style="yellow")
    if (current := found["rollout"]) is not None:
        from ops.rollout import show

        yield Text.assemble(("rollout  ", "bold"), show.line(current))
    elif found["versions"] is not None:
        yield Text("no rollout runs", style="dim")
    for sentence in found["lacking"]:
        yield Text.assemble(("not known: ", "bold yellow"), sentence)


def _service(service: Json) -> dict[str, Any]:
    status = service.get("status") or {}
    conditions = {str(one.get("type")): one for one in status.get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    return {
        "name": service["metadata"]["name"],
        "ready": ready.get("status") == "True",
        "why": str(ready.get("message") or ready.get("reason") or "KubeRay has not told as yet"),
        "endpoints": int(status.get("numServeEndpoints") or 0),
        "conditions": {kind: str(one.get("status")) for kind, one in conditions.items()},
        "clusters": [
            {
                "role": role,
                "name": part["rayClusterName"],
                "applications": {
                    name: str(one.get("status") or "?") for name, one in (part.get("applicationStatuses") or {}).items()
                },
                "traffic_percent": part.get("trafficRoutedPercent"),
            }
            for role, key in (("active", "activeServiceStatus"), ("pending", "pendingServiceStatus"))
            if (part := status.get(key) or {}).get("rayClusterName")
        ],
    }


def _pod(pod: pods.Pod, report: Json) -> dict[str, Any]:
    told = {key: value for key, value in asdict(pod).items() if key not in ("node", "tolerations", "uid")}
    return told | {"replicas": [_replica(one) for one in report.get("replicas") or () if pods.host_of(one) in pod.ips]}


def _replica(one: Json) -> dict[str, Any]:
    keys = ("id", "state", "version", "address", "running", "waiting", "granted", "kv_used_fraction")
    return {key: one.get(key) for key in keys}


def _elsewhere(ours: list[pods.Pod], report: Json) -> list[Json]:
    addresses = {ip for pod in ours for ip in pod.ips}
    return [one for one in report.get("replicas") or () if pods.host_of(one) not in addresses]


def _rows(pod: Json | None) -> Iterator[tuple[Text, ...]]:
    if pod is None:
        yield tuple(Text("") for _ in range(8))
        return
    state = f"{pod['phase']}{'' if pod['ready'] else ', not ready'}"
    if pod["restarts"]:
        state += f", {pod['restarts']} restarts"
    role = pod["role"] if pod["role"] == "head" else f"{pod['role']} {pod['group']}".strip()
    left = (Text(pod["name"]), Text(role), Text(str(pod["gpus"])), Text(state, style="" if pod["ready"] else "yellow"))
    for one in pod["replicas"] or [{}]:
        used = one.get("kv_used_fraction")
        shown = Text(
            f"{one['id']} {one['state']}" if one else "", style="" if one.get("state") == "ready" else "yellow"
        )
        running = Text(str(one.get("running", "")))
        yield (*left, shown, Text(str(one.get("version") or "")), running, Text("" if used is None else f"{used:.0%}"))
        left = (Text(""), Text(""), Text(""), Text(""))

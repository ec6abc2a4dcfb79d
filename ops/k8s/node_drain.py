"""`moray k8s drain-node`: cordons a node, moves the streams away, waits, evicts our pods; and the way back.

The cordon is a server-side apply of `spec.unschedulable` as field manager `moray`; the way back applies the same
without it, which takes it off unless somebody else cordoned the node as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ops.drain import drain
from ops.errors import UserError
from ops.gateway_calls import Refused
from ops.k8s import pods
from ops.k8s.calls import FIELD_MANAGER, Api
from ops.k8s.moving import GONE_AFTER_S
from ops.k8s.pods import Pod
from ops.k8s.refusals import Conflict, DisruptionBudget, Forbidden, Missing, other_managers
from ops.status import StatusError, fetch

LOOK_EVERY_S = 1.0
EVICT_EVERY_S = 5.0
WATCHER_S = 10.0  # that a node watcher has to see the cordon
WATCHER_FRESH_S = 60.0  # a lease renewed so lately has a watcher behind it
Report = Callable[[str], None]


class NotInTime(UserError): ...


def cordon(api: Api, name: str) -> None:
    """Raises UserError: no such node, or another manager holds it open."""
    path = f"/api/v1/nodes/{name}"
    node = _node(api, name)
    try:
        api.apply(path, _intent(node, {"unschedulable": True}))
    except Conflict as conflict:
        raise _held_by_others(name, conflict) from None


def uncordon(api: Api, name: str) -> list[str]:
    """The managers because of whom it stays cordoned all the same. Raises UserError."""
    after = api.apply(f"/api/v1/nodes/{name}", _intent(_node(api, name), None))
    if not (after.get("spec") or {}).get("unschedulable"):
        return []
    managers = after["metadata"].get("managedFields") or ()
    return [
        str(one.get("manager") or "?")
        for one in managers
        if "f:unschedulable" in ((one.get("fieldsV1") or {}).get("f:spec") or {})
    ] or ["somebody"]


def pods_on(api: Api, namespace: str, service: Mapping[str, Any], node: str) -> list[Pod]:
    return [pod for pod in pods.pods_of(api, namespace, service) if pod.node == node]


def replicas_on(url: str, api_key: str | None, there: Iterable[Pod]) -> list[dict[str, Any]]:
    """Of /moray/status, those that listen on one of these pods' addresses."""
    addresses = {ip for pod in there for ip in pod.ips}
    return [one for one in _replicas(url, api_key) if pods.host_of(one) in addresses]


def a_watcher_lives(api: Api, namespace: str, lease: str) -> bool:
    """Somebody has renewed the node watchers' lease of late, as far as the two clocks agree."""
    try:
        spec = api.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{lease}").get("spec") or {}
    except (Missing, Forbidden):
        return False
    try:
        renewed = datetime.fromisoformat(str(spec.get("renewTime")))
    except ValueError:
        return False
    return bool(spec.get("holderIdentity")) and (datetime.now(UTC) - renewed).total_seconds() < WATCHER_FRESH_S


def move_away(
    url: str, api_key: str | None, there: list[Pod], until_s: float, *, force: bool, watcher: bool, report: Report
) -> list[str]:
    """Drains the replicas of these pods; their ids. With a watcher it is let go first: what it drains, it takes back
    with the node, however that comes back. `until_s`: on time.monotonic(). Raises Refused, NotInTime.
    """
    _wait_for_replicas(url, api_key, until_s, report)
    waits_until_s = time.monotonic() + (WATCHER_S if watcher else 0.0)
    while True:
        found = replicas_on(url, api_key, there)
        serving = [one["id"] for one in found if one["state"] != "draining"]
        if not serving or time.monotonic() >= waits_until_s:
            break
        time.sleep(LOOK_EVERY_S)
    for replica_id in serving:
        try:
            drain(url, replica_id, api_key, migrate=True, undo=False, force=force)
        except Refused:
            if replica_id in {one["id"] for one in replicas_on(url, api_key, there) if one["state"] != "draining"}:
                raise
        report(f"{replica_id} gets no more requests, its streams move to other replicas")
    return [str(one["id"]) for one in found]


def take_back(url: str, api_key: str | None, there: list[Pod]) -> list[str]:
    """The ids of the replicas of these pods that take requests again. Raises Refused."""
    back = []
    for one in replicas_on(url, api_key, there):
        if one["state"] == "draining":
            back.append(drain(url, one["id"], api_key, migrate=False, undo=True, force=False))
    return back


def wait_until_idle(url: str, api_key: str | None, replica_ids: list[str], until_s: float, report: Report) -> None:
    """Returns when nothing runs on them. `until_s`: on time.monotonic(). Raises NotInTime, StatusError.

    One that the router does not know is not idle, as a router that starts anew knows none for a while: what was known
    last counts, until it is away for so long that it is gone.
    """
    told: tuple[int, list[str]] | None = None
    left_of = dict.fromkeys(replica_ids, 1)
    seen_s = dict.fromkeys(replica_ids, time.monotonic())
    while True:
        try:
            granted = {str(one["id"]): int(one["granted"]) for one in _replicas(url, api_key)}
        except StatusError:
            if time.monotonic() > until_s:
                raise
            time.sleep(LOOK_EVERY_S)
            continue
        now_s = time.monotonic()
        for replica_id in replica_ids:
            if replica_id in granted:
                left_of[replica_id], seen_s[replica_id] = granted[replica_id], now_s
            elif now_s - seen_s[replica_id] >= GONE_AFTER_S:
                left_of[replica_id] = 0
        left = sum(left_of.values())
        unknown = sorted(replica_id for replica_id in left_of.keys() - granted.keys() if left_of[replica_id])
        if (left, unknown) != told:
            report(f"{left} requests run there" if not unknown else f"the router does not know {', '.join(unknown)}")
            told = (left, unknown)
        if not left:
            return
        if now_s > until_s:
            if unknown:
                raise NotInTime(
                    f"the router does not know {', '.join(unknown)}, so that streams may still run there: give it more "
                    "time by --timeout, or see `moray k8s status` whether the replica is there"
                )
            raise NotInTime(
                f"{left} requests still run there: give them more time by --timeout, or see `moray k8s status` whether "
                "another replica takes them"
            )
        time.sleep(LOOK_EVERY_S)


def _wait_for_replicas(url: str, api_key: str | None, until_s: float, report: Report) -> None:
    """Until the router knows any replica: one that starts anew knows none for a while. Raises NotInTime."""
    began_s, told = time.monotonic(), False
    while not _replicas(url, api_key) and time.monotonic() - began_s < GONE_AFTER_S:
        if not told:
            report("the router knows no replica: it may have started just now")
            told = True
        if time.monotonic() > until_s:
            raise NotInTime(
                "the router knows no replica, so that streams may run there: give it more time by --timeout"
            )
        time.sleep(LOOK_EVERY_S)


def evict(api: Api, namespace: str, there: list[Pod], until_s: float, report: Report) -> None:
    """Returns when the pods are gone. A disruption budget's no is waited for. Raises NotInTime."""
    version = _eviction_version(api)
    left = {pod.name: pod for pod in there}
    asked: set[str] = set()
    told: dict[str, str] = {}
    while left:
        for pod in list(left.values()):
            path = f"/api/v1/namespaces/{namespace}/pods/{pod.name}"
            try:
                if pod.name not in asked:
                    api.post(f"{path}/eviction", _eviction(version, namespace, pod))
                    asked.add(pod.name)
                    report(f"pod {pod.name} is being evicted")
                if api.get(path)["metadata"].get("uid") != pod.uid:
                    raise Missing("another pod of that name")
            except DisruptionBudget as budget:
                if pod.name not in told:
                    report(f"pod {pod.name} waits for its disruption budget")
                told[pod.name] = str(budget)
            except (Missing, Conflict):
                del left[pod.name]  # gone; of a Conflict: another pod has its name
                report(f"pod {pod.name} is gone")
        if left:
            if time.monotonic() > until_s:
                why = "; ".join(told[name] for name in left if name in told and name not in asked)
                raise NotInTime(f"pods are still there: {', '.join(left)}" + (f" ({why})" if why else ""))
            time.sleep(EVICT_EVERY_S if left.keys() - asked else LOOK_EVERY_S)


def _eviction(version: str, namespace: str, pod: Pod) -> dict[str, Any]:
    return {
        "apiVersion": f"policy/{version}",
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": namespace},
        "deleteOptions": {"preconditions": {"uid": pod.uid}},
    }


def _eviction_version(api: Api) -> str:
    """Of the API that this server takes evictions in: v1 since Kubernetes 1.22."""
    for resource in api.get("/api/v1").get("resources") or ():
        if resource.get("name") == "pods/eviction":
            return str(resource.get("version") or "v1beta1")
    raise UserError("this API server takes no evictions (it has no pods/eviction)")


def _node(api: Api, name: str) -> dict[str, Any]:
    try:
        return api.get(f"/api/v1/nodes/{name}")
    except Missing:
        raise UserError(f"there is no node {name}: `moray k8s status` shows those with pods of Moray") from None


def _intent(node: Mapping[str, Any], spec: Mapping[str, Any] | None) -> dict[str, Any]:
    # With the uid: an apply to a node that is gone meanwhile would make one.
    metadata = {"name": node["metadata"]["name"], "uid": node["metadata"]["uid"]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata} | ({"spec": spec} if spec else {})


def _held_by_others(name: str, conflict: Conflict) -> UserError:
    managers = ", ".join(other_managers(conflict))
    if not managers:
        return conflict
    return UserError(
        f"node {name} is held open by {managers}, which owns spec.unschedulable; {FIELD_MANAGER} does not force it: "
        f"cordon it there, or with `kubectl cordon {name}`, and run this again"
    )


def _replicas(url: str, api_key: str | None) -> list[dict[str, Any]]:
    return list(fetch(url, api_key, "/moray/status?brief=true").get("replicas") or ())

"""Why a node must be left, if it must: from its Node, its Events and what our pods tolerate. Pure.

Kubernetes' own words come first: a cordon, a taint that evicts, the end of the machine. Then what those say who know
the machine: the clouds' notices, as their node agents write them down (AWS' termination handler, GKE, AKS, Karpenter,
the cluster autoscaler), and GPUs that are broken (node-problem-detector, the clouds' monitors, NVIDIA's Xid errors in
Events). That a machine *may* be taken some day (a spot label, a rebalance recommendation, a candidate of the
autoscaler's) is no reason.

Nodes that are not ready are left only while they are not the majority: where most of them seem so at once, it is the
control plane that does not see them, and moving all streams to the few others would do the harm itself.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ops.k8s.pods import Pod

Json = Mapping[str, Any]


class Urgency(enum.IntEnum):
    """How soon it ends there; of several reasons the most urgent counts."""

    CORDONED = 1  # an operator's wish: pods that run may stay as long as they like
    NOT_READY = 2
    BROKEN = 3  # some of its GPUs, or its kernel
    GOING = 4  # minutes, or less


@dataclass(frozen=True)
class Reason:
    urgency: Urgency
    why: str  # for people: "the node " + why
    until_boot: bool = False  # it holds, or one beside it does, until the node has booted, though nothing tells of it


@dataclass(frozen=True)
class Leaving:
    nodes: Mapping[str, Reason]  # those of our pods' nodes that must be left
    withheld: str = ""  # a sentence: which are not left although they look so
    undecided: frozenset[str] = frozenset()  # those


# Taints by key: who says so. Not among them: marks of a kind of machine (cloud.google.com/gke-spot,
# kubernetes.azure.com/scalesetpriority), which it bears all its life.
GOING_TAINTS = {
    "aws-node-termination-handler/spot-itn": "AWS takes the spot instance back",
    "aws-node-termination-handler/scheduled-maintenance": "AWS has scheduled maintenance for it",
    "aws-node-termination-handler/asg-lifecycle-termination": "its Auto Scaling group ends it",
    "cloud.google.com/impending-node-termination": "Google is about to end it",
    "remediator.kubernetes.azure.com/unschedulable": "AKS is about to mend it",
    "karpenter.sh/disrupted": "Karpenter is about to end it",
    "karpenter.sh/disruption": "Karpenter is about to end it",
    "ToBeDeletedByClusterAutoscaler": "the cluster autoscaler is about to end it",
    "node.cloudprovider.kubernetes.io/shutdown": "its machine is shut down",
    "node.kubernetes.io/out-of-service": "it is out of service",
}
# Taints that mean a state that is judged by other fields, and those that our pods meet when they start.
_ELSEWHERE = frozenset(
    {
        "node.kubernetes.io/unschedulable",
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "karpenter.sh/unregistered",
        "node.cloudprovider.kubernetes.io/uninitialized",
    }
)
# Reasons of a Node's Events: notices of an end that is certain.
GOING_EVENTS = {
    "SpotInterruption": "AWS takes the spot instance back",  # termination handler
    "SpotInterrupted": "AWS takes the spot instance back",  # Karpenter
    "InstanceStopping": "its instance is being stopped",
    "InstanceTerminating": "its instance is being ended",
    "TerminatingOnInterruption": "Karpenter ends it because of an interruption",
    "PreemptScheduled": "Azure takes the spot machine back",
    "TerminateScheduled": "Azure is about to end it",
    "RedeployScheduled": "Azure is about to redeploy it",
    "RebootScheduled": "Azure is about to reboot it",
}
# NVIDIA's Xid errors after which a GPU, or a link to it, is not to be trusted until it is reset. Others (13, 31, 43,
# 45 …) are an application's own, or say that a reset took place.
BROKEN_XIDS = {
    48: "double-bit ECC error",
    62: "internal microcontroller halt",
    64: "row remapping failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained ECC error",
    109: "context switch timeout",
    110: "security fault",
    119: "GSP does not answer",
    120: "GSP error",
    136: "link training failed",
    140: "unrecovered ECC error",
    143: "GPU initialization failed",
}
# node-problem-detector's "NVRM: Xid (PCI:0000:3b:00): 79, …", AWS' NvidiaXID79Error.
_XID = re.compile(r"\bXid\s*\([^)]*\)\s*:\s*(\d+)|xid[\s:=_-]{0,3}(\d+)", re.IGNORECASE)
_GPU_CONDITION = re.compile(r"gpu|nvidia|nvlink|nvswitch|xid|acceleratedhardware", re.IGNORECASE)
_BROKEN_CONDITIONS = frozenset({"KernelDeadlock", "ReadonlyFilesystem"})  # node-problem-detector's own


def leaving(nodes: Iterable[Json], events: Iterable[Json], pods: Sequence[Pod]) -> Leaving:
    """Of the nodes that our pods are on. `nodes`: all of the cluster; one that is not among them is gone."""
    ours: dict[str, list[Pod]] = {}
    for pod in pods:
        if pod.node:
            ours.setdefault(pod.node, []).append(pod)
    known = {node["metadata"]["name"]: node for node in nodes}
    told: dict[str, list[Json]] = {}
    for event in events:
        about = event.get("involvedObject") or {}
        if about.get("kind") == "Node":
            told.setdefault(str(about.get("name")), []).append(event)
    found: dict[str, list[Reason]] = {}
    for name, there in ours.items():
        if (node := known.get(name)) is None:
            found[name] = [Reason(Urgency.GOING, "was removed from the cluster")]
        else:
            found[name] = reasons(node, told.get(name, ()), [pod.tolerations for pod in there])
    unready = [name for name, why in found.items() if any(reason.urgency is Urgency.NOT_READY for reason in why)]
    withheld, undecided = "", frozenset[str]()
    if len(unready) * 2 > len(ours):
        found |= {
            name: [reason for reason in found[name] if reason.urgency is not Urgency.NOT_READY] for name in unready
        }
        undecided = frozenset(unready)
        withheld = (
            f"{len(unready)} of {len(ours)} nodes are not ready at once: that is likelier the control plane's view "
            "than theirs, so it is no reason to leave them"
        )
    return Leaving({name: _most_urgent(why) for name, why in found.items() if why}, withheld, undecided)


def boots(nodes: Iterable[Json]) -> dict[str, str]:
    """Boot ids by the nodes' names, of those that tell theirs."""
    told = {node["metadata"]["name"]: (node.get("status") or {}).get("nodeInfo") or {} for node in nodes}
    return {name: str(info["bootID"]) for name, info in told.items() if info.get("bootID")}


def of_interest(node: Json) -> Json:
    """What of a Node a reason may come from, a hundredth of it; equal where nothing of that has changed."""
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    told = ("type", "status", "reason", "message", "lastTransitionTime")
    return {
        "metadata": {key: metadata[key] for key in ("name", "uid", "deletionTimestamp") if key in metadata},
        "spec": {key: spec[key] for key in ("taints", "unschedulable") if key in spec},
        "status": {
            "conditions": [{key: one.get(key) for key in told} for one in status.get("conditions") or ()],
            "nodeInfo": {"bootID": (status.get("nodeInfo") or {}).get("bootID")},
        },
    }


def reasons(node: Json, events: Iterable[Json], tolerations: Iterable[Sequence[Json]]) -> list[Reason]:
    """`events`: those about it. `tolerations`: of each of our pods there."""
    status, spec = node.get("status") or {}, node.get("spec") or {}
    conditions = {str(one.get("type")): one for one in status.get("conditions") or ()}
    found = [
        *_of_taints(spec.get("taints") or (), list(tolerations)),
        *_of_conditions(conditions.values()),
        *_of_events(events, _ready_since(conditions.get("Ready"))),
    ]
    if node["metadata"].get("deletionTimestamp"):
        found.append(Reason(Urgency.GOING, "is being removed from the cluster"))
    if spec.get("unschedulable"):
        found.append(Reason(Urgency.CORDONED, "is cordoned"))
    return found


def _most_urgent(why: Sequence[Reason]) -> Reason:
    first = max(why, key=lambda reason: reason.urgency)
    return replace(first, until_boot=any(reason.until_boot for reason in why))


def _of_taints(taints: Iterable[Json], tolerations: Sequence[Sequence[Json]]) -> Iterable[Reason]:
    for taint in taints:
        key = str(taint.get("key"))
        if key in GOING_TAINTS:
            yield Reason(Urgency.GOING, f"has the taint {key}: {GOING_TAINTS[key]}")
        elif (
            taint.get("effect") == "NoExecute"
            and key not in _ELSEWHERE
            and any(not any(_tolerates(one, taint) for one in of_pod) for of_pod in tolerations)
        ):
            yield Reason(Urgency.GOING, f"has the taint {key}:NoExecute, which evicts our pods")


def _tolerates(toleration: Json, taint: Json) -> bool:
    """For good: one with tolerationSeconds only puts the eviction off."""
    if toleration.get("tolerationSeconds") is not None:
        return False
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint.get("key"):
        return False
    return toleration.get("operator") == "Exists" or (toleration.get("value") or "") == (taint.get("value") or "")


def _of_conditions(conditions: Iterable[Json]) -> Iterable[Reason]:
    for one in conditions:
        kind, status = str(one.get("type")), one.get("status")
        about = ": ".join(str(one[key]) for key in ("reason", "message") if one.get(key))
        if kind == "Ready":
            if status in ("False", "Unknown"):  # Unknown: its kubelet has not been heard for a while
                yield Reason(Urgency.NOT_READY, f"is not ready ({about or 'no reason given'})")
        elif kind == "VMEventScheduled":  # AKS; a freeze is a pause of seconds
            if status == "True" and "freeze" not in about.lower():
                yield Reason(Urgency.GOING, f"has an event of its machine coming ({about})")
        elif kind in _BROKEN_CONDITIONS:
            if status == "True":
                yield Reason(Urgency.BROKEN, f"has {kind} ({about})")
        elif _GPU_CONDITION.search(kind):
            # AWS says AcceleratedHardwareReady=False, the others GPUMissing=True.
            wrong = "False" if re.search(r"(Ready|Healthy|OK)$", kind) else "True"
            if status == wrong:
                yield Reason(Urgency.BROKEN, f"has {kind}={status} ({about})")


def _of_events(events: Iterable[Json], ready_since: datetime | None) -> Iterable[Reason]:
    """Only of those that came after the node became ready: a boot mends what was before it."""
    for event in events:
        at = _when(event)
        if at is not None and ready_since is not None and at < ready_since:
            continue
        reason = str(event.get("reason"))
        if reason in GOING_EVENTS:
            yield Reason(Urgency.GOING, f"has the event {reason}: {GOING_EVENTS[reason]}")
        for number in _xids(f"{reason} {event.get('message') or ''}"):
            if number in BROKEN_XIDS:
                yield Reason(Urgency.BROKEN, f"has a GPU error, Xid {number}: {BROKEN_XIDS[number]}", until_boot=True)


def _xids(text: str) -> Iterable[int]:
    for found in _XID.finditer(text):
        yield int(found.group(1) or found.group(2))


def _ready_since(ready: Json | None) -> datetime | None:
    if ready is None or ready.get("status") != "True":
        return None
    return _time(ready.get("lastTransitionTime"))


def _when(event: Json) -> datetime | None:
    """When it was seen last; None: it does not say."""
    series = event.get("series") or {}
    told = [
        event.get("lastTimestamp"),
        event.get("eventTime"),
        series.get("lastObservedTime"),
        event.get("firstTimestamp"),
    ]
    return max((at for at in map(_time, told) if at is not None), default=None)


def _time(told: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(told)) if told else None
    except ValueError:
        return None
    return at if at is None or at.tzinfo is not None else at.replace(tzinfo=UTC)

"""Why a node must be left, and why not."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_objects import node, pod
from hypothesis import given
from hypothesis import strategies as st

from ops.k8s import pods
from ops.k8s.nodes import BROKEN_XIDS, GOING_EVENTS, GOING_TAINTS, Reason, Urgency, boots, leaving, of_interest, reasons

GPU_TOLERATION = [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def why_leave(node: Any, events: Any = (), tolerations: Any = ()) -> Reason | None:
    """The reason that counts."""
    return max(reasons(node, events, tolerations), key=lambda reason: reason.urgency, default=None)


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def with_conditions(*conditions: dict[str, Any]) -> dict[str, Any]:
    made = node("a")
    made["status"]["conditions"] += conditions
    return made


def event(reason: str, message: str = "", at: str = "2026-11-28T12:00:00Z", name: str = "a") -> dict[str, Any]:
    about = {"kind": "Node", "name": name}
    return {"involvedObject": about, "reason": reason, "message": message, "lastTimestamp": at}


def ours(*on: str) -> list[pods.Pod]:
    return [pods.pod(pod(f"p{i}", name, f"10.0.0.{i}")) for i, name in enumerate(on)]


def test_a_node_that_is_well_is_not_left():
    fine = [
        condition("MemoryPressure", "False"),
        condition("GPUMissing", "False"),
        condition("KernelDeadlock", "False"),
    ]
    fine += [condition("AcceleratedHardwareReady", "True"), condition("NvidiaHealthy", "Unknown")]
    assert why_leave(with_conditions(*fine), [], [GPU_TOLERATION]) is None


def test_a_cordon():
    reason = why_leave(
        node("a", cordoned=True, taints=[{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])
    )
    assert reason is not None and reason.urgency is Urgency.CORDONED and reason.why == "is cordoned"


@pytest.mark.parametrize("key", sorted(GOING_TAINTS))
def test_a_notice_by_taint(key):
    reason = why_leave(node("a", taints=[{"key": key, "effect": "NoSchedule"}], cordoned=True))
    assert reason is not None and reason.urgency is Urgency.GOING and key in reason.why


@pytest.mark.parametrize(
    "taint",
    [
        {"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"},
        {"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", "effect": "NoSchedule"},
        {"key": "DeletionCandidateOfClusterAutoscaler", "effect": "PreferNoSchedule"},
        {"key": "aws-node-termination-handler/rebalance-recommendation", "effect": "NoSchedule"},
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoExecute"},
        {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
        {"key": "maintenance", "effect": "NoSchedule"},
    ],
)
def test_a_taint_that_says_nothing_of_an_end(taint):
    assert why_leave(node("a", taints=[taint]), [], [GPU_TOLERATION]) is None


@pytest.mark.parametrize(
    ("toleration", "stays"),
    [
        ({"key": "maintenance", "operator": "Exists"}, True),
        ({"key": "maintenance", "value": "soon"}, True),
        ({"key": "maintenance", "value": "soon", "effect": "NoExecute"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "maintenance", "value": "later"}, False),
        ({"key": "maintenance", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"key": "maintenance", "operator": "Exists", "tolerationSeconds": 30}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_a_taint_that_evicts_our_pods(toleration, stays):
    tainted = node("a", taints=[{"key": "maintenance", "value": "soon", "effect": "NoExecute"}])
    assert (why_leave(tainted, [], [[toleration]]) is None) == stays
    assert why_leave(tainted, [], []) is None, "it evicts nobody of ours"


@pytest.mark.parametrize(
    "broken",
    [
        condition("GPUMissing"),  # AKS
        condition("NVLinkStatusInactive"),
        condition("XIDErrors"),
        condition("AcceleratedHardwareReady", "False", "NvidiaXID79Error"),  # EKS
        condition("NebiusGPUError"),
        condition("NvidiaXidError"),  # ACK
        condition("KernelDeadlock"),
        condition("ReadonlyFilesystem"),
    ],
)
def test_a_condition_that_says_broken(broken):
    reason = why_leave(with_conditions(broken))
    assert reason is not None and reason.urgency is Urgency.BROKEN and broken["type"] in reason.why


@pytest.mark.parametrize(("message", "left"), [("Preempt at 12:00", True), ("Freeze at 12:00", False)])
def test_azures_coming_events(message, left):
    reason = why_leave(with_conditions(condition("VMEventScheduled", "True", "VMEventScheduled", message)))
    assert (reason is not None) == left


@pytest.mark.parametrize("reason", sorted(GOING_EVENTS))
def test_a_notice_by_event(reason):
    found = why_leave(node("a"), [event(reason)])
    assert found is not None and found.urgency is Urgency.GOING


@pytest.mark.parametrize(
    ("reason", "message", "number"),
    [
        ("XIDError", "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", 79),
        ("NvidiaXID95Error", "", 95),
        ("GPUError", "xid: 48 on GPU 3", 48),
        ("XIDError", "NVRM: Xid (PCI:0000:3b:00): 31, pid=99, name=python, MMU Fault", None),  # the application's own
        ("XIDError", "NVRM: Xid (PCI:0000:3b:00): 43, pid=99", None),
        ("NodeReady", "the node is ready", None),
    ],
)
def test_gpu_errors_by_event(reason, message, number):
    found = why_leave(node("a"), [event(reason, message)])
    if number is None:
        assert found is None
    else:
        assert found is not None and found.urgency is Urgency.BROKEN and BROKEN_XIDS[number] in found.why


def test_a_boot_mends_what_was_before_it():
    xid = event("XIDError", "NVRM: Xid (PCI:0000:3b:00): 79", at="2026-11-28T09:59:59Z")  # ready since 10:00:00
    assert why_leave(node("a"), [xid]) is None
    assert why_leave(node("a"), [xid | {"series": {"lastObservedTime": "2026-11-28T10:00:01.000000Z"}}]) is not None
    undated = {key: value for key, value in xid.items() if key != "lastTimestamp"}
    assert why_leave(node("a"), [undated]) is not None, "not known is not before"


def test_the_most_urgent_counts():
    bad = node("a", cordoned=True, ready="Unknown", taints=[{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}])
    reason = why_leave(bad, [event("XIDError", "Xid (x): 79")])
    assert reason is not None and reason.urgency is Urgency.GOING


def test_only_nodes_with_our_pods_and_those_that_are_gone():
    found = leaving([node("a", cordoned=True), node("b", cordoned=True), node("c")], [], ours("a", "c", "gone"))
    assert found.nodes.keys() == {"a", "gone"} and not found.withheld


def test_events_count_for_the_node_that_they_are_about():
    found = leaving([node("a"), node("b")], [event("SpotInterruption", name="b")], ours("a", "b"))
    assert found.nodes.keys() == {"b"}


def test_a_control_plane_that_sees_no_nodes_moves_no_streams():
    most = [
        node("a", ready="Unknown"),
        node("b", ready="Unknown"),
        node("c"),
        node("d", ready="Unknown", cordoned=True),
    ]
    found = leaving(most, [], ours("a", "b", "c", "d"))
    assert found.nodes.keys() == {"d"} and "3 of 4 nodes" in found.withheld
    assert found.undecided == {"a", "b", "d"}
    half = [node("a", ready="Unknown"), node("b")]
    assert leaving(half, [], ours("a", "b")).nodes.keys() == {"a"}


def test_a_node_that_is_not_ready_and_cordoned_is_left_for_its_cordon():
    bad = [node("a", ready="Unknown", cordoned=True), node("b", ready="Unknown")]
    found = leaving(bad, [], ours("a", "b"))
    assert found.nodes.keys() == {"a"} and found.nodes["a"].urgency is Urgency.CORDONED and found.withheld


def test_a_gpu_error_by_event_lasts_until_a_boot_also_beside_another_reason():
    xid = event("XIDError", "Xid (x): 79")
    for one in (node("a"), node("a", taints=[{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}])):
        assert leaving([one], [xid], ours("a")).nodes["a"].until_boot
    assert not leaving([node("a", cordoned=True)], [], ours("a")).nodes["a"].until_boot


def test_boots():
    told = node("a")
    told["status"]["nodeInfo"] = {"bootID": "1-2", "kernelVersion": "6"}
    assert boots([told, node("b")]) == boots([of_interest(told), of_interest(node("b"))]) == {"a": "1-2"}


def test_heartbeats_are_of_no_interest():
    before, after = node("a"), node("a")
    after["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-11-28T12:00:00Z"
    after["metadata"]["resourceVersion"] = "99"
    assert of_interest(before) == of_interest(after)
    assert of_interest(before) != of_interest(node("a", cordoned=True))
    assert of_interest(before) != of_interest(node("a", ready="False"))


NODE = st.builds(
    lambda ready, cordoned, key: node(
        "x", ready=ready, cordoned=cordoned, taints=[{"key": key, "effect": "NoExecute"}] if key else None
    ),
    st.sampled_from(["True", "False", "Unknown"]),
    st.booleans(),
    st.sampled_from(["", "", "", "maintenance", "karpenter.sh/disrupted"]),
)


@given(st.lists(NODE, min_size=1, max_size=6))
def test_any_reason_is_found_and_no_node_is_left_without_one(nodes):
    named = [one | {"metadata": {"name": f"n{i}"}} for i, one in enumerate(nodes)]
    found = leaving(named, [], ours(*(one["metadata"]["name"] for one in named)))
    for one in named:
        sick = one["spec"] or one["status"]["conditions"][0]["status"] != "True"
        name = one["metadata"]["name"]
        assert (name in found.nodes) <= bool(sick)
        if one["spec"]:
            assert name in found.nodes, "a cordon, a notice or an eviction is never withheld"
    left_for_that = [reason for reason in found.nodes.values() if reason.urgency is Urgency.NOT_READY]
    assert len(left_for_that) * 2 <= len(named)

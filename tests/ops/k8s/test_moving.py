"""Which replicas are drained because of their nodes, and which are taken back."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ops.k8s.moving import GONE_AFTER_S, Plan, Replica, plan
from ops.k8s.nodes import Reason, Urgency

CORDON, SPOT = Reason(Urgency.CORDONED, "is cordoned"), Reason(Urgency.GOING, "goes")
XID = Reason(Urgency.BROKEN, "has a GPU error", until_boot=True)


def ids(moves) -> list[str]:
    return [move.replica_id for move in moves]


def test_the_replicas_of_a_node_that_is_left_are_drained_and_remembered_first():
    made = plan([Replica("r1", "a", "ready"), Replica("r2", "b", "ready")], {"a": CORDON}, {}, {})
    assert ids(made.drain) == ["r1"] and made.record == {"r1": "a"} and not made.undo and not made.last


def test_they_are_taken_back_with_their_node():
    made = plan([Replica("r1", "a", "draining"), Replica("r2", "b", "ready")], {}, {"r1": "a"}, {})
    assert ids(made.undo) == ["r1"] and made.record == {"r1": "a"} and made.after == {}


def test_what_others_drained_is_theirs():
    seen = [Replica("r1", "a", "draining"), Replica("r2", "b", "ready")]
    assert plan(seen, {"a": CORDON}, {}, {}) == plan(seen, {}, {}, {}) == Plan(record={})


def test_an_order_that_was_stored_but_not_done_is_given_again():
    made = plan([Replica("r1", "a", "ready"), Replica("r2", "b", "ready")], {"a": CORDON}, {"r1": "a"}, {})
    assert ids(made.drain) == ["r1"] and made.record == {"r1": "a"}


def test_the_last_is_not_drained_and_it_is_the_one_with_most_time():
    seen = [Replica("r1", "a", "ready"), Replica("r2", "b", "ready")]
    made = plan(seen, {"a": CORDON, "b": SPOT}, {}, {})
    assert ids(made.drain) == ["r2"] and ids(made.last) == ["r1"] and made.record == {"r2": "b"}


def test_one_that_is_swapped_is_no_other_to_take_requests():
    seen = [Replica("r1", "a", "ready"), Replica("r2", "b", "swapping")]
    assert ids(plan(seen, {"a": CORDON}, {}, {}).last) == ["r1"]


def test_one_that_is_swapped_is_taken_back_after_it():
    made = plan([Replica("r1", "a", "swapping")], {}, {"r1": "a"}, {})
    assert not made.undo and made.record == {"r1": "a"}


def test_a_router_that_starts_anew_knows_no_replicas_for_a_while():
    made = plan([], {}, {"r1": "a"}, {"r1": GONE_AFTER_S - 1})
    assert made.record == {"r1": "a"}
    assert plan([], {}, {"r1": "a"}, {"r1": GONE_AFTER_S}).record == {}


def test_a_replica_taken_back_by_somebody_else_is_forgotten():
    assert plan([Replica("r1", "a", "ready")], {}, {"r1": "a"}, {}).record == {}


def test_one_on_a_node_that_is_not_known_is_not_taken_back():
    made = plan([Replica("r1", "", "draining"), Replica("r2", "b", "ready")], {}, {"r1": "a"}, {})
    assert not made.undo and made.record == {"r1": "a"}


def test_one_on_a_node_that_is_undecided_is_not_taken_back():
    seen = [Replica("r1", "a", "draining"), Replica("r2", "b", "draining"), Replica("r3", "c", "ready")]
    made = plan(seen, {}, {"r1": "a", "r2": "b"}, {}, undecided={"a"})
    assert ids(made.undo) == ["r2"] and made.after == {"r1": "a"}


def test_a_broken_gpu_is_broken_until_the_node_has_booted():
    drained = [Replica("r1", "a", "draining"), Replica("r2", "b", "ready")]
    ready = [Replica("r1", "a", "ready"), Replica("r2", "b", "ready")]
    boots = {"a": "boot-1", "b": "boot-1"}
    record = plan(ready, {"a": XID}, {}, {}, boots=boots).record
    assert record == {"r1": "a boot-1"}
    for leaving, known in (({"a": XID}, boots), ({"a": CORDON}, boots), ({}, boots), ({}, {})):
        made = plan(drained, leaving, record, {}, boots=known)
        assert not made.undo and made.record == record, (leaving, known)
    made = plan(drained, {}, record, {}, boots={"a": "boot-2"})
    assert ids(made.undo) == ["r1"] and made.undo[0].node == "a" and made.after == {}


def test_a_gpu_that_breaks_on_a_cordoned_node_is_noted():
    seen = [Replica("r1", "a", "draining"), Replica("r2", "b", "ready")]
    assert plan(seen, {"a": XID}, {"r1": "a"}, {}, boots={"a": "boot-1"}).record == {"r1": "a boot-1"}
    assert plan(seen, {"a": XID}, {"r1": "a"}, {}).record == {"r1": "a"}, "a node that tells no boot"


REPLICAS = st.dictionaries(
    st.sampled_from([f"r{i}" for i in range(6)]),
    st.tuples(st.sampled_from(["a", "b", "c", ""]), st.sampled_from(["ready", "draining", "swapping"])),
).map(lambda found: [Replica(name, node, state) for name, (node, state) in found.items()])
LEAVING = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([CORDON, SPOT, XID]))
RECORD = st.dictionaries(st.sampled_from([f"r{i}" for i in range(6)]), st.sampled_from(["a", "b x", "c y"]))
UNDECIDED = st.sets(st.sampled_from(["a", "b", "c"]))
BOOTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y"]))


@given(REPLICAS, LEAVING, RECORD, UNDECIDED, BOOTS)
def test_what_holds_for_every_plan(replicas, leaving, record, undecided, boots):
    made = plan(replicas, leaving, record, dict.fromkeys(record, 1e9), undecided, boots)
    state = {one.id: one.state for one in replicas}
    assert all(state[move.replica_id] == "ready" and move.node in leaving for move in (*made.drain, *made.last))
    assert set(ids(made.undo)) <= record.keys(), "only what it drained itself"
    node_of = {one.id: one.node for one in replicas}
    assert all(node_of[one] and node_of[one] not in undecided for one in ids(made.undo)), "only where it is known"
    assert len(made.last) <= 1
    assert made.record is not None and set(ids(made.drain)) <= made.record.keys()
    drained, back = set(ids(made.drain)), set(ids(made.undo))
    assert made.record.keys() <= record.keys() | drained
    assert made.after.keys() == made.record.keys() - back
    now = [
        replace(one, state="draining" if one.id in drained else "ready" if one.id in back else one.state)
        for one in replicas
    ]
    if drained:
        assert any(one.state == "ready" for one in now), "somebody is left to take requests"
    again = plan(now, leaving, made.after, {}, undecided, boots)
    assert not again.drain and not again.undo and again.record == made.after, "it is done once it is done"

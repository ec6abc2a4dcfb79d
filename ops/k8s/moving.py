"""Which replicas to drain because of their nodes, and which to take back. Pure.

`record` is what this watcher has drained, node by replica id, and all that it may undo: what an operator, a rollout or
the healing drained is theirs. It is stored before anything is done, so each plan may be carried out twice. An entry is
"NODE", or "NODE BOOTID" where only another boot of the node ends the reason: the Event that told of a broken GPU is
forgotten by the API server after an hour, the GPU is broken still.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ops.k8s.nodes import Reason

GONE_AFTER_S = 120.0  # a replica unseen for so long is no more; a router that starts anew knows none for a while


@dataclass(frozen=True)
class Replica:
    id: str
    node: str  # "": on none of our pods' nodes
    state: str  # of /moray/status: ready, draining or swapping


@dataclass(frozen=True)
class Move:
    replica_id: str
    node: str
    why: str  # "the node " + why


@dataclass(frozen=True)
class Plan:
    drain: tuple[Move, ...] = ()
    undo: tuple[Move, ...] = ()
    last: tuple[Move, ...] = ()  # would have to go, but without them nobody takes requests
    record: Mapping[str, str] | None = None  # to be stored before anything is done; without `undo`'s, once that is done

    @property
    def after(self) -> dict[str, str]:
        """The record when all is done."""
        undone = {move.replica_id for move in self.undo}
        return {replica: node for replica, node in (self.record or {}).items() if replica not in undone}


def plan(
    replicas: Sequence[Replica],
    leaving: Mapping[str, Reason],
    record: Mapping[str, str],
    unseen_s: Mapping[str, float],
    undecided: Collection[str] = (),
    boots: Mapping[str, str] | None = None,
) -> Plan:
    """`unseen_s`: for how long replicas of the record have not been among `replicas`. `undecided`: nodes of which it
    cannot be said that they need not be left, so that nothing is taken back there. `boots`: boot ids, by node.
    """
    boots = boots or {}
    known = {replica.id: replica for replica in replicas}
    kept: dict[str, str] = {}
    undo = []
    for replica_id, entry in record.items():
        replica = known.get(replica_id)
        if replica is None:
            if unseen_s.get(replica_id, 0.0) < GONE_AFTER_S:
                kept[replica_id] = entry
            continue
        node, _, boot = entry.partition(" ")
        if (replica.node or node) in leaving:
            kept[replica_id] = _entry(replica.node or node, entry, leaving, boots)
        elif replica.state != "ready":
            kept[replica_id] = entry
            # One that is swapped is draining again after it. Where its node is not known, nothing says that it is well.
            sure = replica.node and replica.node not in undecided
            same_boot = boot and replica.node == node and boots.get(node, boot) == boot
            if replica.state == "draining" and sure and not same_boot:
                undo.append(Move(replica_id, node, "is in service again"))
    must_go = sorted(
        (replica for replica in replicas if replica.state == "ready" and replica.node in leaving),
        key=lambda replica: (-leaving[replica.node].urgency, replica.id),
    )
    stay = sum(replica.state == "ready" and replica.node not in leaving for replica in replicas)
    stay += len(undo)
    moves = [Move(replica.id, replica.node, leaving[replica.node].why) for replica in must_go]
    # The last that takes requests stays: the one whose node has the longest to go.
    drain, last = (moves, []) if stay else (moves[:-1], moves[-1:])
    kept |= {move.replica_id: _entry(move.node, record.get(move.replica_id, ""), leaving, boots) for move in drain}
    return Plan(tuple(drain), tuple(undo), tuple(last), kept)


def _entry(node: str, before: str, leaving: Mapping[str, Reason], boots: Mapping[str, str]) -> str:
    """The record's for a node that is left. A boot that was noted stays, whatever else is a reason meanwhile."""
    noted, _, boot = before.partition(" ")
    if leaving[node].until_boot:
        boot = boots.get(node) or (boot if noted == node else "")
    elif noted != node:
        boot = ""
    return f"{node} {boot}".rstrip()

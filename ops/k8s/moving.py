"""Which replicas to drain because of their nodes, and which to take back. Pure.

`record` is what this watcher has drained, node by replica id, and all that it may undo: what an operator, a rollout or
the healing drained is theirs. It is stored before anything is done, so each plan may be carried out twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
) -> Plan:
    """`unseen_s`: for how long replicas of the record have not been among `replicas`."""
    known = {replica.id: replica for replica in replicas}
    kept: dict[str, str] = {}
    undo = []
    for replica_id, node in record.items():
        replica = known.get(replica_id)
        if replica is None:
            if unseen_s.get(replica_id, 0.0) < GONE_AFTER_S:
                kept[replica_id] = node
            continue
        if (replica.node or node) in leaving:
            kept[replica_id] = replica.node or node
        elif replica.state != "ready":
            kept[replica_id] = node
            if replica.state == "draining":  # one that is swapped is draining again after it
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
    kept |= {move.replica_id: move.node for move in drain}
    return Plan(tuple(drain), tuple(undo), tuple(last), kept)

"""What the router tells once a second whoever watches it: little, for it is asked often. `status` tells all."""

from collections import Counter

import msgspec

from cluster.batcher import Batcher
from cluster.router_metrics import Tally
from cluster.swaps import Swaps
from replicas.assignment import Assignment
from replicas.messages import SwapReport


class ReplicaVitals(msgspec.Struct, frozen=True, kw_only=True):
    """A replica in the router's roster: it reports, so its process lives and its core does not stand still for long."""

    replica_id: str
    epoch: int
    version: str  # of the model; "" where there is one only
    actor_name: str  # of its Ray actor, in Serve's namespace; "": not known
    draining: bool
    granted: int  # requests that it has and that were not released
    directory: str = ""  # that its weights were loaded from; "": not told
    checksum: str = ""  # digest of its loaded weights; "": not known
    swap: SwapReport | None = None  # the one under way, from the command on, or else the last one that it told of

    @property
    def swapping(self) -> bool:
        """It is being changed on purpose: neither its silence nor its standing still is a fault."""
        return self.swap is not None and not self.swap.ended


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """Counters begin anew when the router is restarted."""

    waiting: int  # tickets without a grant
    granted: int  # grants since the start
    lost: int  # replicas lost since the start: gone without a word, not scaled in or stopped
    replicas: tuple[ReplicaVitals, ...]
    assignment_revision: int = 0  # of the Assignment that traffic follows; 0: none
    started_by_version: dict[str, int] = {}  # requests granted and not released, by the version they run on


def vitals(batcher: Batcher, tally: Tally, swaps: Swaps, assigned: Assignment | None) -> Vitals:
    started: Counter[str] = Counter()
    for view in batcher.replicas():
        started[view.info.version] += view.in_flight
    return Vitals(
        waiting=batcher.queued,
        granted=tally.grants,
        lost=tally.lost,
        replicas=tuple(
            ReplicaVitals(
                replica_id=info.replica_id,
                epoch=info.epoch,
                version=info.version,
                actor_name=info.actor_name,
                draining=draining,
                granted=in_flight,
                directory=info.directory,
                checksum=info.checksum,
                swap=swaps.report(info.replica_id),
            )
            for info, _, in_flight, _, draining in batcher.replicas()
        ),
        assignment_revision=assigned.revision if assigned else 0,
        started_by_version=dict(started),
    )

"""Which replicas there are and what they are to serve, in a rollout's phase. Pure."""

import math
from functools import cached_property

from ops.rollout.actions import Assign
from ops.rollout.observed import Observed, ReplicaSeen
from ops.rollout.spec import Strategy
from ops.rollout.state import Phase, Rollout
from replicas.assignment import Mirror

FORWARD = (Phase.CANARY, Phase.PROMOTING)
UNTOUCHED = (Phase.PENDING, Phase.VERIFYING)


def goal(rollout: Rollout) -> str:
    """The version that all replicas get in the end."""
    return rollout.to_version if rollout.phase in (*FORWARD, Phase.DONE) else rollout.from_version


class Fleet:
    """A rollout's replicas as they are seen. `observed.replicas` is known."""

    def __init__(self, rollout: Rollout, observed: Observed) -> None:
        self.rollout, self.observed = rollout, observed
        self.there: tuple[ReplicaSeen, ...] = observed.replicas or ()
        self.granted = [replica for replica in self.there if replica.taking]
        self.new = [replica for replica in self.granted if replica.version == rollout.to_version]
        self.old = [replica for replica in self.granted if replica.version != rollout.to_version]

    def find(self, replica_id: str) -> ReplicaSeen | None:
        return next((replica for replica in self.there if replica.replica_id == replica_id), None)

    @property
    def astray(self) -> list[ReplicaSeen]:
        """Those that have another version than the goal."""
        return [replica for replica in self.there if replica.version != goal(self.rollout)]

    @property
    def missing(self) -> int:
        """Replicas that are to be there and are not: lost, or loading."""
        return max(self.observed.wanted + self.observed.extra - len(self.there), 0)

    @property
    def alone(self) -> bool:
        """There is one replica only and no other is to come: nothing serves beside it while it is swapped."""
        return sum(not replica.draining for replica in self.there) == 1 and self.missing == 0

    @property
    def extra(self) -> int:
        """Replicas on top of those that the load asks for."""
        running = self.rollout.phase in (*FORWARD, Phase.ROLLING_BACK)
        return self.rollout.spec.surge if running and self.rollout.strategy is Strategy.SURGE else 0

    @cached_property
    def canaries(self) -> int:
        """Replicas that the new version needs for the step's share: never fewer than its part of the traffic."""
        turn = self.rollout.turn
        drained = sum(r.draining and (turn is None or turn.replica_id != r.replica_id) for r in self.there)
        count = max(len(self.there) - drained, self.observed.wanted + self.observed.extra - drained, 1)
        share = self.rollout.spec.steps[self.rollout.step]
        return min(max(math.ceil(share * count - 1e-9), 1), max(count - 1, 1))

    @property
    def share(self) -> float:
        """Of the unstarted requests, what the new version gets; 0 before its probes passed on a replica."""
        if not (self.rollout.proven and self.new and self.rollout.phase in FORWARD):
            return 0.0
        part = len(self.new) / len(self.granted)
        if self.rollout.phase is Phase.PROMOTING or part == 1.0:
            return part
        return round(min(self.rollout.spec.steps[self.rollout.step], part), 4)

    @property
    def assignment(self) -> Assign | None:
        """What is to be served now; None: as it is, for nothing has been touched yet."""
        rollout = self.rollout
        if rollout.phase in UNTOUCHED:
            return None
        traffic, mirror = {rollout.stable: 1.0}, None
        if rollout.phase is Phase.CANARY and self.share > 0.0:
            traffic = {rollout.from_version: 1.0 - self.share, rollout.to_version: self.share}
        if rollout.phase is Phase.ROLLING_BACK and rollout.proven and self.new and not self.old:
            traffic = {rollout.to_version: 1.0}  # or nobody would serve until the first is back
        if rollout.phase is Phase.CANARY and rollout.proven and self.new and self.old and rollout.spec.mirror > 0.0:
            mirror = Mirror(version=rollout.to_version, share=rollout.spec.mirror)
        by_replicas = rollout.phase is Phase.PROMOTING and rollout.proven
        return Assign(
            stable=rollout.stable,
            new_replica=rollout.to_version if self._starts_new else rollout.from_version,
            traffic=None if by_replicas else traffic,
            mirror=mirror,
        )

    @property
    def _starts_new(self) -> bool:
        """A replica that starts loads the new version."""
        rollout = self.rollout
        if rollout.phase is Phase.CANARY:
            return rollout.strategy is Strategy.SURGE and len(self.new) < self.canaries
        if rollout.phase is Phase.PROMOTING:
            return rollout.proven or rollout.strategy is Strategy.SURGE
        return rollout.phase is Phase.DONE

    @property
    def assigned(self) -> bool:
        """The router acts by what is to be served."""
        wanted, is_so = self.assignment, self.observed.assignment
        if wanted is None:
            return True
        if is_so is None or not self.observed.in_effect:
            return False
        return (wanted.stable, wanted.new_replica, wanted.traffic, wanted.mirror) == (
            is_so.stable,
            is_so.new_replica,
            is_so.traffic,
            is_so.mirror,
        )

"""The shell around `decide` in virtual time: what the controller does, and at which points it can be killed."""

from collections import Counter
from collections.abc import Callable

import msgspec
from simulated_cluster import Broken, Cluster

from ops.rollout.actions import Verify
from ops.rollout.decide import decide
from ops.rollout.observed import Check
from ops.rollout.samples import Window
from ops.rollout.state import Phase, Rollout


class Killed(Exception):
    """The controller was killed here."""


class Shell:
    """The controller's part: stores the rollout, then acts. `kill(point)` True: it is killed there."""

    def __init__(
        self,
        cluster: Cluster,
        rollout: Rollout,
        kill: Callable[[str, Rollout], bool] = lambda point, rollout: False,
        stores_first: bool = True,
    ) -> None:
        self.cluster, self.kill, self.stores_first = cluster, kill, stores_first
        self.stored = msgspec.json.encode(rollout)
        self.kills: Counter[Phase] = Counter()
        self.phases = [rollout.phase]
        self.shares: list[float] = []
        self.whys: list[str] = []
        self._start()

    @property
    def rollout(self) -> Rollout:
        return msgspec.json.decode(self.stored, type=Rollout)

    def _start(self) -> None:
        """A new process: it knows what is stored, and collects anew."""
        self._mine = msgspec.json.decode(self.stored, type=Rollout)
        self._check: tuple[float, Check] | None = None
        self.cluster.window, self._watch_s = None, None
        self._back_at = 0.0

    def tick(self) -> None:
        self.cluster.tick()
        if self.cluster.now < self._back_at:
            return
        try:
            self._tick()
        except Killed:
            self.kills[self._mine.phase] += 1
            self._start()
            self._back_at = self.cluster.now + self.cluster.rng.choice((0.0, 1.0, 3.0))

    def _tick(self) -> None:
        self._point("begin")
        check = self._check[1] if self._check is not None and self._check[0] <= self.cluster.now else None
        seen = self.cluster.observed(self._mine, check)
        decision = decide(self._mine, seen)
        again = decide(decision.rollout, seen)
        if (again.rollout, again.actions) != (decision.rollout, decision.actions):
            raise Broken("asked again it says something else")
        if not decision.why:
            raise Broken("it does not say why")
        self.whys.append(decision.why)
        self._point("decided")
        if self.stores_first:
            self._store(decision.rollout)
        for action in decision.actions:
            self._point("before an action")
            if isinstance(action, Verify):
                self._verify(action)
            else:
                self.cluster.do(action)
            self._point("after an action")
        if not self.stores_first:
            self._store(decision.rollout)
        watch_s = self._mine.watch_s
        if watch_s != self._watch_s:
            self._watch_s = watch_s
            self.cluster.window = None if watch_s is None else Window(max(watch_s, self.cluster.now))

    def _store(self, rollout: Rollout) -> None:
        self.stored, self._mine = msgspec.json.encode(rollout), rollout
        if rollout.phase is not self.phases[-1]:
            self.phases.append(rollout.phase)
        self._point("stored")

    def _verify(self, action: Verify) -> None:
        if self._check is None:
            check = Check(
                version=action.version,
                problems=self.cluster.problems,
                same_architecture=self.cluster.same_architecture,
                golden=5,
            )
            self._check = (self.cluster.now + 2.0, check)

    def _point(self, name: str) -> None:
        if self.kill(name, self._mine):
            raise Killed

    def run(self, seconds: float = 3000.0, settle_s: float = 60.0) -> Rollout:
        """Until it has ended and a while more; the same rollout: it has not."""
        until = self.cluster.now + seconds
        while not self.rollout.ended and self.cluster.now < until:
            self.tick()
        for _ in range(int(settle_s)):
            self.tick()
        return self.rollout

    def is_consistent(self) -> bool:
        """All replicas have the version that the recorded decision says, and so have those that will come."""
        stable, cluster = self.rollout.stable, self.cluster
        assignment = cluster.assignment
        touched = assignment is not None or self.rollout.phase is not Phase.FAILED
        return (
            len(cluster.replicas) == cluster.wanted
            and cluster.extra == 0
            and all(r.version == stable and r.swap is None for r in cluster.replicas.values())
            and (
                not touched or (assignment is not None and (assignment.stable, assignment.new_replica) == (stable,) * 2)
            )
        )

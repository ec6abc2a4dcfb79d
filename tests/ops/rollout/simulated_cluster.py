"""A cluster in virtual time.

Replicas take time to load and to swap, fail at it, die and come back; the router forgets; requests run for a while and
are pinned to the version that they began with. The cluster itself checks what must never be (`Broken`).
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from ops.rollout.actions import Action, Assign, Drain, Restart, Scale, SwapReplica, Verify
from ops.rollout.observed import Check, Observed, ReplicaSeen
from ops.rollout.samples import Request, Window
from ops.rollout.state import Rollout
from replicas.assignment import Assignment
from replicas.messages import SwapReport


class Broken(AssertionError):
    """Something happened that must never happen."""


@dataclass
class Version:
    """How a version is: good, unless something is said."""

    name: str
    ttft_s: float = 0.2
    tokens: float = 40.0
    errors: float = 0.0
    load: str = "loads"  # or "fails", "crashes", "hangs"; "hangs in place": only in a swap
    probes: str = "pass"  # or "fail" (the replica sees it) or "inexact" (it is for the rollout to judge)

    @property
    def may_serve(self) -> bool:
        return self.starts and self.probes == "pass"

    @property
    def starts(self) -> bool:
        return self.load in ("loads", "hangs in place")


QUICK = {
    "version": "v2",
    "step_s": 20.0,
    "settle_s": 2.0,
    "min_samples": 60,
    "finish_s": 6.0,
    "swap_timeout_s": 40.0,
    "deadline_s": 400.0,
}
BAD = {
    "slow to begin": Version("v2", ttft_s=0.4),
    "errors": Version("v2", errors=0.2),
    "long answers": Version("v2", tokens=100),
    "short answers": Version("v2", tokens=12),
}
BROKEN = {
    "does not load": Version("v2", load="fails"),
    "crashes": Version("v2", load="crashes"),
    "hangs": Version("v2", load="hangs"),
    "wrong answers": Version("v2", probes="fail"),
    "inexact answers": Version("v2", probes="inexact"),
}


@dataclass
class Running:
    version: str
    began_s: float
    ends_s: float
    mirror: bool = False


@dataclass
class Swapping:
    command: SwapReplica
    began_s: float
    report: SwapReport
    loads_at: float | None = None


@dataclass
class Replica:
    replica_id: str
    version: str
    up_at: float  # when it has loaded
    draining: bool = False
    in_roster_at: float = 0.0  # a restarted router hears of it then
    running: list[Running] = field(default_factory=list)
    swap: Swapping | None = None
    ended: SwapReport | None = None  # of the last swap
    carried_out: set[str] = field(default_factory=set)
    healed: bool = False


class Cluster:
    """`wanted` replicas of `served`. Times in seconds; a tick is one."""

    def __init__(
        self, wanted: int, served: Version, rolled: Version, seed: int = 0, rate: float = 12.0, load_s: float = 6.0
    ) -> None:
        self.rng, self.now, self.rate, self.load_s = random.Random(seed), 1000.0, rate, load_s
        self.versions = {version.name: version for version in (served, rolled)}
        self.wanted, self.extra = wanted, 0
        self.assignment: Assignment | None = None
        self.in_effect_at = 0.0
        self.router_at = 0.0  # it answers from then on
        self.replicas: dict[str, Replica] = {}
        self.dead: set[str] = set()
        self.load_failure = ""
        self.cannot_load = False  # nothing that starts can load: no machine
        self.made = 0
        self.served: Counter[str] = Counter()
        self.unserved = 0
        self.cut = 0
        self.window: Window | None = None
        self.same_architecture = True
        self.problems: tuple[str, ...] = ()
        self.proven: set[str] = {served.name}
        self.out: set[str] = set()  # replicas that the rollout has taken out of rotation
        self.most_out = 0
        for _ in range(wanted):
            self._start(served.name, self.now)

    # -- what happens by itself ---------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.now += 1.0
        for replica in list(self.replicas.values()):
            self._finish_requests(replica)
            self._go_on_with_swap(replica)
            if replica.up_at <= self.now and not self.versions[replica.version].starts:
                self.load_failure = f"{replica.version}: tensors of wrong names"
                self._end(replica)  # it was started with a version that does not load
        to_start = self.wanted + self.extra - len(self.replicas)
        new = self.assignment.new_replica if self.assignment else self._first
        for _ in range(to_start if not self.cannot_load else 0):
            self._start(new, self.now + self.load_s)
        surplus = [r for r in self.replicas.values() if r.swap is None]
        for _ in range(min(-to_start, len(surplus))):
            self._end(surplus.pop(self.rng.randrange(len(surplus))))
        self._arrive()

    @property
    def _first(self) -> str:
        return next(iter(self.versions))

    def _start(self, version: str, up_at: float) -> None:
        self.made += 1
        replica_id = f"r{self.made}"
        self.replicas[replica_id] = Replica(replica_id, version, up_at)

    def _end(self, replica: Replica) -> None:
        del self.replicas[replica.replica_id]
        self.dead.add(replica.replica_id)
        self.out.discard(replica.replica_id)

    def _finish_requests(self, replica: Replica) -> None:
        for request in [request for request in replica.running if request.ends_s <= self.now]:
            replica.running.remove(request)
            version = self.versions[request.version]
            if replica.version != request.version:
                raise Broken(f"a request of {request.version} ended on {replica.version}")
            if self.window is not None:
                failed = self.rng.random() < version.errors
                self.window.add(
                    Request(
                        version=version.name,
                        began_s=request.began_s,
                        prompt_tokens=32,
                        ttft_s=version.ttft_s * self.rng.lognormvariate(0, 0.3),
                        tpot_s=0.02 * self.rng.lognormvariate(0, 0.2),
                        output_tokens=max(int(version.tokens * self.rng.lognormvariate(0, 0.3)), 2),
                        failed=failed,
                        mirror=request.mirror,
                    )
                )

    def _go_on_with_swap(self, replica: Replica) -> None:
        swap = replica.swap
        if swap is None:
            return
        version = self.versions[swap.command.version]
        if swap.loads_at is None:
            if replica.running and self.now - swap.began_s < 5.0:
                return
            self.cut += len(replica.running)
            replica.running.clear()
            swap.loads_at = self.now + 2.0
            swap.report = SwapReport(id=swap.command.id, version=version.name, phase="loading")
        if self.now < swap.loads_at or version.load in ("hangs", "hangs in place"):
            return
        if version.load == "crashes":
            self._end(replica)
            return
        replica.swap = None
        if version.load == "fails" or version.probes == "fail":
            detail = "tensors do not fit" if version.load == "fails" else "1 of 5 answers exact"
            replica.ended = SwapReport(id=swap.command.id, version=version.name, phase="failed", detail=detail)
        else:
            exact = 5 if version.probes == "pass" else 3
            if version.probes == "pass":
                self.proven.add(version.name)
            replica.version = version.name
            replica.ended = SwapReport(id=swap.command.id, version=version.name, phase="done", exact=exact, asked=5)
        self.out.discard(replica.replica_id)

    def _arrive(self) -> None:
        takers = [r for r in self.replicas.values() if self._takes(r)]
        versions = {replica.version for replica in takers}
        assignment = self._acted_on
        if assignment is None or assignment.traffic is None:
            shares = {version: float(sum(r.version == version for r in takers)) for version in versions}
        else:
            shares = {v: share for v, share in assignment.traffic.items() if v in versions and share > 0.0}
        for _ in range(self.rng.randrange(int(2 * self.rate) + 1)):
            if not shares:
                self.unserved += 1
                continue
            version = self.rng.choices(list(shares), list(shares.values()))[0]
            self._grant(takers, version)
            if assignment is not None and (mirror := assignment.mirror) and self.rng.random() < mirror.share:
                self._grant(takers, mirror.version, True)

    def _grant(self, takers: list[Replica], version: str, mirror: bool = False) -> None:
        able = [replica for replica in takers if replica.version == version]
        if not able:
            return
        if version not in self.proven:
            raise Broken(f"{version} was given traffic before its probes passed")
        if not self.versions[version].may_serve:
            raise Broken(f"{version} was given traffic though its probes failed")
        replica = self.rng.choice(able)
        replica.running.append(Running(version, self.now, self.now + self.rng.randrange(1, 7), mirror))
        self.served[version] += not mirror

    def _takes(self, replica: Replica) -> bool:
        return self._in_roster(replica) and not replica.draining and replica.swap is None

    def _in_roster(self, replica: Replica) -> bool:
        return replica.up_at <= self.now and replica.in_roster_at <= self.now and self.router_at <= self.now

    @property
    def _acted_on(self) -> Assignment | None:
        return self.assignment if self.in_effect_at <= self.now else None

    # -- what may happen to it ----------------------------------------------------------------------------------------

    def kill_replica(self) -> None:
        """One at random dies; Serve starts another."""
        if self.replicas:
            self._end(self.rng.choice(list(self.replicas.values())))

    def restart_router(self) -> None:
        """It forgets all; replicas join again, those that swap only when they are through."""
        self.router_at = self.now + 2.0
        for replica in self.replicas.values():
            replica.in_roster_at = self.now + 2.0 + self.rng.random() * 3.0
            replica.ended = None

    def drain(self) -> None:
        if self.replicas:
            self.rng.choice(list(self.replicas.values())).draining = True

    def undrain(self) -> None:
        for replica in self.replicas.values():
            replica.draining = False

    # -- what the shell sees and does ---------------------------------------------------------------------------------

    def observed(self, rollout: Rollout, check: Check | None) -> Observed:
        if self.window is not None:
            running = Counter(r.version for replica in self.replicas.values() for r in replica.running)
            self.window.running(dict(running))
        roster = tuple(self._seen(r) for r in self.replicas.values() if self._in_roster(r))
        turn = rollout.turn
        return Observed(
            now_s=self.now,
            replicas=roster if self.router_at <= self.now else None,
            wanted=self.wanted,
            extra=self.extra,
            assignment=self.assignment,
            in_effect=self.assignment is not None and self.in_effect_at <= self.now,
            check=check,
            samples=self.window.samples() if self.window is not None else {},
            turn_lives=None if turn is None else turn.replica_id in self.replicas,
            load_failure=self.load_failure,
        )

    def _seen(self, replica: Replica) -> ReplicaSeen:
        return ReplicaSeen(
            replica_id=replica.replica_id,
            version=replica.version,
            draining=replica.draining,
            swap=replica.swap.report if replica.swap is not None else replica.ended,
            running=len(replica.running),
        )

    def do(self, action: Action) -> None:
        match action:
            case Assign(stable=stable, new_replica=new_replica, traffic=traffic, mirror=mirror):
                revision = self.assignment.revision + 1 if self.assignment is not None else 1
                self.assignment = Assignment(
                    revision=revision, stable=stable, new_replica=new_replica, traffic=traffic, mirror=mirror
                )
                self.in_effect_at = max(self.now, self.router_at)
                self.load_failure = ""
            case Scale(extra=extra):
                self.extra = extra
            case SwapReplica():
                self._swap(action)
            case Drain(replica_id=replica_id):
                if (replica := self.replicas.get(replica_id)) is not None:
                    replica.draining = True
                    self._is_out(replica_id)
            case Restart(replica_id=replica_id):
                if (replica := self.replicas.get(replica_id)) is not None:
                    self.cut += len(replica.running)
                    self._end(replica)
            case Verify():
                pass  # the shell's

    def _swap(self, command: SwapReplica) -> None:
        replica = self.replicas.get(command.replica_id)
        if replica is None or replica.swap is not None or not self._in_roster(replica):
            return
        if replica.ended is not None and replica.ended.id == command.id:
            return
        self._is_out(command.replica_id)
        report = SwapReport(id=command.id, version=command.version, phase="finishing")
        replica.swap, replica.ended = Swapping(command, self.now, report), None

    def _is_out(self, replica_id: str) -> None:
        self.out.add(replica_id)
        self.most_out = max(self.most_out, len(self.out))
        if len(self.out) > 1:
            raise Broken(f"{sorted(self.out)} are out of rotation at once")
        traffic = self._acted_on.traffic if self._acted_on is not None else None
        gets = {r.replica_id for r in self.replicas.values() if self._takes(r)}
        if traffic is not None:
            gets = {replica_id for replica_id in gets if traffic.get(self.replicas[replica_id].version)}
        others = [r for r in self.replicas.values() if not r.draining and r.replica_id != replica_id]
        if gets == {replica_id} and any(not self._takes(r) for r in others):
            raise Broken(f"{replica_id} is the last that gets requests, and others are coming")

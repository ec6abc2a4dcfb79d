"""`moray bench gates`: how often a rollout's gates roll back a version just like the old one, and find a worse one.

Whole rollouts with `decide` on a made-up cluster whose swaps take no time. Its requests are as unpleasant as real ones:
skewed, of many sizes, in bursts that slow all replicas, with moments that slow one, and replicas that differ a little.
"""

import math
import random
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from rich.table import Table

from ops.rollout.actions import Assign, SwapReplica
from ops.rollout.decide import decide
from ops.rollout.observed import Check, Observed, ReplicaSeen
from ops.rollout.samples import Request, Window
from ops.rollout.spec import RolloutSpec
from ops.rollout.state import Phase, started
from replicas.assignment import Assignment
from replicas.messages import SwapReport

OLD, NEW = "v1", "v2"
TICK_S = 2.0
LIMIT_S = 6 * 3600.0
LONGEST = 2048  # output tokens


class Fault(NamedTuple):
    """In what the new version differs; each factor 1 and no more errors: in nothing."""

    name: str
    ttft: float = 1.0
    tpot: float = 1.0
    tokens: float = 1.0
    errors: float = 0.0  # share of failed requests above the old version's
    endless: float = 0.0  # share of its answers that find no end


SAME = Fault("none")
FAULTS = (
    Fault("ttft x 1.5", ttft=1.5),
    Fault("tpot x 1.5", tpot=1.5),
    Fault("5% errors", errors=0.05),
    Fault("length x 2", tokens=2.0),
    Fault("length / 2", tokens=0.5),
    Fault("30% endless", endless=0.3),
)


class Outcome(NamedTuple):
    promoted: bool
    by_gate: str  # name of the gate that said no; "": none did
    seconds: float  # from the first canary token to the decision
    bad_share: float  # of the requests in that time, those that the new version answered


class Moments:
    """A factor that wanders around 1 (Ornstein and Uhlenbeck): neighbouring seconds are alike."""

    def __init__(self, rng: random.Random, spread: float, seconds: float) -> None:
        self._rng, self._spread, self._kept = rng, spread, math.exp(-TICK_S / seconds)
        self._log = rng.gauss(0.0, spread)

    def next(self) -> float:
        self._log = self._log * self._kept + self._rng.gauss(0.0, self._spread * math.sqrt(1.0 - self._kept**2))
        return math.exp(self._log)


class World:
    """Some replicas and their requests, in ticks."""

    def __init__(self, fault: Fault, replicas: int, rate: float, seed: int) -> None:
        self.rng, self.fault, self.rate = random.Random(seed), fault, rate
        self.now = 0.0
        self.versions = [OLD] * replicas
        self.swaps: list[SwapReport | None] = [None] * replicas
        self.assignment: Assignment | None = None
        self._load = Moments(self.rng, 0.35, 20.0)  # a burst: all wait longer
        self._own = [Moments(self.rng, 0.12, 10.0) for _ in range(replicas)]
        self._machine = [self.rng.gauss(1.0, 0.03) for _ in range(replicas)]
        self._open: list[tuple[float, Request]] = []  # when it ends
        self.served = {OLD: 0, NEW: 0}
        self.window: Window | None = None

    def tick(self) -> None:
        self.now += TICK_S
        load, own = self._load.next(), [moment.next() for moment in self._own]
        arrivals = self.rng.gauss(0.0, 1.0) * math.sqrt(self.rate * TICK_S) + self.rate * TICK_S
        for _ in range(max(round(arrivals), 0)):
            version = self._version()
            replica = self.rng.choice([at for at, name in enumerate(self.versions) if name == version])
            began_s = self.now - self.rng.random() * TICK_S
            self._open.append(self._request(replica, began_s, load * own[replica] * self._machine[replica]))
        for _, request in (ended := [one for one in self._open if one[0] <= self.now]):
            if self.window is not None:
                self.window.add(request)
        if ended:
            self._open = [one for one in self._open if one[0] > self.now]

    def _version(self) -> str:
        traffic = self.assignment.traffic if self.assignment is not None else None
        if traffic is None:
            return self.rng.choice(self.versions)
        name = self.rng.choices(list(traffic), list(traffic.values()))[0]
        return name if name in self.versions else self.versions[0]

    def _request(self, replica: int, began_s: float, slow: float) -> tuple[float, Request]:
        rng, version = self.rng, self.versions[replica]
        fault = self.fault if version == NEW else SAME
        prompt = max(int(rng.lognormvariate(math.log(400.0), 1.2)), 1)
        ttft_s = fault.ttft * slow * (0.1 + prompt / 10_000) * rng.lognormvariate(0.0, 0.4)
        tpot_s = fault.tpot * math.sqrt(slow) * 0.02 * rng.lognormvariate(0.0, 0.15)
        tokens = min(max(int(fault.tokens * rng.lognormvariate(math.log(150.0), 0.8)), 1), LONGEST)
        tokens = LONGEST if rng.random() < fault.endless else tokens
        failed = rng.random() < 0.002 + fault.errors
        self.served[version] += 1
        seconds = ttft_s + (0.0 if failed else tpot_s * (tokens - 1))
        request = Request(version, began_s, prompt, ttft_s, tpot_s if tokens > 1 else None, tokens, failed)
        return began_s + seconds, request

    def observed(self) -> Observed:
        if self.window is not None:
            running = [request.version for _, request in self._open]
            self.window.running({name: running.count(name) for name in (OLD, NEW)})
        replicas = [
            ReplicaSeen(replica_id=str(at), version=version, swap=self.swaps[at])
            for at, version in enumerate(self.versions)
        ]
        return Observed(
            now_s=self.now,
            replicas=tuple(replicas),
            wanted=len(self.versions),
            assignment=self.assignment,
            in_effect=self.assignment is not None,
            check=Check(version=NEW),
            samples=self.window.samples() if self.window is not None else {},
        )

    def do(self, action: object) -> None:
        if isinstance(action, Assign):
            shares, new = action.traffic, action.new_replica
            self.assignment = Assignment(revision=0, stable=action.stable, new_replica=new, traffic=shares)
        elif isinstance(action, SwapReplica):
            at = int(action.replica_id)
            self.versions[at] = action.version
            self.swaps[at] = SwapReport(id=action.id, version=action.version, phase="done")


def roll(fault: Fault, replicas: int, rate: float, spec: RolloutSpec, seed: int) -> Outcome:
    """One rollout, until it is decided."""
    world, rollout = World(fault, replicas, rate, seed), started("bench", spec, OLD, 0.0)
    watch_s, first_s, before = None, 0.0, {OLD: 0, NEW: 0}
    while rollout.phase in (Phase.PENDING, Phase.VERIFYING, Phase.CANARY, Phase.PROMOTING) and world.now < LIMIT_S:
        world.tick()
        decision = decide(rollout, world.observed())
        rollout = decision.rollout
        for action in decision.actions:
            world.do(action)
        if rollout.watch_s != watch_s:
            watch_s = rollout.watch_s
            world.window = None if watch_s is None else Window(watch_s, seed)
        if not first_s and world.served[NEW]:
            first_s, before = world.now, dict(world.served)
    served = {name: world.served[name] - before[name] for name in world.served}
    no = [gate.name for gate in rollout.gates if gate.answer.value == "no"]
    return Outcome(
        promoted=rollout.phase is Phase.DONE,
        by_gate=no[0] if no else "",
        seconds=world.now - first_s,
        bad_share=served[NEW] / max(served[OLD] + served[NEW], 1),
    )


def measure(
    rollouts: int, replicas: int, rate: float, spec: RolloutSpec, report: Callable[[str], None]
) -> dict[str, Any]:
    """See `moray bench gates --help`."""
    rows = {}
    for fault in (SAME, *FAULTS):
        outcomes = [roll(fault, replicas, rate, spec, seed) for seed in range(rollouts)]
        rows[fault.name] = _row(outcomes)
        report(f"{fault.name}: {rows[fault.name]['rolled_back']} of {rollouts} rolled back")
    same = rows.pop(SAME.name)
    return {
        "false_rollback": round(same["rolled_back"] / rollouts, 4),
        "detected": round(min(row["rolled_back"] / rollouts for row in rows.values()), 4),
        "rollouts": rollouts,
        "replicas": replicas,
        "rate": rate,
        "min_samples": spec.min_samples,
        "identical": same,
        "faults": rows,
    }


def _row(outcomes: list[Outcome]) -> dict[str, Any]:
    back = [outcome for outcome in outcomes if not outcome.promoted]
    named = sorted({outcome.by_gate or "deadline" for outcome in back})
    return {
        "rolled_back": len(back),
        "by": {name: sum((outcome.by_gate or "deadline") == name for outcome in back) for name in named},
        "promote_p50_s": _median([outcome.seconds for outcome in outcomes if outcome.promoted], 0),
        "rollback_p50_s": _median([outcome.seconds for outcome in back], 0),
        "rollback_max_s": round(max((outcome.seconds for outcome in back), default=0.0)) if back else None,
        "bad_share_p50": _median([outcome.bad_share for outcome in back], 4),
    }


def _median(values: list[float], digits: int) -> float | None:
    return round(median(values), digits) if values else None


def table(figures: dict[str, Any]) -> Table:
    """The faults, how many were rolled back, by which gate and how soon."""
    title = f"false rollbacks {figures['false_rollback']:.1%}, detected {figures['detected']:.1%} or more"
    shown = Table(title=title)
    for column in ("new version", "rolled back", "by", "rollback p50", "max", "its share of the requests"):
        shown.add_column(column)
    for name, row in {"just like the old": figures["identical"], **figures["faults"]}.items():
        by = ", ".join(f"{gate} {count}" for gate, count in row["by"].items())
        times = ["-" if row[key] is None else f"{row[key]:,.0f} s" for key in ("rollback_p50_s", "rollback_max_s")]
        share = "-" if row["bad_share_p50"] is None else f"{row['bad_share_p50']:.1%}"
        shown.add_row(name, f"{row['rolled_back']} of {figures['rollouts']}", by, *times, share)
    return shown

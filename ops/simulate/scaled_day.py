"""Clusters that are scaled through a day: any number of scalers on the same load, each with its own replicas. Pure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cluster.autoscaling import Observation, Pace, Scaling, State, decide
from ops.simulate.fluid import DRAIN_S, PACE, Array, Costs, Day, Fluid, Seen, costs
from ops.simulate.results import Slo
from replicas.step_time import Machine

EVERY_S = 10  # seconds between two decisions; Ray Serve's replicas and handles push their metrics that often


class Look(NamedTuple):
    """What a scaler is shown. Rates and means are of the last `EVERY_S` seconds."""

    now_s: float
    ready: int
    loading: int
    draining: int
    running: float
    queued: float  # mean
    queued_least: float  # that waited all the time
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    kv_used: float
    attainment: float  # of the last minute
    target: int  # of its last answer

    @property
    def ongoing(self) -> float:
        return self.running + self.queued


class Scaler(Protocol):
    """Says how many replicas there should be, ready and loading together."""

    def __call__(self, look: Look) -> int: ...


class Ours:
    """`cluster.autoscaling`, with its state."""

    def __init__(self, scaling: Scaling, pace: Pace) -> None:
        self._scaling = scaling
        self._pace = pace
        self._state = State()

    def __call__(self, look: Look) -> int:
        seen = Observation(
            now_s=look.now_s,
            ready=look.ready,
            loading=look.loading,
            draining=look.draining,
            running=round(look.running),
            queued=round(look.queued_least),
            queued_tokens=round(look.queued_least * look.prompt_tokens_per_s / max(look.requests_per_s, 1e-9)),
            prompt_tokens_per_s=look.prompt_tokens_per_s,
            # The true sum; the router has its expectation by tenant and prompt length instead.
            output_tokens_per_s=look.output_tokens_per_s,
            kv_used=look.kv_used,
            attainment=look.attainment,
        )
        decision = decide(seen, self._state, self._scaling, self._pace)
        self._state = decision.state
        return decision.target


class Outcome(NamedTuple):
    """One run."""

    replica_hours: float
    attainment: float
    most: int
    changes: int  # of the number of replicas
    worst_hour: float  # attainment


def pace(machine: Machine, slo: Slo, classes: int) -> Pace:
    """What a replica does within the SLO: at the time per token's limit all costs are linear in the tokens."""
    c: Costs = costs(machine.step, classes)
    limit = PACE * slo.tpot_s
    share = (limit - c.fixed_s - c.experts_s) / limit
    # Of the second class on, decoding tokens differ a little by their context; the mean is what a router would learn.
    return Pace(share / c.prefill_s, share / float(np.mean(c.decode_s)))


class _Replicas:
    """One run's, their loading, and what they cost."""

    def __init__(self, count: int) -> None:
        self.ready = count
        self.loading: list[float] = []  # when each will be ready, the earliest first
        self.draining: list[float] = []  # until when each is paid for
        self.target = count
        self.hours = 0.0
        self.most = count
        self.changes = 0

    def become(self, now_s: float) -> None:
        while self.loading and self.loading[0] <= now_s:
            self.loading.pop(0)
            self.ready += 1
        self.draining = [until for until in self.draining if until > now_s]

    def scale(self, target: int, now_s: float, load_s: float) -> None:
        self.changes += target != self.target
        self.target = target
        self.loading += [now_s + load_s] * (target - self.ready - len(self.loading))
        while self.ready + len(self.loading) > target:
            if self.loading:  # Ray Serve stops those first that do not run yet
                self.loading.pop()
            else:
                self.ready -= 1
                self.draining.append(now_s + DRAIN_S)
        paid = self.ready + len(self.loading) + len(self.draining)
        self.hours += paid * EVERY_S / 3600.0
        self.most = max(self.most, paid)


def run(
    load: Day,
    scalers: Sequence[Scaler],
    machine: Machine,
    slo: Slo,
    start: int,
    load_s: float,
    progress: Callable[[float], None] | None = None,
) -> list[Outcome]:
    """The day for each scaler, from `start` replicas."""
    seconds, classes = load.requests.shape
    fluid = Fluid(len(scalers), machine, slo, classes)
    clusters = [_Replicas(start) for _ in scalers]
    minute: list[tuple[Array, float]] = []
    hours_good, hours_all = np.zeros((25, len(scalers))), np.zeros(25)
    for begin in range(0, seconds - EVERY_S + 1, EVERY_S):
        for cluster in clusters:
            cluster.become(begin)
        seen: Seen = fluid.advance(load, begin, EVERY_S, np.array([c.ready for c in clusters], dtype=np.float64))
        hours_good[begin // 3600] += seen.good
        hours_all[begin // 3600] += seen.all
        minute = [*minute[-5:], (seen.good, seen.all)]
        good = np.sum([g for g, _ in minute], axis=0)
        total = sum(a for _, a in minute)
        attained: Array = good / total if total else np.ones(len(scalers))
        now_s = begin + EVERY_S
        prompt = float(load.prompt_tokens[begin:now_s].sum()) / EVERY_S
        output = float(load.output_tokens[begin:now_s].sum()) / EVERY_S
        requests = seen.all / EVERY_S
        columns = (seen.running, seen.queued, seen.queued_least, seen.kv_used, attained)
        for cluster, scaler, (running, queued, least, kv, share) in zip(
            clusters, scalers, zip(*(column.tolist() for column in columns), strict=True), strict=True
        ):
            look = Look(
                now_s,
                cluster.ready,
                len(cluster.loading),
                len(cluster.draining),
                running,
                queued,
                least,
                requests,
                prompt,
                output,
                kv,
                share,
                cluster.target,
            )
            cluster.scale(scaler(look), now_s, load_s)
        if progress is not None and begin % 3600 == 0:
            progress(begin)
    hourly = [hours_good[h] / hours_all[h] for h in range(25) if hours_all[h]]
    return [
        Outcome(c.hours, float(fluid.good[i] / fluid.arrived), c.most, c.changes, float(min(h[i] for h in hourly)))
        for i, c in enumerate(clusters)
    ]

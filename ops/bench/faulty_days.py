"""Days of a cluster as its detectors are told of them, with faults put in. Made up, repeatable by seed.

Load and latency have a daily rhythm, days differ, requests have heavy tails, and a good day has its small troubles:
single errors and restarts, reports that stay away, short bursts. None of these is a fault.
"""

import heapq
import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from ops.anomaly.observations import ExpertReport, ModelReport, Observation, ReplicaReport, Request
from ops.simulate.workloads import CONV_IN, CONV_OUT, Workload

MODEL = "model@1"
REPLICAS = ("r0", "r1", "r2", "r3")
DAY_S, TICK_S = 86400.0, 5.0
PEAK_S = 14 * 3600.0
GAP_S = 2400.0  # between two faults, at least
HANG_TIMEOUT_S = 15.0  # after which the router gives a frozen replica nothing more

LATENCY = frozenset({"slo-burn-fast", "slo-burn-slow", "model-latency", "replica-latency", "ttft-drift", "tpot-drift"})


class Sort(NamedTuple):
    """One sort of fault. Any of `alarms` detects it; `also` are true as well while it lasts."""

    name: str
    lasts_s: float
    alarms: frozenset[str]
    also: frozenset[str] = frozenset()
    one_replica: bool = False


def _sort(name: str, minutes: float, alarms: str, also: frozenset[str] = frozenset(), one: bool = False) -> Sort:
    return Sort(name, minutes * 60.0, frozenset(alarms.split()), also, one)


SORTS = (
    _sort("slow replica (3.5x)", 20, "replica-latency", LATENCY, True),
    _sort("slow replica within the limit (1.6x)", 90, "tpot-drift", frozenset({"ttft-drift"}), True),
    _sort("frozen replica", 5, "up-but-not-serving", LATENCY, True),
    _sort("overload burst", 15, "slo-burn-fast model-latency", LATENCY),
    _sort("error burst", 3, "error-burst", LATENCY),
    _sort("gradual drift of TPOT (to 1.8x in 6 h)", 360, "tpot-drift", LATENCY - {"ttft-drift"}),
    _sort("slow prefill (1.6x)", 120, "ttft-drift", frozenset({"slo-burn-slow"})),
    _sort("flapping replica", 12, "replica-flapping"),
    _sort("skewed experts", 20, "expert-imbalance"),
    _sort("stuck queue", 3, "stuck-queue", LATENCY),
    _sort("brown-out (12% of requests late)", 240, "slo-burn-fast", frozenset({"slo-burn-slow"})),
)
(SLOW, MILD, FROZEN, OVERLOAD, ERRORS, DRIFT, PREFILL, FLAPS, SKEW, STUCK, BROWN_OUT) = SORTS


class Fault(NamedTuple):
    sort: Sort
    begin_s: float
    replica: str | None

    @property
    def end_s(self) -> float:
        return self.begin_s + self.sort.lasts_s


def faults(rng: random.Random, begin_s: float, days: float) -> list[Fault]:
    """Each sort once, in random order, at random times, `GAP_S` or more apart. ValueError: too few days."""
    order = rng.sample(SORTS, len(SORTS))
    spare = days * DAY_S - sum(sort.lasts_s + GAP_S for sort in order)
    if spare < 0:
        raise ValueError(f"{days:g} days are too few for all faults")
    cuts = sorted(rng.uniform(0.0, spare) for _ in order)
    placed, used = [], 0.0
    for sort, cut in zip(order, cuts, strict=True):
        placed.append(Fault(sort, begin_s + cut + used, rng.choice(REPLICAS) if sort.one_replica else None))
        used += sort.lasts_s + GAP_S
    return placed


class Days:
    """The observations of so many days, tick by tick."""

    def __init__(self, rng: random.Random, days: int, placed: list[Fault], rate: float, recorded: Workload | None):
        self._rng, self._days, self._faults, self._rate, self._recorded = rng, days, placed, rate, recorded
        self._factors = [rng.uniform(0.85, 1.15) for _ in range(days + 1)]
        self._bursts = [d * DAY_S + rng.uniform(0, DAY_S) for d in range(days) for _ in range(3)]  # a minute each
        self._gaps = [d * DAY_S + rng.uniform(0, DAY_S) for d in range(days) for _ in range(2)]  # two minutes each
        self._restarts_s = sorted(d * DAY_S + rng.uniform(0, DAY_S) for d in range(days))  # one a day is no flapping
        self._flying: list[tuple[float, int, Request, float]] = []  # (end, order, what is seen, arrival)
        self._stalled: set[str] = set()
        self._tokens = dict.fromkeys(REPLICAS, 0)
        self._granted = self._restarts = self._order = self._held = 0

    def ticks(self) -> Iterator[tuple[float, list[Observation]]]:
        """(time, what was seen since the last tick, in order), every TICK_S."""
        arrivals = self._arrivals()
        following = next(arrivals, None)
        for number in range(1, int(self._days * DAY_S / TICK_S) + 1):
            now = number * TICK_S
            while following is not None and following[0] < now:
                self._arrive(*following)
                following = next(arrivals, None)
            seen: list[Observation] = []
            while self._flying and self._flying[0][0] <= now:
                seen.append(heapq.heappop(self._flying)[2])
            if not any(gap <= now < gap + 120.0 for gap in self._gaps):
                seen += self._reports(now)
            yield now, seen

    def load(self, at_s: float) -> float:
        """Of the peak of a usual day, between a sixth and about 1.2."""
        rhythm = 0.55 + 0.45 * math.cos(2 * math.pi * (at_s - PEAK_S) / DAY_S)
        day = at_s / DAY_S
        low = int(day)
        factor = self._factors[low] * (1 - day % 1) + self._factors[min(low + 1, self._days)] * (day % 1)
        return max(rhythm, 1 / 6) * factor * (1.6 if any(b <= at_s < b + 60.0 for b in self._bursts) else 1.0)

    def _arrivals(self) -> Iterator[tuple[float, int, int]]:
        """(time, prompt tokens, output tokens): the recording over and over, thinned to the rhythm; or made up."""
        rng, end_s = self._rng, self._days * DAY_S
        if self._recorded is not None:
            keep, begin = self._rate / 0.55 / self._recorded.rate, 0.0
            while begin < end_s:
                for arrival in self._recorded.arrivals:
                    at = begin + arrival.at_s
                    if rng.random() < keep and rng.random() < self.load(at) / 1.6:
                        yield at, arrival.prompt_tokens, arrival.output_tokens
                begin += self._recorded.duration_s
            return
        at, most = 0.0, self._rate / 0.55
        while (at := at + rng.expovariate(most)) < end_s:
            if rng.random() < self.load(at) / 1.6:
                yield at, CONV_IN.draw(rng), CONV_OUT.draw(rng)

    def _arrive(self, at_s: float, prompt: int, output: int) -> None:
        """Decides what the request will look like at its end."""
        rng, load = self._rng, self.load(at_s)
        now = {fault.sort: fault for fault in self._faults if fault.begin_s <= at_s < fault.end_s}
        frozen = now.get(FROZEN)
        serving = [r for r in REPLICAS if not frozen or r != frozen.replica or at_s < frozen.begin_s + HANG_TIMEOUT_S]
        replica = rng.choice(serving)
        tail = rng.uniform(2.0, 8.0) if rng.random() < 0.005 else 1.0
        ttft = (0.06 + prompt * 6e-5 * (1.0 + load)) * rng.lognormvariate(0.0, 0.3) * tail
        tpot = 0.013 * (1.0 + load) * rng.lognormvariate(0.0, 0.12)
        failed, shed = rng.random() < (0.5 if ERRORS in now else 0.001), False
        for sort, by in ((SLOW, 3.5), (MILD, 1.6)):
            if sort in now and now[sort].replica == replica:
                ttft, tpot = ttft * by, tpot * by
        if frozen and frozen.replica == replica:
            # Its streams go on elsewhere once the router has noticed.
            ttft, replica = ttft + HANG_TIMEOUT_S, rng.choice([r for r in REPLICAS if r != replica])
        if OVERLOAD in now:
            ttft, shed = ttft + rng.uniform(1.0, 6.0), rng.random() < 0.3
        if DRIFT in now:
            tpot *= 1.0 + 0.8 * (at_s - now[DRIFT].begin_s) / DRIFT.lasts_s
        if PREFILL in now:
            ttft *= 1.6
        if BROWN_OUT in now and rng.random() < 0.12:
            ttft += rng.uniform(1.0, 3.0)
        if STUCK in now:
            ttft += now[STUCK].end_s - at_s
            self._held += 1
        else:
            self._granted += 1
        aborted = rng.random() < 0.01
        nothing = aborted or failed or shed
        end = at_s + (0.05 if nothing else ttft + tpot * output)
        first, further = (None, None) if nothing else (ttft, tpot if output > 1 else None)
        seen = Request(end, MODEL, replica, prompt, first, further, failed, shed)
        self._order += 1
        heapq.heappush(self._flying, (end, self._order, seen, at_s))

    def _reports(self, now_s: float) -> Iterator[Observation]:
        rng = self._rng
        now = {fault.sort: fault for fault in self._faults if fault.begin_s <= now_s < fault.end_s}
        running = dict.fromkeys(REPLICAS, 0)
        for _, _, request, _ in self._flying:
            running[request.replica] += 1
        for replica in REPLICAS:
            if FROZEN in now and now[FROZEN].replica == replica:
                # What it had as it froze, one at least: a fault that meets nobody is no failure to serve.
                yield ReplicaReport(now_s, MODEL, replica, True, max(running[replica], 1), self._tokens[replica])
                continue
            # A stall of one report now and then is a long step; a second one in a row would be a hang.
            if rng.random() < 0.02 and replica not in self._stalled:
                self._stalled.add(replica)
            elif running[replica]:
                self._stalled.discard(replica)
                self._tokens[replica] += round(TICK_S * 40 * running[replica])
            healthy = None if rng.random() < 0.01 else True
            yield ReplicaReport(now_s, MODEL, replica, healthy, running[replica], self._tokens[replica])
            if int(now_s) % 15 == 0:
                spike = rng.random() < 0.01
                imbalance = 1.9 if SKEW in now else rng.gauss(1.18, 0.05) + (0.6 if spike else 0.0)
                yield ExpertReport(now_s, MODEL, replica, imbalance, 60_000)
        while self._restarts_s and self._restarts_s[0] <= now_s:
            self._restarts_s.pop(0)
            self._restarts += 1
        if FLAPS in now and int((now_s - now[FLAPS].begin_s) // TICK_S) % 24 == 12:  # each 2 minutes
            self._restarts += 1
        if STUCK not in now:
            self._granted, self._held = self._granted + self._held, 0
        self._granted += OVERLOAD in now  # who waits in an overload is granted in turn, also where few arrive
        waiting = max(self._held, STUCK in now) + (rng.randrange(20) if OVERLOAD in now else rng.random() < 0.05)
        yield ModelReport(now_s, MODEL, waiting, self._granted, self._restarts)

"""What the router sees of the load between two decisions of the autoscaling. Pure: times are passed in.

The router tells it what comes, waits, ends and is reported; `observe` gives what `cluster.autoscaling.decide` takes,
and begins the next interval. How many replicas are loading is Ray Serve's to say: `cluster.serve_scaling` adds it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from cluster.autoscaling import Observation, Pace
from cluster.batcher import ReplicaView
from cluster.pace_fit import Costs, PaceFit
from replicas.messages import Capacity, LoadReport, ReplicaInfo

ATTAINMENT_S = 60.0
LEAST_ENDED = 20  # requests in that time; of fewer no share is told
TPOT_MARGIN = 0.9  # of the time per output token; less than `replica_room` fills, so that a replica is no sooner full


class Report(NamedTuple):
    """An answer of the router's to who decides."""

    seen: Observation  # `loading` is not known here: 0
    pace: Pace | None  # of one replica; None: not learned yet
    load_s: float | None  # seconds that the slowest of the last replicas took to load; None: there was none
    extra: int = 0  # replicas that a rollout wants on top of those that the load asks for


class Decided(NamedTuple):
    """A decision, for whoever asks the router."""

    target: int  # replicas, ready and loading
    reason: str  # one sentence


def pace(costs: Costs, capacity: Capacity, tpot_s: float | None) -> Pace:
    """Tokens a second of a replica that does one thing only, each step as full as batch and TPOT allow."""
    limit_s = math.inf if tpot_s is None else TPOT_MARGIN * tpot_s
    tokens = _fits(lambda n: costs.step_s(n, 0.0), capacity.max_num_batched_tokens, limit_s)
    requests = _fits(lambda n: costs.step_s(0.0, n), capacity.max_num_seqs, limit_s)
    return Pace(tokens / costs.step_s(tokens, 0.0), requests / costs.step_s(0.0, requests))


def _fits(step_s: Callable[[float], float], most: int, limit_s: float) -> float:
    """The most of them in a step. One at least: a replica that cannot keep the TPOT with one does what it can."""
    low, high = 1.0, float(most)
    if step_s(high) <= limit_s:
        return high
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if step_s(middle) <= limit_s else (low, middle)
    return low


class ScalingWindow:
    """The load since the last observation, what was attained of late, what the replicas can do."""

    def __init__(self, tpot_s: float | None, now: float) -> None:
        self._tpot_s = tpot_s
        self._began = now
        self._prompt = self._output = 0  # tokens of what has come
        self._queued: int | None = None  # the least, since the interval began
        self._queued_tokens = 0
        self._ended: deque[tuple[float, int, int]] = deque()  # when, met the SLO, missed it
        self._fit = PaceFit()
        self._capacity: Capacity | None = None  # of the last replica that came
        self._load_s: float | None = None

    # -- what the router tells ----------------------------------------------------------------------------------------

    def arrived(self, prompt_tokens: int, output_tokens: int) -> None:
        """A request, refused or not, with the prompt tokens to compute and the output tokens to expect."""
        self._prompt += prompt_tokens
        self._output += output_tokens

    def waits(self, queued: int, tokens: int) -> None:
        """What is left in the queue after each round of grants."""
        self._queued_tokens = tokens if self._queued is None else min(self._queued_tokens, tokens)
        self._queued = queued if self._queued is None else min(self._queued, queued)

    def ended(self, met: int, missed: int, now: float) -> None:
        """So many requests ended, within the SLO and not."""
        if met or missed:
            if self._ended and now - self._ended[-1][0] < 1.0:
                at, met_before, missed_before = self._ended.pop()
                self._ended.append((at, met_before + met, missed_before + missed))
            else:
                self._ended.append((now, met, missed))

    def joined(self, info: ReplicaInfo) -> None:
        self._capacity = info.capacity
        self._fit.share, self._fit.chunk = info.expert_share, info.capacity.max_num_batched_tokens

    def reported(self, load: LoadReport) -> None:
        self._fit.learn(load.replica_id, load.work)

    def left(self, replica_id: str) -> None:
        self._fit.forget(replica_id)

    # -- what it tells ------------------------------------------------------------------------------------------------

    def observe(self, now: float, replicas: Iterable[ReplicaView], running: int, hears: bool) -> Report:
        """All since the last call. `hears`: a gateway is connected; else it is not known what arrives."""
        passed_s, views = now - self._began, list(replicas)
        ready = [view for view in views if not view.draining]
        known = hears and passed_s > 0.0
        self._load_s = max((view.info.load_s for view in views if view.info.load_s), default=self._load_s)
        seen = Observation(
            now_s=now,
            ready=len(ready),
            loading=0,
            draining=len(views) - len(ready),
            running=running,
            queued=self._queued or 0,
            queued_tokens=self._queued_tokens,
            prompt_tokens_per_s=self._prompt / passed_s if known else None,
            output_tokens_per_s=self._output / passed_s if known else None,
            kv_used=_kv_used(ready),
            attainment=self._attainment(now),
        )
        self._began, self._prompt, self._output = now, 0, 0
        self._queued, self._queued_tokens = None, 0
        return Report(seen, self._pace(), self._load_s)

    def _pace(self) -> Pace | None:
        """Of one replica; without any, what the last ones could do."""
        costs = self._fit.costs()
        if costs is None or self._capacity is None:
            return None
        return pace(costs, self._capacity, self._tpot_s)

    def _attainment(self, now: float) -> float | None:
        while self._ended and now - self._ended[0][0] > ATTAINMENT_S:
            self._ended.popleft()
        met, missed = sum(row[1] for row in self._ended), sum(row[2] for row in self._ended)
        return None if met + missed < LEAST_ENDED else met / (met + missed)


def _kv_used(ready: list[ReplicaView]) -> float | None:
    loads = [(view.load.kv_used, view.info.capacity.kv_tokens) for view in ready if view.load is not None]
    tokens = sum(size for _, size in loads)
    return sum(used * size for used, size in loads) / tokens if tokens else None


def status(decided: Decided | None, ready: int) -> dict[str, Any]:
    """For `moray status` and the console. `ready`: replicas that take requests now."""
    if decided is None:
        return {"target": None, "reason": "Nothing has been decided yet.", "ready": ready, "loading": None}
    loading = max(decided.target - ready, 0)
    return {"target": decided.target, "reason": decided.reason, "ready": ready, "loading": loading}

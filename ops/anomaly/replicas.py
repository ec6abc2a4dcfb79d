"""Replicas that come and go, and replicas whose experts are loaded unevenly."""

from collections.abc import Iterable

import msgspec

from ops.anomaly.alarms import Answer, Detector, Kind, Severity, Verdict, labelled
from ops.anomaly.observations import ExpertReport, ModelReport, Observation

FLAPPING = Kind("replica-flapping", Severity.PAGE)
IMBALANCE = Kind("expert-imbalance", Severity.TICKET, raise_after_s=300.0, resolve_after_s=300.0)


class FlappingLimits(msgspec.Struct, frozen=True):
    restarts: int = 3
    within_s: float = 900.0


class Restarts(msgspec.Struct):
    total: int
    watched_since_s: float
    at_s: list[float] = []  # of the last restarts, not older than the window


class Flapping(Detector):
    """Restarts of a model's replicas. By model: a replica that Ray Serve restarts has another name."""

    def __init__(self, limits: FlappingLimits, restarts: dict[str, Restarts]) -> None:
        self.limits, self.state = limits, restarts

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if not isinstance(seen, ModelReport):
            return
        known = self.state.setdefault(seen.model, Restarts(seen.restarts, seen.at_s))
        # A router that restarted counts from 0: what it has counted since is new.
        new = seen.restarts - known.total if seen.restarts >= known.total else seen.restarts
        known.total = seen.restarts
        begin = seen.at_s - self.limits.within_s
        # More than the limit tells nothing more, and a wild counter takes no memory.
        known.at_s = [at for at in known.at_s if at > begin] + [seen.at_s] * min(new, self.limits.restarts)
        known.at_s = known.at_s[-2 * self.limits.restarts :]
        answer = Answer.UNKNOWN
        if len(known.at_s) >= self.limits.restarts:
            answer = Answer.YES
        elif not known.at_s and known.watched_since_s <= begin:
            answer = Answer.NO
        yield Verdict(
            FLAPPING,
            labelled(seen.model),
            answer,
            f"Replicas of {seen.model} restarted {len(known.at_s)} times in {self.limits.within_s / 60:g} minutes.",
        )


class ImbalanceLimits(msgspec.Struct, frozen=True):
    raise_at: float = 1.5  # the fullest shard's load over the mean
    resolve_at: float = 1.3
    choices: int = 20_000  # fewer say little: chance alone is uneven


class Imbalance(Detector):
    """Expert load that stays uneven; it remembers nothing, the alarm's holds do."""

    def __init__(self, limits: ImbalanceLimits) -> None:
        self.limits = limits

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if not isinstance(seen, ExpertReport):
            return
        answer = Answer.UNKNOWN
        if seen.choices >= self.limits.choices and seen.imbalance >= self.limits.raise_at:
            answer = Answer.YES
        elif seen.choices >= self.limits.choices and seen.imbalance <= self.limits.resolve_at:
            answer = Answer.NO
        yield Verdict(
            IMBALANCE,
            labelled(seen.model, seen.replica),
            answer,
            f"The fullest shard of {seen.replica} of {seen.model} has {seen.imbalance:.2f} times the mean load.",
        )

"""Work that does not move although nobody says that anything is wrong: up but not serving, and the stuck queue."""

from collections.abc import Iterable

import msgspec

from ops.anomaly.alarms import Answer, Detector, Kind, ReplicaLabels, Severity, Verdict, labelled
from ops.anomaly.observations import ModelReport, Observation, ReplicaHung, ReplicaReport

NOT_SERVING = Kind("up-but-not-serving", Severity.PAGE)
STUCK_QUEUE = Kind("stuck-queue", Severity.PAGE)


class ProgressBounds(msgspec.Struct, frozen=True):
    no_token_s: float = 10.0  # longer than any step: a step ends with a token, or with prefilled ones
    no_grant_s: float = 20.0
    stale_s: float = 15.0  # a gap between reports that is no evidence of standing still


class Standing(msgspec.Struct):
    """A counter and since when, by reports without a gap, it stands still with work to do."""

    at_s: float
    count: int
    since_s: float | None  # None: no work

    def advance(self, at_s: float, count: int, work: bool, stale_s: float) -> float | None:
        """Seconds for which it stands still; None: it moves, or has nothing to do."""
        fresh = at_s - self.at_s <= stale_s
        still = work and count == self.count and fresh and self.since_s is not None
        self.since_s = (self.since_s if still else at_s) if work else None
        self.at_s, self.count = at_s, count
        return at_s - self.since_s if still and self.since_s is not None else None


class NotServing(Detector):
    """Admitted requests, no token for a bound, and a health check that is green."""

    def __init__(self, bounds: ProgressBounds, standing: dict[str, Standing]) -> None:
        self.bounds, self.state = bounds, standing

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if isinstance(seen, ReplicaHung):
            # A report that is under way tells of tokens from before: it only says where to count from.
            self.state.pop(f"{seen.model}\n{seen.replica}", None)
            yield Verdict(
                NOT_SERVING,
                labelled(seen.model, seen.replica),
                Answer.YES,
                f"Replica {seen.replica} of {seen.model} hung: a gateway gave it up with {seen.running} requests, which"
                " went on elsewhere.",
            )
        if not isinstance(seen, ReplicaReport):
            return
        fresh = Standing(seen.at_s, seen.tokens, None)
        standing = self.state.setdefault(f"{seen.model}\n{seen.replica}", fresh)
        before = standing.count
        still_s = standing.advance(seen.at_s, seen.tokens, seen.running > 0, self.bounds.stale_s)
        answer = Answer.UNKNOWN  # idle: it gave no token, for nobody asked
        if seen.tokens > before:
            answer = Answer.NO
        elif still_s is not None and still_s >= self.bounds.no_token_s and seen.healthy:
            answer = Answer.YES
        yield Verdict(
            NOT_SERVING,
            labelled(seen.model, seen.replica),
            answer,
            f"Replica {seen.replica} of {seen.model} is healthy and has {seen.running} requests, but gave no token for"
            f" {still_s or 0.0:.0f} s.",
        )

    def forget(self, gone: ReplicaLabels) -> None:
        self.state.pop(f"{gone.model}\n{gone.replica}", None)


class StuckQueue(Detector):
    """Tickets that wait while none is granted. A queue that is long but moves is the SLO's matter."""

    def __init__(self, bounds: ProgressBounds, standing: dict[str, Standing]) -> None:
        self.bounds, self.state = bounds, standing

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if not isinstance(seen, ModelReport):
            return
        standing = self.state.setdefault(seen.model, Standing(seen.at_s, seen.granted, None))
        before = standing.count
        still_s = standing.advance(seen.at_s, seen.granted, seen.waiting > 0, self.bounds.stale_s)
        answer = Answer.UNKNOWN
        if seen.granted > before or seen.waiting == 0:
            answer = Answer.NO
        elif still_s is not None and still_s >= self.bounds.no_grant_s:
            answer = Answer.YES
        yield Verdict(
            STUCK_QUEUE,
            labelled(seen.model),
            answer,
            f"{seen.waiting} requests wait for {seen.model} and none was granted for {still_s or 0.0:.0f} s.",
        )

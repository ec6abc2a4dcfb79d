"""How many requests end badly: the burn of the SLO's error budget, and bursts of errors.

Windows and factors are those of the Google SRE workbook, "Alerting on SLOs", multiwindow, multi-burn-rate alerts.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ops.anomaly.alarms import Answer, Detector, Kind, Severity, Verdict, labelled
from ops.anomaly.latency import LatencyLimits
from ops.anomaly.observations import Observation, Request

FAST_BURN = Kind("slo-burn-fast", Severity.PAGE)
SLOW_BURN = Kind("slo-burn-slow", Severity.TICKET)
ERROR_BURST = Kind("error-burst", Severity.PAGE, resolve_after_s=60.0)

MINUTE_S, COARSE_S = 60.0, 1800.0  # buckets for windows up to six hours, and for longer ones


class Burn(NamedTuple):
    """The budget burns `rate` times too fast, over the long window and over the short one still."""

    kind: Kind
    long_s: float
    short_s: float
    rate: float


BURNS = (
    Burn(FAST_BURN, 3600.0, 300.0, 14.4),  # 2% of a month's budget in an hour
    Burn(FAST_BURN, 6 * 3600.0, 1800.0, 6.0),  # 5% in six hours
    Burn(SLOW_BURN, 72 * 3600.0, 6 * 3600.0, 1.0),  # 10% in three days
)


class Bucket(msgspec.Struct, array_like=True):
    begin_s: float
    ended: int = 0
    bad: int = 0


class Counts(msgspec.Struct):
    """Requests by the time of their end, for two bucket sizes."""

    fine: list[Bucket] = []
    coarse: list[Bucket] = []

    def add(self, at_s: float, bad: bool) -> None:
        for buckets, size_s, kept in ((self.fine, MINUTE_S, 361), (self.coarse, COARSE_S, 145)):
            begin_s = at_s // size_s * size_s
            # What comes late counts with the newest bucket.
            if not buckets or begin_s > buckets[-1].begin_s:
                buckets.append(Bucket(begin_s))
                del buckets[:-kept]
            buckets[-1].ended += 1
            buckets[-1].bad += bad

    def within(self, now_s: float, window_s: float) -> tuple[int, int]:
        """(ended, bad) in the window that ends now."""
        buckets, size_s = (self.fine, MINUTE_S) if window_s <= 6 * 3600.0 else (self.coarse, COARSE_S)
        ended = bad = 0
        for bucket in reversed(buckets):
            if bucket.begin_s + size_s <= now_s - window_s:
                break
            ended += bucket.ended
            bad += bucket.bad
        return ended, bad

    def covers(self, now_s: float, window_s: float) -> bool:
        """Whether requests are known of since that window's begin: minutes after a start are no hours.

        `window_s`: six hours at most.
        """
        return bool(self.fine) and self.fine[0].begin_s <= now_s - window_s


class Objective(msgspec.Struct, frozen=True):
    attained: float = 0.99  # share of the requests that are to be within the limits
    requests: int = 30  # that a short window has to hold; fewer are no rate
    clear_at: float = 0.5  # of a burn's rate, in its short window, below which it is over


class SloBurn(Detector):
    """A request is bad if it failed, was shed, or missed a latency limit."""

    def __init__(self, objective: Objective, limits: LatencyLimits, counts: dict[str, Counts]) -> None:
        self.objective, self.limits, self.state = objective, limits, counts

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if isinstance(seen, Request):
            missed = self.limits.missed(seen)
            if seen.failed or seen.shed or missed is not None:  # else the client gave up: neither good nor bad
                bad = seen.failed or seen.shed or bool(missed)
                self.state.setdefault(seen.model, Counts()).add(seen.at_s, bad)
        return ()

    def evaluate(self, now_s: float) -> Iterable[Verdict]:
        for model, counts in self.state.items():
            for kind in (FAST_BURN, SLOW_BURN):
                answers = [self._answer(now_s, counts, burn) for burn in BURNS if burn.kind is kind]
                yes = next((why for answer, why in answers if answer is Answer.YES), None)
                all_clear = all(answer is Answer.NO for answer, _ in answers)
                answer = Answer.YES if yes else Answer.NO if all_clear else Answer.UNKNOWN
                yield Verdict(kind, labelled(model), answer, f"The error budget of {model} burns {yes}." if yes else "")

    def _answer(self, now_s: float, counts: Counts, burn: Burn) -> tuple[Answer, str]:
        ended, bad = counts.within(now_s, burn.short_s)
        if ended < self.objective.requests or not counts.covers(now_s, burn.short_s):
            return Answer.UNKNOWN, ""
        budget = 1.0 - self.objective.attained
        short = bad / ended / budget
        if short < burn.rate * self.objective.clear_at:
            return Answer.NO, ""
        ended, bad = counts.within(now_s, burn.long_s)
        long = bad / ended / budget
        why = f"{long:.1f} times too fast over {burn.long_s / 3600:g} h and {short:.1f} over {burn.short_s / 60:g} min"
        return (Answer.YES if min(short, long) >= burn.rate else Answer.UNKNOWN), why


class BurstLimits(msgspec.Struct, frozen=True):
    errors: int = 5
    raise_share: float = 0.2
    clear_share: float = 0.05
    requests: int = 10  # that the window has to hold to be called clear
    window_s: float = 60.0


class Recent(msgspec.Struct):
    ended: list[tuple[float, bool]] = []  # (time, failed), of the window


KEPT = 4096  # requests of a window; more change no share


class ErrorBurst(Detector):
    """Requests that fail by our error, many at once. What is shed is no error."""

    def __init__(self, limits: BurstLimits, recent: dict[str, Recent]) -> None:
        self.limits, self.state = limits, recent

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if isinstance(seen, Request) and not seen.shed and (seen.failed or seen.ttft_s is not None):
            ended = self.state.setdefault(seen.model, Recent()).ended
            ended.append((seen.at_s, seen.failed))
            if len(ended) > KEPT:
                del ended[: KEPT // 4]
        return ()

    def evaluate(self, now_s: float) -> Iterable[Verdict]:
        limits = self.limits
        for model, recent in self.state.items():
            recent.ended = [entry for entry in recent.ended if entry[0] > now_s - limits.window_s]
            ended, errors = len(recent.ended), sum(failed for _, failed in recent.ended)
            answer = Answer.UNKNOWN
            if errors >= limits.errors and errors >= limits.raise_share * ended:
                answer = Answer.YES
            elif ended >= limits.requests and errors <= limits.clear_share * ended:
                answer = Answer.NO
            summary = f"{errors} of the last {ended} requests to {model} failed, within {limits.window_s:g} s."
            yield Verdict(ERROR_BURST, labelled(model), answer, summary)

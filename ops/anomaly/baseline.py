"""What TTFT and TPOT usually are, by model, request size and hour of the day; and when they drift from it.

Medians of logarithms throughout: one odd request, hour or day moves nothing, and a drift is a ratio. A request is
compared with its own size and hour, then all of a window are pooled, so that a change in the mix of sizes is no drift.
"""

import math
from collections.abc import Iterable
from statistics import median

import msgspec

from ops.anomaly.alarms import Answer, Detector, Kind, ReplicaLabels, Severity, Verdict, labelled
from ops.anomaly.observations import Observation, Request

WINDOW_S, HOUR_S = 900.0, 3600.0
# Two windows in a row, each answered as it ends.
TTFT_DRIFT = Kind("ttft-drift", Severity.TICKET, WINDOW_S, WINDOW_S, 2.5 * WINDOW_S)
TPOT_DRIFT = Kind("tpot-drift", Severity.TICKET, WINDOW_S, WINDOW_S, 2.5 * WINDOW_S)
SIZES = (256, 1024, 4096)  # prompt tokens; upper ends of the buckets, the last is open
MAD_TO_SIGMA = 1.4826  # of a normal distribution


class DriftLimits(msgspec.Struct, frozen=True):
    raise_ratio: float = 1.3  # over the usual
    clear_ratio: float = 1.15
    deviations: float = 4.0  # of what windows usually differ
    days: int = 2  # that an hour's baseline needs
    requests: int = 20  # that an hour of a size, or a window, needs
    windows: int = 24  # that have to be known before one is judged


class Size(msgspec.Struct):
    """One size's baseline of one metric."""

    hour: int  # since the epoch, that is being collected
    logs: list[float] = []
    stride: int = 1  # each so-many-th request is kept
    skipped: int = 0
    days: dict[int, list[float]] = {}  # by hour of the day: the medians of the last days

    KEPT_LOGS = 256
    KEPT_DAYS = 14

    def add(self, value: float) -> None:
        self.skipped += 1
        if self.skipped < self.stride:
            return
        self.skipped = 0
        self.logs.append(value)
        if len(self.logs) > self.KEPT_LOGS:
            self.logs = self.logs[::2]
            self.stride *= 2

    def close(self, hour: int, needed: int, drifting: bool) -> None:
        """Ends the hour. One of a drift is not learned, or a slow drift would make itself the usual."""
        if len(self.logs) >= needed and not drifting:
            known = self.days.setdefault(self.hour % 24, [])
            known.append(median(self.logs))
            del known[: -self.KEPT_DAYS]
        self.hour, self.logs, self.stride, self.skipped = hour, [], 1, 0

    def usual(self, at_s: float, days: int) -> float | None:
        """The usual logarithm at that time, between the middles of two hours. None: not enough days."""
        position = at_s / HOUR_S - 0.5
        low, share = math.floor(position), position % 1.0
        ends = [self.days.get(hour % 24, ()) for hour in (low, low + 1)]
        if min(len(end) for end in ends) < days:
            return None
        return median(ends[0]) * (1.0 - share) + median(ends[1]) * share


class Scope(msgspec.Struct):
    """One metric of a model, or of one of its replicas: how far its requests are from their baselines."""

    window: int
    offsets: list[float] = []
    usual: list[float] = []  # medians of the last windows that were in order
    drifting: bool = False

    KEPT_WINDOWS = 192  # two days
    KEPT_OFFSETS = 2048


class DriftState(msgspec.Struct):
    sizes: dict[str, Size] = {}
    scopes: dict[str, Scope] = {}


class Drift(Detector):
    """Silent until a baseline has its days and a scope its windows; then each window gets one answer."""

    def __init__(self, limits: DriftLimits, state: DriftState) -> None:
        self.limits, self.state = limits, state

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if not isinstance(seen, Request) or seen.failed:
            return
        for kind, value in ((TTFT_DRIFT, seen.ttft_s), (TPOT_DRIFT, seen.tpot_s)):
            if value is None or value <= 0.0:
                continue
            offset = self._learn(kind, seen, math.log(value))
            for replica in (None, seen.replica):
                yield from self._take(kind, seen, replica, offset)

    def evaluate(self, now_s: float) -> Iterable[Verdict]:
        for key, scope in self.state.scopes.items():
            yield from self._close(key, scope, now_s)

    def forget(self, gone: ReplicaLabels) -> None:
        for kind in (TTFT_DRIFT, TPOT_DRIFT):
            self.state.scopes.pop(_scope_key(kind, *gone), None)

    def _learn(self, kind: Kind, seen: Request, value: float) -> float | None:
        """The request's distance from the usual; None: that is not known yet."""
        bucket = sum(seen.prompt_tokens > end for end in SIZES)
        hour = int(seen.at_s // HOUR_S)
        size = self.state.sizes.setdefault(f"{kind.name}\n{seen.model}\n{bucket}", Size(hour))
        if hour > size.hour:
            scope = self.state.scopes.get(_scope_key(kind, seen.model, None))
            size.close(hour, self.limits.requests, scope is not None and scope.drifting)
        size.add(value)
        usual = size.usual(seen.at_s, self.limits.days)
        return None if usual is None else value - usual

    def _take(self, kind: Kind, seen: Request, replica: str | None, offset: float | None) -> Iterable[Verdict]:
        if offset is None:
            return
        key = _scope_key(kind, seen.model, replica)
        scope = self.state.scopes.setdefault(key, Scope(int(seen.at_s // WINDOW_S)))
        yield from self._close(key, scope, seen.at_s)
        if len(scope.offsets) < scope.KEPT_OFFSETS:
            scope.offsets.append(offset)

    def _close(self, key: str, scope: Scope, now_s: float) -> Iterable[Verdict]:
        """The answer about the window that has ended, if one has."""
        window = int(now_s // WINDOW_S)
        if window <= scope.window:
            return
        offsets, scope.offsets, scope.window = scope.offsets, [], window
        if len(offsets) < self.limits.requests:
            return
        limits, middle = self.limits, median(offsets)
        answer, above = Answer.UNKNOWN, 0.0
        if len(scope.usual) >= limits.windows:
            centre = median(scope.usual)
            spread = MAD_TO_SIGMA * median(abs(value - centre) for value in scope.usual)
            above = middle - centre
            if above > max(math.log(limits.raise_ratio), limits.deviations * spread):
                answer = Answer.YES
            elif above < math.log(limits.clear_ratio):
                answer = Answer.NO
        if answer is not Answer.UNKNOWN:
            scope.drifting = answer is Answer.YES
        if answer is Answer.NO or len(scope.usual) < limits.windows:
            scope.usual.append(middle)
            del scope.usual[: -scope.KEPT_WINDOWS]
        name, model, replica = key.split("\n")
        kind = TTFT_DRIFT if name == TTFT_DRIFT.name else TPOT_DRIFT
        what = "time to the first token" if kind is TTFT_DRIFT else "time per token"
        whose = f"replica {replica} of {model}" if replica else model
        summary = f"The {what} of {whose} is {math.exp(above):.2f} times what it usually is at this hour."
        yield Verdict(kind, labelled(model, replica or None), answer, summary)


def _scope_key(kind: Kind, model: str, replica: str | None) -> str:
    return f"{kind.name}\n{model}\n{replica or ''}"

"""What detectors answer, and how answers become alarms that are raised once and resolved once."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ops.anomaly.observations import Observation


class Severity(enum.StrEnum):
    PAGE = "page"  # somebody has to look now
    TICKET = "ticket"  # in working hours


class Answer(enum.Enum):
    """Missing data is neither success nor failure: it raises nothing and resolves nothing."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Kind(NamedTuple):
    """One sort of alarm. The holds are seconds for which the answer has to stay the same."""

    name: str  # of the alarm and of its runbook, ops/runbooks/<name>.md
    severity: Severity
    raise_after_s: float = 0.0
    resolve_after_s: float = 0.0
    stale_s: float = 120.0  # a longer gap between two answers is no time for which an answer was the same


class Verdict(NamedTuple):
    """One detector's answer about one thing."""

    kind: Kind
    labels: tuple[tuple[str, str], ...]  # sorted; with the kind's name they are the alarm's identity
    answer: Answer
    summary: str = ""  # one sentence with the figures; wanted where the answer is YES


class Alarm(msgspec.Struct, frozen=True):
    """One alarm, as sinks send it."""

    name: str
    severity: Severity
    summary: str
    runbook: str
    labels: dict[str, str]
    raised_s: float


class Event(NamedTuple):
    """An alarm's beginning or end."""

    at_s: float
    raised: bool  # False: resolved
    alarm: Alarm


class ReplicaLabels(NamedTuple):
    model: str
    replica: str


class Detector(ABC):
    """Pure: no clock, no I/O. `state` is all that it remembers; msgspec writes and reads it as JSON."""

    @abstractmethod
    def observe(self, seen: Observation) -> Iterable[Verdict]:
        """What this one observation settles at once."""

    def evaluate(self, now_s: float) -> Iterable[Verdict]:
        """What only time settles: windows, bounds, reports that stay away."""
        return ()

    def forget(self, gone: ReplicaLabels) -> None:  # noqa: B027  (most remember models alone)
        """Drops what it remembers of a replica that is gone."""


def labelled(model: str, replica: str | None = None, **more: str) -> tuple[tuple[str, str], ...]:
    named = {"model": model, **({"replica": replica} if replica is not None else {}), **more}
    return tuple(sorted(named.items()))


class Held(msgspec.Struct):
    """One alarm's latch."""

    alarm: Alarm | None = None  # None: not raised
    against_since_s: float | None = None  # since when the answer speaks for the other state
    answered_s: float = 0.0  # the last time that it did


class Latches(msgspec.Struct):
    """All alarms that are raised or about to be, by identity."""

    held: dict[str, Held] = {}

    def take(self, now_s: float, verdict: Verdict) -> Event | None:
        """The alarm's beginning or end, if this verdict settles it."""
        key = _key(verdict.kind.name, verdict.labels)
        latch = self.held.get(key)
        raised = latch is not None and latch.alarm is not None
        if verdict.answer is not (Answer.NO if raised else Answer.YES):
            # The same state again, or no data: what was pending has to begin anew.
            if latch is not None:
                latch.against_since_s = None
                if not raised:
                    del self.held[key]
            return None
        latch = latch or self.held.setdefault(key, Held())
        if latch.against_since_s is None or now_s - latch.answered_s > verdict.kind.stale_s:
            latch.against_since_s = now_s
        latch.answered_s = now_s
        hold_s = verdict.kind.resolve_after_s if raised else verdict.kind.raise_after_s
        if now_s - latch.against_since_s < hold_s:
            return None
        if latch.alarm is not None:
            del self.held[key]
            return Event(now_s, False, latch.alarm)
        kind = verdict.kind
        latch.alarm = Alarm(kind.name, kind.severity, verdict.summary, kind.name, dict(verdict.labels), now_s)
        latch.against_since_s = None
        return Event(now_s, True, latch.alarm)

    def end(self, now_s: float, gone: ReplicaLabels) -> list[Event]:
        """Resolves what was raised about a replica that is gone."""
        ended = []
        for key, latch in list(self.held.items()):
            name_labels = latch.alarm.labels if latch.alarm else dict(msgspec.json.decode(key)[1])
            if (name_labels.get("model"), name_labels.get("replica")) == gone:
                del self.held[key]
                if latch.alarm:
                    ended.append(Event(now_s, False, latch.alarm))
        return ended

    @property
    def raised(self) -> list[Alarm]:
        return [latch.alarm for latch in self.held.values() if latch.alarm]


def _key(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    return msgspec.json.encode((name, labels)).decode()

"""What the detectors were told, as lines of JSON: to look at a night again, and to try other limits on it. Pure.

A line is `["Request", at_s, model, …]`, an observation's fields in order, or `["Tick", now_s]`: time was looked at.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from ops.anomaly.alarms import Event
from ops.anomaly.monitor import Limits, Monitor
from ops.anomaly.observations import (
    ExpertReport,
    ModelReport,
    Observation,
    ReplicaGone,
    ReplicaHung,
    ReplicaReport,
    Request,
)

KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Request, ReplicaReport, ReplicaHung, ModelReport, ExpertReport, ReplicaGone)
}
TICK = "Tick"
DIGITS = 6  # microseconds


class NotARecording(ValueError):
    """The message names the line."""


class Told(NamedTuple):
    """One line. `seen` None: time was looked at."""

    at_s: float
    seen: Observation | None


def line(at_s: float, seen: Observation | None) -> bytes:
    """Without its end."""
    if seen is None:
        return msgspec.json.encode((TICK, round(at_s, DIGITS)))
    fields = (round(value, DIGITS) if isinstance(value, float) else value for value in seen)
    return msgspec.json.encode((type(seen).__name__, *fields))


def read(lines: Iterable[bytes | str]) -> Iterator[Told]:
    """Raises NotARecording."""
    for number, text in enumerate(lines, 1):
        try:
            name, *fields = msgspec.json.decode(text, type=list)
            if name == TICK:
                (at_s,) = fields
                yield Told(float(at_s), None)
            else:
                seen = msgspec.convert(fields, KINDS[name])
                yield Told(seen.at_s, seen)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise NotARecording(f"line {number} is none of a recording: {error}") from error


def stretched(recording: Iterable[Told], factor: float) -> Iterator[Told]:
    """The same with `factor` times the time between its lines, counted from the first; latencies stay as they were.

    So the minutes of a rehearsal count as the hours or days that baselines and long windows need, on the limits as they
    are. What is told by seconds cannot be seen then: reports so far apart are no evidence of standing still.
    """
    first_s: float | None = None
    for at_s, seen in recording:
        if first_s is None:
            first_s = at_s
        at_s = first_s + (at_s - first_s) * factor
        yield Told(at_s, None if seen is None else seen._replace(at_s=at_s))


def replay(recording: Iterable[Told], limits: Limits | None = None) -> Iterator[Event]:
    """The alarms that those limits would have raised and resolved."""
    monitor = Monitor(limits)
    for at_s, seen in recording:
        yield from monitor.evaluate(at_s) if seen is None else monitor.observe(seen)

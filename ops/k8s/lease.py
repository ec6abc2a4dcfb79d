"""Who of several may act: decisions over one Lease. Pure.

No two clocks are compared. A contender times, by its own monotonic clock, for how long the Lease has not changed; its
holder times, by its own, for how long ago it *asked* for the last renewal that was granted, and steps down well before
the others may take it. With the defaults two clocks may differ in speed by a third, and nobody holds what another
holds. Writes name the resourceVersion that was read, so that of two who would take it one fails.

A Lease that somebody deletes is free at once: until its holder's next look, two may act.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """Seconds."""

    lease_s: float = 15.0  # unchanged for so long, it is free
    renew_within_s: float = 10.0  # its holder acts for so long after it asked for the last renewal
    look_every_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.look_every_s < self.renew_within_s < self.lease_s:
            raise ValueError("look_every_s < renew_within_s < lease_s must hold, or two may hold the lease")


@dataclass(frozen=True)
class Held:
    """The Lease as it was read."""

    holder: str  # "": nobody
    lease_s: float  # as its holder wrote it
    version: str  # resourceVersion


@dataclass(frozen=True)
class Sight:
    """What one contender has seen of it."""

    held: Held | None  # None: there is no Lease
    since_s: float  # when it was first seen so, on the contender's clock


class Step(enum.Enum):
    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


def look(before: Sight | None, held: Held | None, now_s: float) -> Sight:
    """`now_s`: after the answer came."""
    return before if before is not None and before.held == held else Sight(held, now_s)


def decide(me: str, sight: Sight, now_s: float) -> Step:
    if sight.held is None:
        return Step.CREATE
    if sight.held.holder == me:
        return Step.RENEW
    if not sight.held.holder or now_s - sight.since_s > sight.held.lease_s:
        return Step.TAKE
    return Step.WAIT


def leads(asked_s: float | None, now_s: float, terms: Terms) -> bool:
    """`asked_s`: when the last write was sent that made or kept it mine, on my clock; None: it is not mine."""
    return asked_s is not None and now_s - asked_s < terms.renew_within_s

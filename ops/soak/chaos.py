"""What is done to the cluster, in which order and how far apart: drawn from a seed. Pure."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """A disturbance. Its value is its name in the report."""

    KILL_CORE = "kill_core"  # SIGKILL to an engine core's process
    KILL_REPLICA = "kill_replica"  # SIGKILL to the Serve replica's process, the core's parent
    STOP_CORE = "stop_core"  # SIGSTOP to a core; SIGCONT once its streams have gone elsewhere
    STOP_CORE_FOR_GOOD = "stop_core_for_good"  # SIGSTOP to a core, which has to be replaced
    KILL_ROUTER = "kill_router"  # SIGKILL to the router actor's process
    DRAIN = "drain"  # a replica's streams are moved away, and later it takes requests again

    @property
    def costs_a_replica(self) -> bool:
        return self is not Kind.KILL_ROUTER


@dataclass(frozen=True)
class Disturbance:
    kind: Kind
    pause_s: float  # seconds to wait before it, from the moment at which it may strike
    victim: float  # which replica: in [0, 1) of those that are ready
    hold_s: float  # seconds that a drained replica stays drained
    overlaps: bool  # it may strike while the cluster is still mending the one before


OVERLAP = 0.3  # share of the disturbances that do not wait for a whole cluster


def schedule(seed: int) -> Iterator[Disturbance]:
    """Without end. Each kind comes once before any comes again, in an order of its own each time."""
    rng = random.Random(seed)
    while True:
        for kind in rng.sample(list(Kind), len(Kind)):
            overlaps = rng.random() < OVERLAP
            yield Disturbance(
                kind=kind,
                pause_s=rng.uniform(1.0, 4.0) if overlaps else rng.uniform(2.0, 8.0),
                victim=rng.random(),
                hold_s=rng.uniform(2.0, 6.0),
                overlaps=overlaps,
            )


def may_strike(disturbance: Disturbance, ready: int, wanted: int) -> bool:
    """Whether it may strike now: a replica that takes requests must be left."""
    if not disturbance.overlaps:
        return ready >= wanted
    return ready >= (2 if disturbance.kind.costs_a_replica else 1)

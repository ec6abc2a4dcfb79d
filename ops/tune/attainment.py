"""Open-loop load and its verdict: how many of the requests that came at a rate were served within the SLO. Pure.

Requests come when they come, whether or not the engine keeps up: each is judged from the moment it was due. Those that
come first only fill the engine, those that come last only keep it full; the ones between are judged. An overload grows
a queue slowly: judged for T seconds, a rate can be above what lasts by the share TTFT limit / T before it is seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from typing import NamedTuple

from ops.tune.search import ATTAINED


class Slo(NamedTuple):
    """Seconds to the first token, and between tokens on a request's average."""

    ttft_s: float
    tpot_s: float


def arrivals(rate: float, until_s: float) -> list[float]:
    """Poisson arrivals, seconds from the start; at another rate the same ones, nearer to each other or farther."""
    gaps, at, found = random.Random(0), 0.0, []
    while (at := at + gaps.expovariate(1.0) / rate) < until_s:
        found.append(at)
    return found


def judged(due: list[float], begin_s: float, end_s: float) -> range:
    """Indexes of the requests that count: those due in the window, or the first one after its begin."""
    first = next((i for i, at in enumerate(due) if at >= begin_s), len(due))
    last = next((i for i, at in enumerate(due) if at >= end_s), len(due))
    return range(first, max(last, min(first + 1, len(due))))


class Verdict:
    """Of the requests in `counted`, each due at its time and of `output` tokens: what is known of them so far."""

    def __init__(self, due: list[float], counted: Collection[int], slo: Slo, output: int) -> None:
        self._due, self._slo, self._output = due, slo, output
        self._open = dict.fromkeys(counted, -1.0)  # those not judged yet -> when their first token came; -1: it has not
        self._allowed_late = len(self._open) - math.ceil(ATTAINED * len(self._open) - 1e-9)
        self._of = len(self._open)
        self._late = 0
        self.ttft_s: list[float] = []
        self.tpot_s: list[float] = []

    def first(self, which: int, at: float) -> None:
        """Its first token came."""
        if self._open.get(which) == -1.0:
            self.ttft_s.append(at - self._due[which])
            self._open[which] = at
            if at - self._due[which] > self._slo.ttft_s:
                self._judge(which, late=True)

    def ended(self, which: int, at: float) -> None:
        """Its last token came; `first` was called."""
        if which in self._open:
            tpot = (at - self._open[which]) / max(self._output - 1, 1)
            self.tpot_s.append(tpot)
            self._judge(which, late=tpot > self._slo.tpot_s)

    def now(self, at: float) -> None:
        """Judges those that have not ended and can no longer end in time."""
        stream_s = max(self._output - 1, 1) * self._slo.tpot_s
        for which, first in list(self._open.items()):
            limit = self._due[which] + self._slo.ttft_s if first < 0 else first + stream_s
            if at > limit:
                self._judge(which, late=True)

    def _judge(self, which: int, late: bool) -> None:
        del self._open[which]
        self._late += late

    @property
    def carried(self) -> bool | None:
        """Whether the rate is carried; None: that depends on those that are not judged yet."""
        if self._late > self._allowed_late:
            return False
        return True if self._late + len(self._open) <= self._allowed_late else None

    @property
    def attained(self) -> float:
        """Share of the counted ones in time. Before all are judged a bound: from below if carried, else from above."""
        missed = self._late + (len(self._open) if self.carried is not False else 0)
        return 1.0 - missed / self._of if self._of else 0.0

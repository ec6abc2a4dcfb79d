"""The search for the settings that carry the most load: what to try next, given what was measured so far. Pure.

A setting's *capacity* is the highest rate at which the SLO is attained. To find it for each setting would take minutes
apiece; so a setting is first asked to carry a little more than the best so far, and is dropped at once if it does not.
Only one that does is pushed on. One option is changed at a time, the best kept, until a whole round changes nothing.

Nothing is remembered here: `next_trial` is a function of the trials made. A search that was cut off goes on from its
list of trials, and the same list always gives the same next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ATTAINED = 0.9  # share of requests within the SLO that makes a rate carried
STEP = 1.25  # by which rates are raised until one is not carried
PRECISION = 1.06  # a rate that is not carried over one that is, at most
CHALLENGE = PRECISION  # what another setting has to carry over the best so far: more than that may carry
_LEAST = 1 / 1000  # of the first rate: a setting that does not carry so much carries nothing

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """One thing to choose. The first value is where the search begins."""

    name: str
    values: tuple[Any, ...]
    live: int | None = None  # so many values, the first ones, need no engine loaded anew; None: none of them does


@dataclass(frozen=True)
class Trial:
    """`setting` at `rate` requests/s. `attained`: share of them within the SLO; None: it could not run so."""

    setting: Setting
    rate: float
    attained: float | None

    @property
    def carried(self) -> bool:
        return self.attained is not None and self.attained >= ATTAINED


@dataclass(frozen=True)
class Found:
    """What the trials say so far."""

    first: Setting
    first_capacity: float
    best: Setting
    capacity: float


def next_trial(options: Sequence[Option], trials: Sequence[Trial], first_rate: float) -> tuple[Setting, float] | None:
    """The setting and rate to measure next; None: the search is over. `first_rate`: of the very first trial.

    The first values of the options have to run: where they do not, the others climb from a thousandth of `first_rate`.
    """
    known = _Known(trials)
    best = {option.name: option.values[0] for option in options}
    if (rate := known.next_rate(best, first_rate)) is not None:
        return best, rate
    changed = True
    while changed:
        changed = False
        for name, value in changes(options):
            setting = {**best, name: value}
            wanted = max(known.capacity(best) * CHALLENGE, first_rate * _LEAST)
            if setting == best or known.refused(setting, wanted):
                continue
            if not known.carries(setting, wanted):
                return setting, wanted
            if (rate := known.next_rate(setting, wanted)) is not None:
                return setting, rate
            best, changed = setting, True
    return None


def changes(options: Sequence[Option]) -> Iterator[tuple[str, Any]]:
    """Each value of each option, by name; first those that the engine need not be loaded anew for."""
    yield from ((option.name, value) for option in options for value in option.values[: option.live])
    for option in options:
        if option.live is not None:
            yield from ((option.name, value) for value in option.values[option.live :])


def found(options: Sequence[Option], trials: Sequence[Trial]) -> Found:
    """The best of the trials; among equals the earliest."""
    known = _Known(trials)
    first = {option.name: option.values[0] for option in options}
    best = max([first, *(trial.setting for trial in trials)], key=known.capacity)
    return Found(first, known.capacity(first), best, known.capacity(best))


class _Known:
    """Trials by setting."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._of: dict[tuple[tuple[str, Any], ...], list[Trial]] = {}
        for trial in trials:
            self._of.setdefault(_key(trial.setting), []).append(trial)

    def capacity(self, setting: Setting) -> float:
        """The highest rate that it carried; 0 if none."""
        refused = self._least_refused(setting)
        return max((t.rate for t in self._of.get(_key(setting), ()) if t.carried and t.rate < refused), default=0.0)

    def carries(self, setting: Setting, rate: float) -> bool:
        return self.capacity(setting) >= rate

    def refused(self, setting: Setting, rate: float) -> bool:
        return self._least_refused(setting) <= rate

    def _least_refused(self, setting: Setting) -> float:
        return min((t.rate for t in self._of.get(_key(setting), ()) if not t.carried), default=float("inf"))

    def next_rate(self, setting: Setting, first_rate: float) -> float | None:
        """The rate to try to know its capacity to PRECISION; None: it is known, or it cannot run at all."""
        trials = self._of.get(_key(setting), ())
        if any(trial.attained is None for trial in trials):
            return None
        carried, refused = self.capacity(setting), self._least_refused(setting)
        if not trials:
            return first_rate
        if refused == float("inf"):
            return carried * STEP
        if carried == 0.0:
            return refused / 2 if refused > first_rate * _LEAST else None
        return None if refused / carried <= PRECISION else (carried * refused) ** 0.5


def _key(setting: Setting) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(setting.items()))

"""The search on the engine at hand: what to try next is `search`'s to say, here it is loaded and measured.

A trial has a few seconds, so what it says may be luck, and one refused rate caps a setting for good. In the end the
default is therefore asked again, for a little more as long as it carries that, on the engine that is loaded; and what
the search chose, loaded as a profile would have it: for the rate that it was found to carry, or a little less, until it
carries it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ops.bench.gpu.watching import wait_until_free
from ops.errors import UserError
from ops.tune import space
from ops.tune.attainment import Slo
from ops.tune.engine import Burst, EngineBroke, Limits, TunedEngine, Work
from ops.tune.engine import Trial as Ask
from ops.tune.search import PRECISION, Found, Option, Setting, Trial, found, next_trial
from ops.tune.state import State
from replicas.engine_spec import EngineSpec
from replicas.gpus import Gpus

_FIRST = 0.8  # of what the engine does at most, as the first rate: few can be late
_IN_FLIGHT, _BURST_S = 128, 4.0  # of the burst that tells that
# Requests in flight of those before it. Steps of other sizes run other variants of kernels, which are compiled when
# they are first needed: on an H200 with none kept the first minutes of load were a fifth as fast as those after them.
_WARMING = (128, 32, 8)
_ROOM_S = 60.0  # over what a trial takes at most, before its engine counts as hung
_OVER_S = 5.0  # by which a trial may pass the search's limit
_FREE_S = 40.0  # in which a GPU's memory is free again, once its process has ended
_CHECKS = 3  # rates that the choice is asked for in the end, each PRECISION below the one before


class OutOfTime(Exception):
    """The limit is near; what is known is in the state."""


@dataclass(frozen=True)
class Goal:
    """What is asked of the engine, and how long for."""

    work: Work
    slo: Slo
    trial_s: float = 8.0
    warm_s: float = 3.0
    fp8_kv: bool = False
    kernels: str | None = None

    @property
    def longest_s(self) -> float:
        """What a trial may take, its requests' encoding left out."""
        return self.warm_s + self.trial_s + self.slo.ttft_s + self.work.output * self.slo.tpot_s + 2.0


@dataclass(frozen=True)
class Outcome:
    """`default`: the rate that the default carries, by all trials. `checked`: the rate that the choice carried once it
    was loaded as a profile has it; None: it was not asked yet; 0.0: it carried none of those that it was asked for.
    `finished`: nothing is left to try.
    """

    found: Found
    default: float
    checked: float | None
    finished: bool
    trials: int

    @property
    def keeps_default(self) -> bool:
        """Whether nothing better was found, or it did not last."""
        lost = self.checked is not None and self.checked <= self.default
        return lost or self.found.best == self.found.first

    @property
    def goodput(self) -> float:
        """Requests/s within the SLO, of the settings to take."""
        if self.keeps_default:
            return self.default
        return self.found.capacity if self.checked is None else self.checked

    @property
    def ratio(self) -> float:
        return self.goodput / self.default if self.default else 1.0

    @property
    def setting(self) -> Setting:
        """To take."""
        return self.found.first if self.keeps_default else self.found.best


def search(
    spec: EngineSpec,
    goal: Goal,
    state: State,
    limit_s: float,
    report: Callable[[str], None],
    log: Path | None = None,
) -> Outcome:
    """Goes on with the state's search until it is over or `limit_s` seconds are. UserError: the engine does not run
    with the settings as they are. `log`: where what engines say is kept.
    """
    with ExitStack() as ended:
        bench = _Bench(spec, goal, state, time.monotonic() + limit_s, report, log)
        ended.callback(bench.close)
        try:
            options = bench.options()
        except OutOfTime:
            raise UserError("the limit was over before the engine was loaded: allow more by --limit-s") from None
        ended_in_time = [  # each keeps the time that the last one needs
            bench.ask_all(lambda: next_trial(options, state.trials, state.first_rate)),
            bench.ask_all(lambda: next_of_default(found(options, state.trials), state.checks), check=True),
            bench.ask_all(lambda: next_check(found(options, state.trials), state.checks), check=True),
        ]
    best, finished = found(options, state.trials), all(ended_in_time)
    return Outcome(
        best, default(best, state.checks), checked(best, state.checks), finished, len(state.trials) + len(state.checks)
    )


def next_of_default(best: Found, checks: Sequence[Trial]) -> tuple[Setting, float] | None:
    """The rate that the default is to be asked for next, once more; None: it is known, or there is no other choice."""
    again = _of(best.first, checks)
    if best.best == best.first or len(again) == _CHECKS or not all(trial.carried for trial in again):
        return None
    return best.first, best.first_capacity * PRECISION ** (1 + len(again))


def next_check(best: Found, checks: Sequence[Trial]) -> tuple[Setting, float] | None:
    """The rate that the choice is to be asked for next, loaded as a profile has it; None: it is known."""
    if checked(best, checks) is not None:
        return None
    return best.best, best.capacity / PRECISION ** len(_of(best.best, checks))


def checked(best: Found, checks: Sequence[Trial]) -> float | None:
    """As in `Outcome`."""
    own = _of(best.best, checks)
    ended = len(own) == _CHECKS or any(trial.carried or trial.attained is None for trial in own)
    if best.best != best.first and not ended:
        return None
    return max((trial.rate for trial in own if trial.carried), default=0.0)


def default(best: Found, checks: Sequence[Trial]) -> float:
    """As in `Outcome`."""
    return max((best.first_capacity, *(trial.rate for trial in _of(best.first, checks) if trial.carried)))


def _of(setting: Setting, checks: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in checks if trial.setting == setting]


class _Bench:
    """At most one engine, loaded anew only when a setting needs it."""

    def __init__(
        self,
        spec: EngineSpec,
        goal: Goal,
        state: State,
        ends: float,
        report: Callable[[str], None],
        log: Path | None,
    ) -> None:
        """`ends`: monotonic."""
        self._spec, self._goal, self._state, self._ends, self._report = spec, goal, state, ends, report
        self._log = log
        self._engine: TunedEngine | None = None
        self._load: space.Load | None = None
        self._load_s = 0.0  # the longest load so far, its warming included
        self._pace = 0.0

    def close(self) -> None:
        if self._engine is not None:
            self._engine.__exit__()
            self._engine = self._load = None

    def options(self) -> Sequence[Option]:
        """Of the state, or by the engine that the settings give."""
        if self._state.options is None:
            args, on_gpu = self._spec.engine_args, self._spec.device == "cuda"
            spec, more = self._spec, space.more_graphs(space.own_graphs(args)) if on_gpu else ()
            if more:
                graphs = {"compilation_config": space.with_graphs(args, more[-1])}
                spec = msgspec.structs.replace(spec, engine_args=dict(args) | graphs)
            self._allow(self._goal.longest_s)
            loaded = self._started(spec, "as the settings have it" + (", with more CUDA graphs" if more else ""))
            own = space.own_graphs(args, loaded.seqs) if on_gpu else ()
            default = space.Default(loaded.batched_tokens, loaded.seqs, args.get(space.CHUNK) or 0, own)
            options = space.options(default, self._goal.work.prompt, on_gpu, self._goal.fp8_kv, self._goal.kernels)
            self._load = space.load_for(options, {one.name: one.values[0] for one in options})
            self._state.begin(options, self._pace * _FIRST)
        assert self._state.options is not None
        return self._state.options

    def ask_all(self, following: Callable[[], tuple[Setting, float] | None], check: bool = False) -> bool:
        """Makes the trials that follow, until none does. False: the time was over before."""
        try:
            while (asked := following()) is not None:
                self.trial(*asked, check)
        except OutOfTime:
            return False
        return True

    def trial(self, setting: Setting, rate: float, check: bool) -> None:
        """Measures and writes it down. A setting that an engine breaks of is a trial too; OutOfTime is none."""
        assert self._state.options is not None
        if reason := space.refused(setting):
            self._state.add(Trial(setting, rate, None), check, reason=reason)
            return
        best = found(self._state.options, self._state.trials)
        exactly = check and setting == best.best
        load = space.exact(setting) if exactly else space.load_for(self._state.options, setting)
        fits = self._load == load if exactly else self._load is not None and self._load.serves(load)
        asked_s = self._goal.longest_s + (0.0 if fits else self._load_s)
        self._allow(asked_s if exactly else asked_s + self._check_s(best, self._load if fits else load))
        try:
            if not fits:
                self._loaded(load)
                self._allow(self._goal.longest_s)  # the first load takes as long as it takes
            assert self._engine is not None
            goal, slo = self._goal, self._goal.slo
            limits = Limits(
                setting[space.TOKENS], setting[space.SEQS], setting[space.CHUNK] or 0, self._graphs(setting)
            )
            ask = Ask(goal.work, limits, rate, slo.ttft_s, slo.tpot_s, goal.warm_s, goal.trial_s)
            seen = self._engine.measure(ask, min(goal.longest_s + _ROOM_S, self._ends - time.monotonic() + _OVER_S))
        except EngineBroke as broke:
            self.close()
            if time.monotonic() >= self._ends:
                raise OutOfTime from broke
            if not self._state.trials:
                raise
            self._report(f"{told(setting, self._state.options)}: {broke}")
            self._state.add(Trial(setting, rate, None), check, reason=str(broke))
            return
        made = Trial(setting, rate, seen.attained)
        self._state.add(made, check, **msgspec.structs.asdict(seen))
        what = "carried" if made.carried else "not carried"
        again = ", loaded as a profile has it" if exactly else ", once more" if check else ""
        self._report(
            f"{rate:.2f} requests/s {what} ({seen.attained:.0%} of {seen.counted} in time, {seen.took_s:.1f} s): "
            f"{told(setting, self._state.options)}{again}"
        )

    def _graphs(self, setting: Setting) -> int:
        """Tokens of the largest step that runs as a CUDA graph; 0: that is no choice here."""
        if space.GRAPHS not in setting:
            return 0
        return int((setting[space.GRAPHS] or space.own_graphs(self._spec.engine_args, setting[space.SEQS]))[-1])

    def _check_s(self, best: Found, load: space.Load | None) -> float:
        """Seconds that the check of the best so far needs, behind a trial on an engine that is loaded so."""
        if best.best == best.first or checked(best, self._state.checks) is not None:
            return 0.0
        return self._goal.longest_s + (0.0 if space.exact(best.best) == load else self._load_s)

    def _loaded(self, load: space.Load) -> None:
        self.close()
        fixed = dict(load.fixed)
        spec = msgspec.structs.replace(self._spec, engine_args=space.engine_args(self._spec.engine_args, load))
        if space.KERNELS in fixed:
            spec = msgspec.structs.replace(spec, tuned_kernels=fixed[space.KERNELS])
        named = [f"{name} {_short(value)}" for name, value in load.fixed]
        named += [f"CUDA graphs {_short(load.graphs)}"] if load.graphs else []
        self._started(spec, ", ".join([f"{load.batched_tokens} tokens", f"{load.seqs} sequences", *named]))
        self._load = load

    def _started(self, spec: EngineSpec, what: str) -> Any:
        """Loaded and warm."""
        self._report(f"loading an engine: {what}")
        began = time.monotonic()
        wait_until_free(Gpus(spec.device == "cuda"), _FREE_S)
        engine = TunedEngine(spec, max(self._ends - began, 1.0), self._log)
        try:
            self._engine = engine.__enter__()
            for in_flight in (*(_WARMING if spec.device == "cuda" else ()), _IN_FLIGHT):
                burst = Burst(self._goal.work, min(in_flight, engine.loaded.seqs), _BURST_S)
                self._pace = engine.pace(burst, max(self._ends - time.monotonic(), 1.0))
        except EngineBroke as broke:
            self.close()
            if time.monotonic() >= self._ends:
                raise OutOfTime from broke
            raise
        self._load_s = max(self._load_s, time.monotonic() - began)
        self._report(f"loaded in {engine.load_s:.1f} s; {self._pace:.2f} requests/s at once, whatever the SLO")
        return engine.loaded

    def _allow(self, seconds: float) -> None:
        if time.monotonic() + seconds > self._ends:
            raise OutOfTime


def told(setting: Mapping[str, Any], options: Sequence[Option]) -> str:
    """In what it differs from the default."""
    changed = [f"{one.name} {_short(setting[one.name])}" for one in options if setting[one.name] != one.values[0]]
    return ", ".join(changed) or "default"


def _short(value: Any) -> str:
    return f"up to {value[-1]}" if isinstance(value, tuple) else str(value)

"""The search on the engine at hand: what to try next is `search`'s to say, here it is loaded and measured.

A trial has a few seconds, so one option's gain may be luck. What the search chose is therefore loaded once more, as a
profile would have it, and asked for the rate that it was found to carry, or a little less, until it carries it. The
default is not asked again: luck can make the gain look too small, hardly too large.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
    """`checked`: the rate that the choice carried once it was loaded as a profile has it; None: it was not asked yet;
    0.0: it carried none of those that it was asked for. `finished`: nothing is left to try.
    """

    found: Found
    checked: float | None
    finished: bool
    trials: int

    @property
    def keeps_default(self) -> bool:
        """Whether nothing better was found, or it did not last."""
        lost = self.checked is not None and self.checked <= self.found.first_capacity
        return lost or self.found.best == self.found.first

    @property
    def goodput(self) -> float:
        """Requests/s within the SLO, of the settings to take."""
        if self.keeps_default:
            return self.found.first_capacity
        return self.found.capacity if self.checked is None else self.checked

    @property
    def ratio(self) -> float:
        return self.goodput / self.found.first_capacity if self.found.first_capacity else 1.0

    @property
    def setting(self) -> Setting:
        """To take."""
        return self.found.first if self.keeps_default else self.found.best


def search(spec: EngineSpec, goal: Goal, state: State, limit_s: float, report: Callable[[str], None]) -> Outcome:
    """Goes on with the state's search until it is over or `limit_s` seconds are. UserError: the engine does not run
    with the settings as they are.
    """
    with ExitStack() as ended:
        bench = _Bench(spec, goal, state, time.monotonic() + limit_s, report)
        ended.callback(bench.close)
        try:
            options = bench.options()
            while (wanted := next_trial(options, state.trials, state.first_rate)) is not None:
                bench.trial(*wanted)
            while (rate := next_check(found(options, state.trials), state.checks)) is not None:
                bench.trial(found(options, state.trials).best, rate, check=True)
        except OutOfTime:
            finished = False
        else:
            finished = True
    if state.options is None:
        raise UserError("the limit was over before the engine was loaded: allow more by --limit-s")
    best = found(state.options, state.trials)
    return Outcome(best, checked(best, state.checks), finished, len(state.trials) + len(state.checks))


def next_check(best: Found, checks: Sequence[Trial]) -> float | None:
    """The rate that the choice is to be asked for next, loaded as a profile has it; None: it is known."""
    own = [trial for trial in checks if trial.setting == best.best]
    if best.best == best.first or len(own) == _CHECKS or any(trial.carried or trial.attained is None for trial in own):
        return None
    return best.capacity / PRECISION ** len(own)


def checked(best: Found, checks: Sequence[Trial]) -> float | None:
    """As in `Outcome`."""
    own = [trial for trial in checks if trial.setting == best.best]
    if best.best != best.first and (not own or next_check(best, checks) is not None):
        return None
    return max((trial.rate for trial in own if trial.carried), default=0.0)


class _Bench:
    """At most one engine, loaded anew only when a setting needs it."""

    def __init__(self, spec: EngineSpec, goal: Goal, state: State, ends: float, report: Callable[[str], None]) -> None:
        """`ends`: monotonic."""
        self._spec, self._goal, self._state, self._ends, self._report = spec, goal, state, ends, report
        self._engine: TunedEngine | None = None
        self._load: space.Load | None = None
        self._load_s = 0.0  # the longest load so far, its warming included
        self._pace = 0.0

    def close(self) -> None:
        if self._engine is not None:
            self._engine.__exit__()
            self._engine = None

    def options(self) -> Sequence[Option]:
        """Of the state, or by the engine that the settings give."""
        if self._state.options is None:
            args, on_gpu = self._spec.engine_args, self._spec.device == "cuda"
            spec, more = self._spec, space.more_graphs(space.own_graphs(args)) if on_gpu else ()
            if more:
                graphs = {"compilation_config": space.with_graphs(args, more[-1])}
                spec = msgspec.structs.replace(spec, engine_args=dict(args) | graphs)
            loaded = self._started(spec, "as the settings have it" + (", with more CUDA graphs" if more else ""))
            own = space.own_graphs(args, loaded.seqs) if on_gpu else ()
            default = space.Default(loaded.batched_tokens, loaded.seqs, args.get(space.CHUNK) or 0, own)
            options = space.options(default, self._goal.work.prompt, on_gpu, self._goal.fp8_kv, self._goal.kernels)
            self._load = space.load_for(options, {one.name: one.values[0] for one in options})
            self._state.begin(options, self._pace * _FIRST)
        assert self._state.options is not None
        return self._state.options

    def trial(self, setting: Setting, rate: float, check: bool = False) -> None:
        """Measures and writes it down. A setting that an engine breaks of is a trial too; OutOfTime is none."""
        assert self._state.options is not None
        if reason := space.refused(setting):
            self._state.add(Trial(setting, rate, None), check, reason=reason)
            return
        load = space.exact(setting) if check else space.load_for(self._state.options, setting)
        try:
            self._loaded(load, check)
            self._allow(self._goal.longest_s)
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
        again = ", loaded as a profile has it" if check else ""
        self._report(
            f"{rate:.2f} requests/s {what} ({seen.attained:.0%} of {seen.counted} in time, {seen.took_s:.1f} s): "
            f"{told(setting, self._state.options)}{again}"
        )

    def _graphs(self, setting: Setting) -> int:
        """Tokens of the largest step that runs as a CUDA graph; 0: that is no choice here."""
        if space.GRAPHS not in setting:
            return 0
        assert self._state.options is not None
        seqs = next(one for one in self._state.options if one.name == space.SEQS).values[0]
        return int((setting[space.GRAPHS] or space.own_graphs(self._spec.engine_args, seqs))[-1])

    def _loaded(self, load: space.Load, exactly: bool) -> None:
        if self._engine is not None and self._load is not None:
            fits = load == self._load if exactly else self._load.serves(load)
            if fits:
                return
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
        self._allow(self._load_s + self._goal.longest_s)
        self._report(f"loading an engine: {what}")
        began = time.monotonic()
        wait_until_free(Gpus(spec.device == "cuda"), _FREE_S)
        engine = TunedEngine(spec, max(self._ends - began, 1.0))
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

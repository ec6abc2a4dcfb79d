"""The search before a GPU, with a pretended engine: which CUDA graphs it is loaded with, and which a trial uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from ops.tune import space, tuning
from ops.tune.attainment import Slo
from ops.tune.engine import Burst, Loaded, Seen, Trial, Work
from ops.tune.state import State
from ops.tune.tuning import Goal, search
from replicas.engine_spec import EngineSpec

BEST_AT = 2048  # with graphs for steps up to so many tokens it carries most


class Pretended:
    """Carries 10 requests/s, and 20 with more graphs."""

    loads: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[Trial]] = []
    bursts: ClassVar[list[Burst]] = []

    def __init__(self, spec: EngineSpec, limit_s: float, log: Path | None) -> None:
        self.args = dict(spec.engine_args)
        self.loaded = Loaded(self.args.get(space.TOKENS, 2048), self.args.get(space.SEQS, 1024))
        self.load_s = 1.0

    def __enter__(self) -> Pretended:
        self.loads.append(self.args)
        return self

    def __exit__(self, *_: object) -> None: ...

    def pace(self, burst: Burst, limit_s: float) -> float:
        self.bursts.append(burst)
        return 12.0

    def measure(self, trial: Trial, limit_s: float) -> Seen:
        self.asked.append(trial)
        carried = trial.rate <= (20.0 if trial.limits.graph_tokens >= BEST_AT else 10.0)
        return Seen(1.0 if carried else 0.0, 100, 1.0, 0.1, 0.01, 10, 10.0, 100.0)


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(tuning, "TunedEngine", Pretended)
    monkeypatch.setattr(tuning, "wait_until_free", lambda *_: True)
    for of_class in (Pretended.loads, Pretended.asked, Pretended.bursts):
        of_class.clear()
    return Pretended


def searched(tmp_path: Path, args: dict[str, Any], limit_s: float = 1e6):
    spec = EngineSpec(
        model="m",
        engine_args={"model": "/m"} | args,
        host="process",
        device="cuda",
        shards=1,
        listen="127.0.0.1",
        start_timeout_s=1.0,
        drain_s=1.0,
        hang_timeout_s=1.0,
    )
    goal = Goal(Work(512, 128, 1000), Slo(1.0, 0.05))
    return search(spec, goal, State(tmp_path / "tune.jsonl", {}), limit_s, lambda _: None)


def test_one_engine_has_the_graphs_of_all_trials_and_the_default_its_own(pretended, tmp_path) -> None:
    outcome = searched(tmp_path, {})
    first, *others = pretended.loads
    assert first["compilation_config"][space.GRAPHS][-1] == 2048
    assert pretended.asked[0].limits.graph_tokens == 512  # as vLLM has it by itself
    assert {ask.limits.graph_tokens for ask in pretended.asked} == {512, 1024, 2048}
    assert outcome.setting[space.GRAPHS][-1] == 2048 and outcome.ratio > 1.8
    assert outcome.checked  # loaded as the profile has it
    assert others[-1]["compilation_config"][space.GRAPHS] == list(outcome.setting[space.GRAPHS])
    changed = [ask for ask in pretended.asked if ask.limits.graph_tokens != 512]
    before = pretended.asked[: pretended.asked.index(changed[0])]
    assert {ask.limits for ask in before} == {before[0].limits}  # graphs are tried before all else


def test_a_search_that_is_cut_off_has_confirmed_what_it_found(pretended, tmp_path) -> None:
    """A trial may take 20 s: there is time for one, once the best so far has its own kept free."""
    outcome = searched(tmp_path, {}, limit_s=30.0)
    assert not outcome.finished and outcome.checked and outcome.ratio > 1.0
    assert pretended.asked[-1].limits.graph_tokens == outcome.setting[space.GRAPHS][-1]


def test_the_default_is_asked_again_before_another_engine_is_loaded(pretended, tmp_path) -> None:
    outcome = searched(tmp_path, {})
    again, confirmed = pretended.asked[-2:]
    assert again.limits.graph_tokens == 512 and again.rate > outcome.found.first_capacity
    assert outcome.default == outcome.found.first_capacity  # it does not carry that
    assert confirmed.limits.graph_tokens == outcome.setting[space.GRAPHS][-1]


def test_an_engine_is_warmed_by_loads_of_several_sizes(pretended, tmp_path) -> None:
    searched(tmp_path, {})
    assert {burst.in_flight for burst in pretended.bursts} == {8, 32, 128}
    assert pretended.bursts[3].in_flight == 128  # the last one tells the pace


@pytest.mark.parametrize("args", [{"enforce_eager": True}, {"compilation_config": {space.GRAPHS: [1, 4096]}}])
def test_where_there_is_no_choice_of_graphs_none_is_made(pretended, tmp_path, args) -> None:
    outcome = searched(tmp_path, args)
    assert space.GRAPHS not in outcome.setting and {ask.limits.graph_tokens for ask in pretended.asked} == {0}
    assert all(load.get("compilation_config") == args.get("compilation_config") for load in pretended.loads)

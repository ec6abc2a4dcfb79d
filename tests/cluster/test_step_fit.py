"""StepFit: the costs of a step, from counters as cores report them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.step_fit import StepFit
from replicas.messages import Work

BASE_S, PREFILL_S, DECODE_S = 5e-3, 2e-5, 1e-4  # of a step, of a prompt token in it, of a decoding request in it


class Core:
    """An engine core that takes its time by those costs, and what it reports."""

    def __init__(self, seed: int = 0, noise: float = 0.1) -> None:
        self.random = random.Random(seed)
        self.noise = noise
        self.slower = 1.0
        self.work = Work()

    def report(self, prefill: Callable[[], int], decoding: Callable[[], int], steps: int = 3) -> Work:
        for _ in range(steps):
            p, d, was = prefill(), decoding(), self.work
            step_s = self.slower * true_s(p, d) * self.random.uniform(1 - self.noise, 1 + self.noise)
            self.work = Work(
                steps=was.steps + 1,
                step_s=was.step_s + step_s,
                prefill_tokens=was.prefill_tokens + p,
                decode_tokens=was.decode_tokens + d,
            )
        return self.work

    def mixed(self, steps: int = 3) -> Work:
        return self.report(lambda: self.random.choice([0, 0, 500, 2000]), lambda: self.random.randint(1, 200), steps)


def true_s(prefill: int, decoding: int) -> float:
    return BASE_S + PREFILL_S * prefill + DECODE_S * decoding


def learn(fit: StepFit, reports: int, report: Callable[[], Work]) -> None:
    for _ in range(reports):
        fit.learn(report())
        fit.step_s(0, 1)  # the batcher asks after each


def test_nothing_is_known_before_a_step_was_done():
    fit = StepFit()
    for work in (Work(), Work()):
        fit.learn(work)
        assert not fit.known and fit.step_s(1000, 10) == fit.prefill_token_s == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_known_costs_are_recovered_from_noisy_reports(seed):
    core, fit = Core(seed), StepFit()
    learn(fit, 200, core.mixed)
    assert fit.known
    assert fit.prefill_token_s == pytest.approx(PREFILL_S, rel=0.15)
    for prefill, decoding in [(0, 20), (0, 200), (2000, 100), (1000, 1)]:
        assert fit.step_s(prefill, decoding) == pytest.approx(true_s(prefill, decoding), rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_a_replica_that_becomes_twice_as_slow_is_followed_within_five_seconds_of_reports(seed):
    core, fit = Core(seed), StepFit()
    learn(fit, 1000, core.mixed)
    core.slower = 2.0
    learn(fit, 100, core.mixed)
    for prefill, decoding in [(0, 100), (2000, 100)]:
        assert fit.step_s(prefill, decoding) == pytest.approx(2 * true_s(prefill, decoding), rel=0.2)


def test_a_router_that_starts_late_takes_a_long_life_so_far_for_no_more_than_a_report():
    core, fit = Core(), StepFit()
    core.mixed(steps=20_000)
    core.slower = 2.0
    learn(fit, 100, core.mixed)
    assert fit.step_s(0, 100) == pytest.approx(2 * true_s(0, 100), rel=0.2)


def test_what_never_varies_is_predicted_as_it_is():
    core, fit = Core(noise=0.0), StepFit()
    learn(fit, 2000, lambda: core.report(lambda: 0, lambda: 50))
    assert fit.step_s(0, 50) == pytest.approx(true_s(0, 50), rel=0.01)
    assert 0.0 <= fit.step_s(0, 100) <= 2.5 * true_s(0, 50)
    assert fit.prefill_token_s == 0.0


def test_what_varied_once_is_remembered_while_it_does_not():
    core, fit = Core(), StepFit()
    learn(fit, 300, core.mixed)
    learn(fit, 300, lambda: core.report(lambda: 0, lambda: 100))
    assert fit.prefill_token_s == pytest.approx(PREFILL_S, rel=0.3)
    assert fit.step_s(2000, 100) == pytest.approx(true_s(2000, 100), rel=0.3)


@pytest.mark.parametrize(
    "restarted",
    [
        Work(steps=1, step_s=0.01, prefill_tokens=5, decode_tokens=1),
        Work(steps=10_000, step_s=1.0, prefill_tokens=0, decode_tokens=0),
        Work(steps=10_000, step_s=1e6, prefill_tokens=0, decode_tokens=10**9),
    ],
    ids=["fewer steps", "more steps in less time", "more steps of fewer tokens"],
)
def test_counters_of_another_core_are_no_work_done(restarted):
    core, fit = Core(noise=0.0), StepFit()
    learn(fit, 300, core.mixed)
    assert core.work.prefill_tokens and core.work.step_s > 1.0
    before = (fit.step_s(0, 100), fit.step_s(2000, 100))
    fit.learn(restarted)
    assert (fit.step_s(0, 100), fit.step_s(2000, 100)) == before
    core.work = restarted  # and what it does from there on counts again
    core.slower = 2.0
    learn(fit, 200, core.mixed)
    assert fit.step_s(2000, 100) == pytest.approx(2 * true_s(2000, 100), rel=0.1)


works = st.builds(
    Work,
    steps=st.integers(0, 10**6),
    step_s=st.floats(0, 1e6),
    prefill_tokens=st.integers(0, 10**9),
    decode_tokens=st.integers(0, 10**9),
)


@given(st.lists(works, max_size=20))
def test_whatever_is_reported_costs_are_finite_and_never_negative(reports):
    fit = StepFit()
    for work in reports:
        fit.learn(work)
        more, less = fit.step_s(1000, 100), fit.step_s(0, 1)
        assert math.isfinite(more) and 0.0 <= less <= more and math.isfinite(fit.prefill_token_s)

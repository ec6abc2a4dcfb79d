"""PaceFit: what a step costs at batches that were never seen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.pace_fit import LEAST_STEPS, REMEMBERED_STEPS, Costs, PaceFit
from replicas.messages import Work

TRUE = Costs(base_s=3e-3, prefill_s=1.5e-5, decode_s=4e-5, experts_s=13e-3, share=8 / 128)


def learn(fit: PaceFit, most: int, reports: int = 1500, true: Costs = TRUE, replica_id: str = "a") -> None:
    """Reports of four steps each, one in five with a prompt, with up to so many requests in the batch."""
    made, work = random.Random(0), Work()
    fit.share = true.share
    for _ in range(reports):
        for step in range(4):
            prefill = made.choice([0] * 4 + [900]) if step == 0 else 0
            decoding = made.randint(1, most)
            work = Work(
                steps=work.steps + 1,
                step_s=work.step_s + true.step_s(prefill, decoding) * made.uniform(0.95, 1.05),
                prefill_tokens=work.prefill_tokens + prefill,
                decode_tokens=work.decode_tokens + decoding,
            )
        fit.learn(replica_id, work)


@pytest.mark.parametrize(("most", "within"), [(8, 2.0), (30, 2.0), (200, 1.1)])
def test_small_batches_tell_what_a_full_one_takes(most: int, within: float) -> None:
    """A tangent at a batch of four or fifteen says seven or four times as much as a step of 256 takes."""
    fit = PaceFit()
    learn(fit, most)
    costs = fit.costs()
    assert costs is not None
    assert 1 / within < costs.step_s(0, 256) / TRUE.step_s(0, 256) < within
    assert costs.step_s(2048, 0) == pytest.approx(TRUE.step_s(2048, 0), rel=0.15)


def test_a_dense_model_has_no_experts_to_pay_for() -> None:
    fit, dense = PaceFit(), TRUE._replace(share=0.0)
    learn(fit, 60, true=dense)
    costs = fit.costs()
    assert costs is not None and costs.experts_s == 0.0
    assert costs.step_s(500, 100) == pytest.approx(dense.step_s(500, 100), rel=0.05)


def test_nothing_is_known_of_a_few_steps_or_of_where_a_replica_stands_when_it_comes() -> None:
    fit = PaceFit()
    assert fit.costs() is None
    fit.learn("a", Work(steps=10_000, step_s=100.0, prefill_tokens=5, decode_tokens=10_000))
    assert fit.costs() is None
    fit.learn("a", Work(steps=10_000 + int(LEAST_STEPS) - 1, step_s=101.0, prefill_tokens=5, decode_tokens=10_300))
    assert fit.costs() is None


def test_a_core_that_began_anew_teaches_nothing_at_once() -> None:
    fit = PaceFit()
    learn(fit, 30)
    before = fit.steps
    fit.learn("a", Work(steps=3, step_s=9.0, prefill_tokens=1, decode_tokens=1))
    assert fit.steps == before


def test_what_was_long_ago_counts_for_less_and_what_left_is_remembered() -> None:
    fit = PaceFit()
    learn(fit, 30)
    known = fit.costs()
    fit.forget("a")
    assert fit.costs() == known
    fit = PaceFit()
    for n in range(20):  # ten times as much as is remembered: all of it by a machine that is twice as slow at last
        slower = 1.0 if n < 10 else 2.0
        work = Work(steps=1, step_s=1e-2 * slower, decode_tokens=1)
        fit.learn("a", Work())
        fit.learn("a", Work(steps=50_000, step_s=50_000 * work.step_s, decode_tokens=50_000))
    costs = fit.costs()
    assert fit.steps <= REMEMBERED_STEPS
    assert costs is not None and costs.step_s(0, 1) == pytest.approx(2e-2, rel=0.05)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 5000), st.integers(0, 500), st.floats(0, 1)),
        min_size=1,
        max_size=40,
    ),
    st.floats(0, 1),
)
def test_costs_are_never_negative(reports: list[tuple[int, int, int, float]], share: float) -> None:
    fit, work = PaceFit(), Work()
    fit.share = share
    fit.learn("a", work)
    for steps, prefill, decoding, step_s in reports * 60:
        work = Work(
            steps=work.steps + steps,
            step_s=work.step_s + step_s,
            prefill_tokens=work.prefill_tokens + prefill,
            decode_tokens=work.decode_tokens + decoding,
        )
        fit.learn("a", work)
    costs = fit.costs()
    assert costs is None or min(costs) >= 0.0

"""Arrivals and their verdict, without an engine."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.tune.attainment import Slo, Verdict, arrivals, judged
from ops.tune.search import ATTAINED

SLO = Slo(ttft_s=1.0, tpot_s=0.1)
OUTPUT = 11  # tokens: 1 s from the first to the last at the limit


def test_arrivals_are_poisson_and_the_same_again():
    due = arrivals(50.0, 200.0)
    assert due == sorted(due) == arrivals(50.0, 200.0)
    assert len(due) == pytest.approx(50 * 200, rel=0.05)
    gaps = [b - a for a, b in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)


def test_another_rate_is_the_same_load_faster():
    slow, fast = arrivals(2.0, 100.0), arrivals(4.0, 50.0)
    assert [at / 2 for at in slow] == pytest.approx(fast)


def test_the_window_counts():
    due = [0.5, 1.0, 2.0, 2.9, 3.0, 4.0]
    assert [due[i] for i in judged(due, 1.0, 3.0)] == [1.0, 2.0, 2.9]
    assert [due[i] for i in judged(due, 3.1, 3.2)] == [4.0]
    assert len(judged(due, 5.0, 6.0)) == 0


def served(verdict, which, due, ttft, tpot):
    verdict.first(which, due[which] + ttft)
    verdict.ended(which, due[which] + ttft + tpot * (OUTPUT - 1))


def test_in_time_is_both():
    due = [0.0, 1.0, 2.0, 3.0]
    verdict = Verdict(due, range(4), SLO, OUTPUT)
    served(verdict, 0, due, 0.9, 0.09)
    served(verdict, 1, due, 1.1, 0.05)
    served(verdict, 2, due, 0.1, 0.11)
    assert verdict.carried is False
    assert verdict.attained == 0.5
    served(verdict, 3, due, 0.1, 0.01)
    assert verdict.attained == 0.5


def test_it_is_sure_as_soon_as_it_can_be():
    due = [0.0] * 100
    verdict = Verdict(due, range(100), SLO, OUTPUT)
    for which in range(89):
        served(verdict, which, due, 0.1, 0.01)
    assert verdict.carried is None
    served(verdict, 89, due, 0.1, 0.01)
    assert verdict.carried is True
    assert verdict.attained == pytest.approx(ATTAINED)


def test_what_can_no_longer_end_in_time_is_late():
    due = [0.0] * 10
    verdict = Verdict(due, range(10), SLO, OUTPUT)
    verdict.first(0, 0.5)
    verdict.now(0.99)
    assert verdict.carried is None
    verdict.now(1.01)  # nine have no first token
    assert verdict.carried is False
    assert verdict.attained == pytest.approx(0.1)
    verdict.now(1.49)
    assert verdict.attained == pytest.approx(0.1)
    verdict.now(1.51)  # the one is too slow
    assert verdict.attained == 0.0


def test_others_do_not_count():
    due = [0.0, 0.0]
    verdict = Verdict(due, [1], SLO, OUTPUT)
    served(verdict, 0, due, 5.0, 5.0)
    assert verdict.carried is None
    served(verdict, 1, due, 0.1, 0.01)
    assert verdict.carried is True


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 0.2)), min_size=1, max_size=60))
def test_an_early_end_says_what_the_whole_would_have(requests):
    due = [0.0] * len(requests)
    whole = sum(ttft <= 1.0 and ttft + tpot * 10 - ttft <= 1.0 + 1e-9 for ttft, tpot in requests) / len(requests)
    verdict = Verdict(due, range(len(requests)), SLO, OUTPUT)
    for which, (ttft, tpot) in enumerate(requests):
        if verdict.carried is None:
            served(verdict, which, due, ttft, tpot)
    assert verdict.carried is not None
    assert verdict.carried == (verdict.attained >= ATTAINED - 1e-9)
    if not any(abs(tpot - 0.1) < 1e-6 for _, tpot in requests):
        assert verdict.carried == (whole >= ATTAINED - 1e-9)

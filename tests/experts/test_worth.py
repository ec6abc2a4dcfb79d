"""Is moving worth it: yes, no, and not enough data, each with its reason."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.balance import place, replace
from experts.model_spec import tier
from experts.plan import BadPlan, Placement, PlacementPlan
from experts.sharding import Demand, Layout
from experts.topology import parse
from experts.worth import Serving, worth

SPEC = dataclasses.replace(tier("32b"), layers=4)
# Long prompts for few tokens of output: the step computes.
BUSY = Serving(SPEC, parse("8xA100-80GB"), Layout(1, 8, True), Demand(prompt=4096, output=64), 64, interval_s=300.0)


def plan(placement: Placement, nodes: int = 1) -> PlacementPlan:
    return PlacementPlan("32b", placement, nodes)


def in_order() -> PlacementPlan:
    return plan(Placement(np.tile(np.arange(128).reshape(1, 8, 16), (4, 1, 1)), 128))


def skewed(tokens: float, exponent: float = 0.6) -> np.ndarray:
    """Tokens of a layer; the first experts, which lie together, get most."""
    shares = 1.0 / np.arange(1, 129) ** exponent
    return np.tile(tokens * shares / shares.sum(), (4, 1))


def test_a_large_gain_is_worth_its_moves() -> None:
    load, old = skewed(1e6), in_order()
    new = plan(replace(load, old.placement, most_moved=1.0))
    verdict = worth(load, old, new, BUSY)
    assert verdict.answer == "yes" and verdict.saved_s > verdict.lost_s > 0 and verdict.tokens_needed is None
    assert verdict.before > 1.5 and verdict.after < 1.05
    assert verdict.reason.startswith("Worth it: imbalance 2.") and "moving" in verdict.reason


def test_the_gain_is_that_of_the_step_time_model() -> None:
    load, old = skewed(1e7), in_order()
    new = plan(replace(load, old.placement, most_moved=1.0))
    verdict = worth(load, old, new, BUSY)
    slow, fast = BUSY.step_s(verdict.before), BUSY.step_s(verdict.after)
    assert verdict.saved_s == pytest.approx(300.0 * (1 - fast / slow)) and fast < slow


def test_few_tokens_are_no_reason_to_move_and_it_says_how_many_are() -> None:
    load, old = skewed(150.0, 0.2), in_order()
    new = plan(replace(load, old.placement, most_moved=1.0))
    verdict = worth(load, old, new, BUSY)
    assert verdict.answer == "not enough data"
    needed = verdict.tokens_needed
    assert needed is not None and needed > 150 and f"{needed:,} are needed" in verdict.reason
    assert worth(skewed(1.05 * needed, 0.2), old, new, BUSY).answer == "yes"


def test_no_tokens_in_a_layer_are_not_enough_data() -> None:
    load, old = skewed(1e6), in_order()
    new = plan(replace(load, old.placement, most_moved=1.0))
    load[2] = 0.0
    verdict = worth(load, old, new, BUSY)
    assert verdict.answer == "not enough data" and math.isinf(verdict.noise)
    assert "No token was counted in some layer" in verdict.reason


def test_a_step_bound_by_weights_gains_too_little() -> None:
    idle = dataclasses.replace(BUSY, demand=Demand(prompt=1, output=4096), sequences=1)
    load, old = skewed(1e7, 0.3), in_order()
    verdict = worth(load, old, plan(replace(load, old.placement, most_moved=1.0)), idle)
    assert verdict.answer == "no" and "bound by reading weights" in verdict.reason


def test_a_plan_that_moves_nothing_is_a_no_without_any_data() -> None:
    old = in_order()
    verdict = worth(np.zeros((4, 128)), old, old, BUSY)
    assert verdict.answer == "no" and "moves nothing" in verdict.reason


def test_standing_still_costs_more_than_being_slowed_and_networks_more_than_nvlink() -> None:
    load, old = skewed(1e6), in_order()
    new = plan(replace(load, old.placement, most_moved=1.0))
    slowed, stopped = worth(load, old, new, BUSY), worth(load, old, new, dataclasses.replace(BUSY, stops=True))
    assert stopped.lost_s == pytest.approx(slowed.lost_s / BUSY.slowed)
    two_nodes = dataclasses.replace(BUSY, cluster=parse("2x4xA100-80GB"))
    apart = worth(load, plan(old.placement, 2), plan(new.placement, 2), two_nodes)
    assert apart.lost_s > 2 * slowed.lost_s


def test_soon_undone_it_is_not_worth_it() -> None:
    load, old = skewed(1e6), in_order()
    new = plan(replace(load, old.placement, most_moved=1.0))
    short = dataclasses.replace(BUSY, interval_s=1e-3, stops=True)
    assert worth(load, old, new, short).answer == "no"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([10.0, 1e3, 1e5]))
def test_an_even_load_is_never_a_reason_to_move(seed, tokens) -> None:
    """What is counted of an even load looks uneven by chance; a plan that fits the chance must not be taken."""
    old = plan(place(np.ones((4, 128)), 8))
    counted = np.random.default_rng(seed).multinomial(int(tokens), np.full(128, 1 / 128), size=4).astype(float)
    new = plan(replace(counted, old.placement, most_moved=1.0))
    assert worth(counted, old, new, BUSY).answer != "yes"


def test_what_does_not_fit_together_is_refused() -> None:
    old, load = in_order(), skewed(1e6)
    with pytest.raises(BadPlan, match="8 ranks, the layout TP1 DP4 EP4 has 4"):
        worth(load, old, old, dataclasses.replace(BUSY, layout=Layout(1, 4, True)))
    with pytest.raises(BadPlan, match="the load is of"):
        worth(load[:2], old, old, BUSY)
    with pytest.raises(BadPlan, match="nothing to place"):
        dataclasses.replace(BUSY, layout=Layout(8, 1, False))
    with pytest.raises(BadPlan, match="more than 1 nodes"):
        worth(load, old, old, dataclasses.replace(BUSY, cluster=parse("2x4xA100-80GB")))

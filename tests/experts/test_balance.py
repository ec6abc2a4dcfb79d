"""Placements: whole, even, deterministic, and changed by few moves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.balance import BadPlan, Placement, lower_bound, place, replace
from experts.repair import repaired


def zipf(layers: int, experts: int, exponent: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, experts + 1) ** exponent
    return np.stack([rng.permutation(shares) for _ in range(layers)]) * 1e5


def drifted(load: np.ndarray, seed: int = 1) -> np.ndarray:
    return load * np.exp(np.random.default_rng(seed).normal(0.0, 0.2, load.shape))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """(load, ranks, spare) of small clusters, loads of zero and of one hot expert among them."""
    ranks, slots = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    experts = draw(st.integers(1, ranks * slots))
    flat = st.lists(st.integers(0, 1000), min_size=2 * experts, max_size=2 * experts)
    return np.array(draw(flat), np.float64).reshape(2, experts), ranks, ranks * slots - experts


@settings(max_examples=50)
@given(problems())
def test_every_expert_has_a_slot_and_no_bound_is_broken(problem) -> None:
    load, ranks, spare = problem
    made = place(load, ranks, spare)
    layers, experts = load.shape
    assert made.experts.shape == (layers, ranks, (experts + spare) // ranks)
    assert (made.copies >= 1).all() and (made.copies.sum(1) == experts + spare).all()
    assert made.rank_loads(load).sum(1) == pytest.approx(load.sum(1))
    assert (made.imbalance(load) >= lower_bound(load, ranks, made.experts.shape[2]) - 1e-9).all()


@settings(max_examples=50)
@given(problems())
def test_the_same_load_gets_the_same_placement(problem) -> None:
    load, ranks, spare = problem
    assert (place(load, ranks, spare).experts == place(load.copy(), ranks, spare).experts).all()


@settings(max_examples=50)
@given(problems(), st.integers(0, 10))
def test_a_change_moves_no_more_than_it_may_and_never_worsens(problem, seed) -> None:
    load, ranks, spare = problem
    old, new = place(load, ranks, spare), drifted(load, seed)
    made = replace(new, old, most_moved=0.5)
    assert (made.moved_from(old) <= max(0.5 * ranks * made.experts.shape[2], 2)).all()
    assert (made.imbalance(new) <= old.imbalance(new) + 1e-9).all()


@settings(max_examples=20)
@given(problems())
def test_what_is_balanced_stays(problem) -> None:
    load, ranks, spare = problem
    old = place(load, ranks, spare)
    assert replace(load, old).moved_from(old).sum() == 0


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(
    ("layers", "experts", "ranks", "spare", "near"),
    [(48, 128, 8, 16, 1.001), (10, 256, 32, 64, 1.01), (10, 256, 64, 64, 1.015), (10, 128, 8, 0, 1.001)],
)
def test_skewed_loads_come_near_the_lower_bound(layers, experts, ranks, spare, near, exponent) -> None:
    load = zipf(layers, experts, exponent)
    made = place(load, ranks, spare)
    assert made.imbalance(load).mean() <= near * lower_bound(load, ranks, (experts + spare) // ranks).mean()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_under_drift_a_tenth_of_the_moves_restores_the_balance(exponent) -> None:
    load = zipf(48, 128, exponent)
    old, new = place(load, 8, 16), drifted(load)
    made = replace(new, old)
    assert old.imbalance(new).mean() > 1.05 > 1.011 > made.imbalance(new).mean()
    assert made.moved_from(old).mean() < 0.07 * 144


@pytest.mark.parametrize(("ranks", "spare"), [(8, 0), (32, 64)])
def test_drift_upon_drift_the_balance_is_kept(ranks, spare) -> None:
    load = zipf(6, 128, 0.5)
    held = place(load, ranks, spare)
    for seed in range(5):
        load = drifted(load, seed)
        held = replace(load, held)
        assert held.imbalance(load).mean() <= 1.015 * place(load, ranks, spare).imbalance(load).mean()


def test_one_move_that_is_allowed_is_made_where_one_is_enough() -> None:
    """Expert 1 cooled, expert 0 got hot: its second copy takes the place of the other's, and nothing else moves."""
    placed = np.array([[0, 2], [1, 3], [1, 4]])
    made = repaired(placed, np.array([10.0, 2.0, 1.0, 4.0, 4.0]), goal=9.5, most=1)
    assert (made != placed).sum() == 1 and (made == 0).sum() == 2


def test_three_ranks_change_places_where_no_swap_of_two_is_as_good() -> None:
    placed = np.array([[0, 1], [2, 3], [4, 5]])
    load = np.array([6.0, 6.0, 4.0, 8.0, 2.0, 4.0])  # 12, 12 and 6 tokens
    made = repaired(placed, load, goal=10.0, most=3)
    assert load[made].sum(1).tolist() == [10.0, 10.0, 10.0] and (made != placed).sum() == 3


def test_a_new_hot_expert_gets_copies_in_the_place_of_those_that_cooled() -> None:
    load = np.ones((1, 16))
    load[0, 0] = 40.0
    old = place(load, 4, 4)
    new = np.ones((1, 16))
    new[0, 9] = 40.0
    made = replace(new, old, most_moved=1.0)
    assert (old.copies[0, 0], made.copies[0, 9]) == (4, 4)  # one on each rank
    assert made.imbalance(new)[0] < 1.1 < 2.0 < old.imbalance(new)[0]


def test_impossible_numbers_are_refused_with_possible_ones() -> None:
    with pytest.raises(BadPlan, match="128 experts and 3 spare slots do not divide over 8 ranks: take 0 spare slots"):
        place(np.ones((1, 128)), 8, 3)
    with pytest.raises(BadPlan, match="take 2 spare slots"):
        place(np.ones((1, 10)), 4)
    with pytest.raises(BadPlan, match="at least one rank"):
        place(np.ones((1, 4)), 0)


@pytest.mark.parametrize("load", [np.array([[1.0, np.nan]]), np.array([[1.0, -1.0]]), np.ones(2), np.ones((0, 2))])
def test_what_is_no_load_is_refused(load) -> None:
    with pytest.raises(BadPlan, match="finite numbers, none below 0"):
        place(load, 1)
    with pytest.raises(BadPlan, match="finite numbers, none below 0"):
        replace(load, place(np.ones((1, 2)), 1))


def test_a_load_of_another_model_is_refused() -> None:
    with pytest.raises(BadPlan, match=r"a load of \(1, 8\) layers and experts for a placement of \(1, 4\)"):
        replace(np.ones((1, 8)), place(np.ones((1, 4)), 2))


def test_a_placement_that_lacks_an_expert_is_none() -> None:
    with pytest.raises(BadPlan, match="expert 3 of layer 1 is on none of 2 ranks"):
        Placement(np.array([[[0, 1], [2, 3]], [[0, 1], [2, 2]]]), 4)
    with pytest.raises(BadPlan, match="holds none of the 2 experts"):
        Placement(np.array([[[0, 1], [2, 1]]]), 2)


def pairings(experts: list[int]) -> Iterator[list[tuple[int, int]]]:
    """All ways to put them on ranks of two."""
    if not experts:
        yield []
    for other in experts[1:]:
        for rest in pairings([expert for expert in experts[1:] if expert != other]):
            yield [(experts[0], other), *rest]


def test_eight_experts_on_four_ranks_are_placed_as_well_as_can_be() -> None:
    """Against all 105 pairings: the lower bound is no placement's there."""
    load = np.random.default_rng(0).lognormal(0.0, 0.5, (200, 8))
    every = list(pairings(list(range(8))))
    best = np.min([np.max([load[:, a] + load[:, b] for a, b in pairing], axis=0) for pairing in every], axis=0)
    ours = place(load, 4).rank_loads(load).max(1)
    assert len(every) == 105 and (ours >= best - 1e-9).all()
    assert (ours / best).mean() < 1.001 and (ours / best).max() < 1.05

"""What goes to other nodes: by the formula and by tokens drawn one at a time; and placements that look at nodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.balance import FOR_NODES, BadPlan, Placement, place, replace
from experts.traffic import Traffic, rank_loads, sent_across_nodes


def zipf(layers: int, experts: int, exponent: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, experts + 1) ** exponent
    return np.stack([rng.permutation(shares) for _ in range(layers)]) * 1e5


def drawn(placement: Placement, load: np.ndarray, traffic: Traffic, tokens: int, seed: int) -> tuple[float, np.ndarray]:
    """(hidden states sent to other nodes by a token, tokens by rank), from tokens drawn one at a time, one layer."""
    rng = np.random.default_rng(seed)
    experts = placement.experts[0]
    ranks, each = len(experts), len(experts) // traffic.nodes
    holders = [[(r, s) for r, s in zip(*np.nonzero(experts == e), strict=True)] for e in range(load.shape[1])]
    of_group = load[0].reshape(traffic.groups, -1)
    size, picks = of_group.shape[1], traffic.top_k // traffic.top_groups
    chosen = np.minimum(traffic.top_groups * of_group.sum(1) / load.sum(), 1.0)
    sent, taken = 0, np.zeros(ranks)
    for _ in range(tokens):
        own, nodes = rng.integers(traffic.nodes), set()
        for group in np.flatnonzero(rng.random(traffic.groups) < chosen):
            for expert in rng.choice(size, picks, p=of_group[group] / of_group[group].sum()) + group * size:
                copies = holders[expert]
                near = [c for c in copies if c[0] // each == own]
                copies = near if traffic.own_node_first and near else copies
                rank = copies[rng.integers(len(copies))][0]
                taken[rank] += 1
                nodes.add(rank // each)
        sent += len(nodes - {own})
    return sent / tokens, taken


@pytest.mark.parametrize("own_node_first", [False, True])
@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2)])
def test_the_formula_agrees_with_tokens_drawn_one_at_a_time(groups, top_groups, own_node_first) -> None:
    load = zipf(1, 16, 0.8, seed=3)
    traffic = Traffic(4, groups, top_groups, 4, own_node_first)
    made = place(load, 8, 8)
    by_formula = sent_across_nodes(made, load, traffic)[0] / (load.sum() / traffic.top_k)
    by_tokens, taken = drawn(made, load, traffic, 4000, seed=1)
    assert by_tokens == pytest.approx(by_formula, rel=0.05)
    if groups == 1:
        assert taken / taken.sum() == pytest.approx(rank_loads(made, load, traffic)[0] / load.sum(), abs=0.012)


def test_by_hash_copies_save_nothing_and_own_node_first_they_save_all() -> None:
    load = np.ones((1, 2))
    everywhere = Placement(np.array([[[0, 1], [0, 1]]]), 2)
    one_each = Placement(np.array([[[0, 0], [1, 1]]]), 2)
    by_hash, own_first = Traffic(2, top_k=1), Traffic(2, top_k=1, own_node_first=True)
    assert sent_across_nodes(everywhere, load, by_hash) == sent_across_nodes(one_each, load, by_hash) == [1.0]
    assert sent_across_nodes(everywhere, load, own_first) == [0.0]
    assert sent_across_nodes(one_each, load, own_first) == [1.0]


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, int, int, Traffic]:
    nodes, groups = draw(st.sampled_from([2, 3])), draw(st.sampled_from([1, 2, 4]))
    ranks, experts = nodes * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    slots = -(-experts // ranks) + draw(st.integers(0, 2))
    flat = draw(st.lists(st.integers(0, 1000), min_size=2 * experts, max_size=2 * experts))
    traffic = Traffic(nodes, groups, draw(st.integers(1, groups)), 8, draw(st.booleans()))
    return np.array(flat, np.float64).reshape(2, experts), ranks, ranks * slots - experts, traffic


@settings(max_examples=30, deadline=None)
@given(problems())
def test_for_nodes_no_layer_gets_fuller_than_it_may_or_sends_more(problem) -> None:
    load, ranks, spare, traffic = problem
    flat, made = place(load, ranks, spare), place(load, ranks, spare, traffic)
    most = flat.rank_loads(load).max(1) + FOR_NODES * load.sum(1) / ranks
    assert (made.rank_loads(load).max(1) <= most + 1e-9).all()
    assert (sent_across_nodes(made, load, traffic) <= sent_across_nodes(flat, load, traffic) + 1e-9).all()
    assert (made.experts == place(load, ranks, spare, traffic).experts).all()


@settings(max_examples=30, deadline=None)
@given(problems(), st.integers(0, 10))
def test_a_change_on_nodes_never_worsens_the_balance(problem, seed) -> None:
    load, ranks, spare, traffic = problem
    old = place(load, ranks, spare, traffic)
    later = load * np.exp(np.random.default_rng(seed).normal(0.0, 0.3, load.shape))
    made = replace(later, old, traffic=traffic)
    assert (made.rank_loads(later).max(1) <= old.rank_loads(later).max(1) + 1e-9).all()


def test_groups_on_few_nodes_send_a_tenth_less_by_hash_and_stay_there_under_drift() -> None:
    load, traffic = zipf(6, 256, 0.5), Traffic(4, 8, 4, 8)
    flat, made = place(load, 32, 64), place(load, 32, 64, traffic)
    sent = sent_across_nodes(made, load, traffic).mean()
    assert sent < 0.92 * sent_across_nodes(flat, load, traffic).mean()
    later = load * np.exp(np.random.default_rng(1).normal(0.0, 0.2, load.shape))
    changed, blind = replace(later, made, traffic=traffic), replace(later, made)
    before, after, lost = (sent_across_nodes(p, later, traffic).mean() for p in (made, changed, blind))
    assert after < 1.02 * before < lost


def test_with_the_own_node_first_copies_go_to_other_nodes() -> None:
    load, own_first = zipf(6, 64, 1.0), Traffic(4, top_k=8, own_node_first=True)
    flat, made = place(load, 16, 32), place(load, 16, 32, own_first)
    assert sent_across_nodes(made, load, own_first).mean() < 0.97 * sent_across_nodes(flat, load, own_first).mean()


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(BadPlan, match="8 ranks do not lie evenly on 3 nodes"):
        place(np.ones((1, 8)), 8, 0, Traffic(3))
    with pytest.raises(BadPlan, match="9 experts do not divide into 2 groups"):
        place(np.ones((1, 9)), 3, 0, Traffic(3, 2))
    with pytest.raises(BadPlan, match="a token goes to one group at least"):
        Traffic(2, groups=2, top_groups=3)

"""The plan as a value: whole, refused where it does not fit, the same after a file, its moves from one to another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.balance import place, replace
from experts.plan import BadPlan, Move, Placement, PlacementPlan


def plan(experts: list[list[list[int]]], count: int, nodes: int = 1) -> PlacementPlan:
    return PlacementPlan("m", Placement(np.array(experts), count), nodes)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[PlacementPlan, PlacementPlan]:
    """Two plans for the same group, one changed from the other or made anew."""
    nodes = draw(st.sampled_from([1, 2]))
    ranks, slots = nodes * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, ranks * slots))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    load, later = rng.integers(0, 1000, (2, 2, experts)).astype(float)
    old = place(load, ranks, ranks * slots - experts)
    new = replace(later, old) if draw(st.booleans()) else place(later, ranks, ranks * slots - experts)
    return PlacementPlan("m", old, nodes), PlacementPlan("m", new, nodes)


@settings(max_examples=30)
@given(pairs())
def test_a_plan_is_the_same_after_a_file(both) -> None:
    for one in both:
        read = PlacementPlan.from_json(one.to_json())
        assert (read.model, read.nodes, read.experts) == (one.model, one.nodes, one.experts)
        assert (read.placement.experts == one.placement.experts).all()


@settings(max_examples=40)
@given(pairs())
def test_its_moves_lead_from_the_old_to_the_new(both) -> None:
    old, new = both
    moves, held = new.moves_from(old), old.placement.experts.copy()
    before = old.placement.experts
    for move in moves:
        assert move.expert in before[move.layer, move.source]  # the source has it, and as it was before any move
        assert move.expert not in before[move.layer, move.target]
        near = [r for r in range(old.ranks) if old.node_of(r) == old.node_of(move.target)]
        if any(move.expert in before[move.layer, rank] for rank in near):
            assert old.node_of(move.source) == old.node_of(move.target)
        held[move.layer, move.target, move.slot] = move.expert
    for layer, rank in np.ndindex(*held.shape[:2]):  # a second copy on a rank is copied there, no move
        assert set(new.placement.experts[layer, rank]) <= set(held[layer, rank]) | set(before[layer, rank])
    assert len(moves) <= new.placement.moved_from(old.placement).sum()
    kept = new.placement.in_slots_of(old.placement)
    assert (np.sort(kept.experts, 2) == np.sort(new.placement.experts, 2)).all()


def test_moves_take_from_the_own_node_and_from_who_sends_least() -> None:
    old = plan([[[0, 1], [0, 2], [3, 4], [3, 1]]], 5, nodes=2)
    new = plan([[[0, 1], [0, 2], [3, 1], [3, 4]]], 5, nodes=2)
    assert new.moves_from(old) == [Move(0, 1, 3, 2, 1), Move(0, 4, 2, 3, 1)]
    sent = new.bytes_sent(new.moves_from(old), 100.0)
    assert (sent.most_within_nodes, sent.most_between_nodes) == (100.0, 0.0)
    across = plan([[[0, 1], [4, 2], [3, 4], [3, 0]]], 5, nodes=2)
    sent = across.bytes_sent(across.moves_from(old), 100.0)
    assert across.moves_from(old) == [Move(0, 4, 2, 1, 0), Move(0, 0, 0, 3, 1)]
    assert (sent.most_within_nodes, sent.most_between_nodes) == (0.0, 100.0)
    assert plan([[[1, 0], [2, 0], [4, 3], [1, 3]]], 5, nodes=2).moves_from(old) == []  # only other slots


def test_a_plan_for_another_group_is_refused() -> None:
    one = plan([[[0, 1], [2, 3]]], 4)
    one.check("m", 1, 4, 2)
    with pytest.raises(BadPlan, match="is for m, not for other"):
        one.check("other", 1, 4, 2)
    with pytest.raises(BadPlan, match="is for 1 MoE layers, not 3 and 2 ranks, not 4: make one for this layout"):
        one.check("m", 3, 4, 4)
    with pytest.raises(BadPlan, match="2 slots a rank on 1 nodes no moves lead to 3 on 1"):
        plan([[[0, 1, 2], [2, 3, 0]]], 4).moves_from(one)
    with pytest.raises(BadPlan, match="2 ranks do not lie evenly on 3 nodes"):
        plan([[[0, 1], [2, 3]]], 4, nodes=3)
    with pytest.raises(BadPlan, match="names the model"):
        PlacementPlan("", one.placement)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "version is 2, and this program reads 1"),
        ({"layers": [[[0, 1], [2, 2]]]}, "expert 3 of layer 0 is on none"),
        ({"layers": [[[0, 1], [2]]]}, "as many slots in each rank"),
        ({"layers": []}, "one at least"),
        ({"layers": [[[], []]]}, "one at least"),
        ({"layers": [[[0, 1], [2, 9]]]}, "holds none of the 4 experts"),
        ({"layers": "none"}, "no placement plan: Expected `array`"),
        ({"color": "blue"}, "unknown field `color`"),
        ({"nodes": 0}, "do not lie evenly on 0 nodes"),
    ],
)
def test_a_text_that_is_no_plan_is_refused_with_its_reason(change, why) -> None:
    text = json.loads(plan([[[0, 1], [2, 3]]], 4).to_json()) | change
    with pytest.raises(BadPlan, match=why):
        PlacementPlan.from_json(json.dumps(text))


def test_no_text_at_all_is_refused() -> None:
    with pytest.raises(BadPlan, match="no placement plan"):
        PlacementPlan.from_json(b"{")

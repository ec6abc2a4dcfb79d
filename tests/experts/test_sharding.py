"""Layouts: what is legal, what fits, what a step takes, and which one to take."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.model_spec import TIERS, tier
from experts.sharding import (
    SMALLER_GROUP,
    Assessment,
    Demand,
    Efficiency,
    Layout,
    assess,
    legal,
    recommended,
    step,
    weight_bytes,
)
from experts.topology import parse

A100S = parse("8xA100-80GB")
SPECS = st.sampled_from([tier(name) for name in TIERS])
CLUSTERS = st.sampled_from([parse(text) for text in ("1xH200-141GB", "8xA100-80GB", "6xA100-40GB", "4x8xH100-80GB")])


def assessed(name: str, cluster: str = "8xA100-80GB", **demand: float) -> list[Assessment]:
    spec, machines = tier(name), parse(cluster)
    wanted = dataclasses.replace(Demand(), **demand)
    return [assess(spec, machines, layout, wanted) for layout in legal(spec, machines)]


@pytest.mark.parametrize(("prompt", "output", "measured"), [(512, 128, 8_675), (1024, 256, 7_910)])
def test_the_prediction_for_one_h200_is_near_what_was_measured_there(prompt: int, output: int, measured: int) -> None:
    """Offline, 512 sequences at once, vLLM 0.32, bf16: 67.8 and 30.9 requests/s."""
    spec, machine = tier("32b"), parse("1xH200-141GB")
    found = step(spec, machine, Layout(1, 1, False), Demand(prompt=prompt, output=output), 512, Efficiency())
    assert 512 / found.seconds == pytest.approx(measured, rel=0.06)


@given(SPECS, CLUSTERS)
def test_every_layout_keeps_vllms_rules_and_the_cluster(spec, cluster) -> None:
    found = list(legal(spec, cluster))
    assert len(set(found)) == len(found) > 0
    for layout in found:
        assert layout.group <= cluster.gpus and layout.tensor_parallel <= cluster.gpus_per_node
        assert spec.attention.heads % layout.tensor_parallel == 0
        if not layout.by_expert:
            assert spec.expert_width % layout.group == 0


@given(SPECS, CLUSTERS)
def test_a_group_holds_the_whole_model(spec, cluster) -> None:
    for layout in legal(spec, cluster):
        assert weight_bytes(spec, layout, 2.0) * layout.group >= 2.0 * spec.parameters * 0.999


@given(SPECS, CLUSTERS, st.integers(64, 8192), st.integers(1, 4096))
def test_what_is_promised_fits_and_is_in_time(spec, cluster, prompt, output) -> None:
    demand = Demand(prompt=prompt, output=output)
    for layout in legal(spec, cluster):
        found = assess(spec, cluster, layout, demand)
        if found.step is None:
            assert found.tokens_per_s == 0
            continue
        assert found.fits and found.step.seconds <= demand.tpot_s
        ranks = found.step.sequences * layout.data_parallel
        assert ranks * demand.context <= found.kv_tokens
        used = found.weight_bytes + demand.activation_bytes
        assert used < demand.utilization * cluster.gpu.memory
        assert found.groups * layout.group + found.unused_gpus == cluster.gpus


@given(st.integers(1, 500))
def test_a_larger_batch_takes_longer_and_gives_more(sequences: int) -> None:
    spec, layout = tier("32b"), Layout(1, 4, True)
    one = step(spec, A100S, layout, Demand(), sequences, Efficiency())
    more = step(spec, A100S, layout, Demand(), sequences + 1, Efficiency())
    assert more.seconds > one.seconds
    assert (sequences + 1) / more.seconds > sequences / one.seconds


def test_what_does_not_fit_says_by_how_much() -> None:
    found = {str(a.layout): a for a in assessed("671b")}
    best = found["TP8"]
    assert not best.fits and best.step is None and recommended(list(found.values())) is None
    assert best.missing_bytes == pytest.approx(96e9, rel=0.01)
    freed = dataclasses.replace(A100S.gpu, memory=A100S.gpu.memory + best.missing_bytes / Demand().utilization + 1e6)
    roomier = dataclasses.replace(A100S, gpu=freed)
    assert assess(tier("671b"), roomier, best.layout, Demand()).fits


def test_int8_halves_what_is_not_a_table() -> None:
    spec, layout = tier("32b"), Layout(1, 1, False)
    tables = (spec.embedding_parameters + spec.router_parameters) * 2.0
    assert weight_bytes(spec, layout, 1.0) - tables == (weight_bytes(spec, layout, 2.0) - tables) / 2


def test_the_smallest_group_that_is_nearly_as_good_is_taken() -> None:
    found = assessed("32b")
    best = recommended(found)
    assert best is not None and best.layout.group == 4
    most = max(a.tokens_per_s for a in found)
    assert best.tokens_per_s >= SMALLER_GROUP * most
    assert all(a.tokens_per_s < SMALLER_GROUP * most for a in found if a.layout.group < best.layout.group)
    assert recommended(assessed("7b")).layout.group == 1  # type: ignore[union-attr]  # it is found


def test_only_groups_beyond_a_node_use_the_network() -> None:
    for found in assessed("671b", "2x8xH200-141GB"):
        if found.step is not None:
            assert (found.step.network_bytes > 0) == (found.layout.group > 8)


def test_unbalanced_experts_cost_only_those_who_deal_them_out() -> None:
    even, skewed = (
        {str(a.layout): a.tokens_per_s for a in assessed("32b", imbalance=imbalance)} for imbalance in (1.0, 1.5)
    )
    assert skewed["TP1 DP4 EP4"] < even["TP1 DP4 EP4"] and skewed["TP1 DP4"] == even["TP1 DP4"]


def test_a_layout_is_told_in_vllms_words() -> None:
    layout = Layout(2, 4, True)
    assert str(layout) == "TP2 DP4 EP8"
    assert layout.vllm_arguments() == {
        "tensor_parallel_size": 2,
        "data_parallel_size": 4,
        "enable_expert_parallel": True,
    }

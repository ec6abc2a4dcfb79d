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
    Layout,
    Prefill,
    assess,
    legal,
    recommended,
    step,
    usual_efficiency,
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


H200, ALONE = parse("1xH200-141GB"), Layout(1, 1, False)


def on_one_h200(sequences: int, prefill: Prefill | None = None, **demand: float) -> float:
    """Seconds of a step."""
    return step(tier("32b"), H200, ALONE, Demand(**demand), sequences, usual_efficiency(), prefill).seconds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "weights", "measured_ms"),
    [
        *((1, 2, 4.0), (8, 2, 8.6), (32, 2, 14.9), (64, 2, 17.5), (256, 2, 21.0), (512, 2, 25.5)),
        *((1, 1, 3.9), (64, 1, 11.1), (512, 1, 21.6)),
    ],
)
def test_decoding_steps_are_those_measured_on_one_h200(batch: int, weights: int, measured_ms: float) -> None:
    """vLLM 0.32, bf16 and int8, 208 tokens of context a sequence."""
    found = on_one_h200(batch, Prefill(0, 0), prompt=144, output=128, weight_bytes=weights)
    assert 1e3 * found == pytest.approx(measured_ms, rel=0.04 if weights == 2 else 0.11)


def test_a_long_stream_and_a_step_of_prefill_are_those_measured_there() -> None:
    assert 1e3 * on_one_h200(1, Prefill(0, 0), prompt=32_000, output=128) == pytest.approx(4.9, rel=0.04)
    assert 1e3 * on_one_h200(0, Prefill(8192, 256)) == pytest.approx(134, rel=0.04)


@pytest.mark.parametrize(
    ("prompt", "output", "weights", "measured"),
    [(512, 128, 2, 67.8), (256, 128, 2, 99.7), (1024, 256, 2, 30.9), (512, 128, 1, 59.3), (256, 128, 1, 93.0)],
)
def test_whole_runs_are_those_measured_there(prompt: int, output: int, weights: int, measured: float) -> None:
    """Offline, 512 sequences at once, requests/s."""
    found = on_one_h200(512, prompt=prompt, output=output, weight_bytes=weights)
    assert 512 / found / output == pytest.approx(measured, rel=0.04 if weights == 2 else 0.07)


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
        assert found.missing_bytes == 0 and found.step.seconds <= demand.tpot_s
        ranks = found.step.sequences * layout.data_parallel
        assert ranks * demand.context <= found.kv_tokens
        used = found.weight_bytes + demand.activation_bytes
        assert used < demand.utilization * cluster.gpu.memory
        assert found.groups * layout.group + found.unused_gpus == cluster.gpus


@given(st.integers(1, 500))
def test_a_larger_batch_takes_longer_and_gives_more(sequences: int) -> None:
    spec, layout = tier("32b"), Layout(1, 4, True)
    one = step(spec, A100S, layout, Demand(), sequences, usual_efficiency())
    more = step(spec, A100S, layout, Demand(), sequences + 1, usual_efficiency())
    assert more.seconds > one.seconds
    assert (sequences + 1) / more.seconds > sequences / one.seconds


def test_what_does_not_fit_says_by_how_much() -> None:
    found = {str(a.layout): a for a in assessed("671b")}
    best = found["TP8"]
    assert best.missing_bytes > 0 and best.step is None and recommended(list(found.values())) is None
    assert best.missing_bytes == pytest.approx(96e9, rel=0.01)
    freed = dataclasses.replace(A100S.gpu, memory=A100S.gpu.memory + best.missing_bytes / Demand().utilization + 1e6)
    roomier = dataclasses.replace(A100S, gpu=freed)
    assert assess(tier("671b"), roomier, best.layout, Demand()).missing_bytes == 0


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


def test_prompts_are_sent_around_as_decoding_tokens_are() -> None:
    spec, layout = tier("32b"), Layout(4, 1, True)
    decoding = step(spec, A100S, layout, Demand(), 100, usual_efficiency(), Prefill(0, 0))
    both = step(spec, A100S, layout, Demand(), 100, usual_efficiency(), Prefill(300, 0))
    assert both.node_bytes == pytest.approx(4 * decoding.node_bytes)
    assert both.seconds > decoding.seconds and both.attention_s == decoding.attention_s


def test_latent_attention_pays_for_each_chunk_again() -> None:
    def last_chunk(name: str, tokens: int) -> float:
        prefill = Prefill(tokens, 32_768 - tokens / 2, 32_768 - tokens)
        return step(tier(name), A100S, ALONE, Demand(), 1, usual_efficiency(), prefill).prefill_s

    assert last_chunk("7b", 256) == pytest.approx(last_chunk("7b", 512) / 2, rel=0.01)
    assert last_chunk("16b", 256) > 0.6 * last_chunk("16b", 512)


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

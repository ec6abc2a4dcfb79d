"""CPU workers that hold what a plan says: any plan gives the whole model's answers, and the loads that it predicts."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Engines, differences

from experts.load import shard_tokens
from experts.placement import ShardPlacement
from experts.plan import Placement, PlacementPlan
from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.tokenizer import THINK, TOKEN_ID, USER, encode_prompt

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two shards, two CPUs"),
]

LAYERS, EXPERTS, SHARDS = 4, 8, 2
PLANS = 20
MAX_TOKENS = 24


def random_plan(number: int) -> PlacementPlan:
    """Experts in any slots; every other plan has spare ones, which may put two copies on one shard."""
    rng = np.random.default_rng(number)
    spare = (0, 2, 0, 4, 0, 8)[number % 6]
    slots = [np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, spare)]) for _ in range(LAYERS)]
    placed = np.array([rng.permutation(ids).reshape(SHARDS, -1) for ids in slots])
    return PlacementPlan("tiny-r1", Placement(placed, EXPERTS))


@pytest.fixture(scope="module")
def answers(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The whole model's, then each plan's: one engine loads its model by each of them."""
    folder = tmp_path_factory.mktemp("plans")
    sums = [f"{7 * i % 900}{'+-'[i % 2]}{13 * i % 700}" for i in range(60)]
    prompts = [[*encode_prompt([(USER, text)]), TOKEN_ID[THINK]] for text in sums]
    common = {"model": str(checkpoint_path()), "prompts": prompts, "max_tokens": MAX_TOKENS}
    files = [folder / f"{number}.json" for number in range(PLANS)]
    for number, file in enumerate(files):
        file.write_bytes(random_plan(number).to_json())
    first, *others = map(str, files)
    whole = engines.answer(common | {"shards": 1})
    placed = engines.answer(common | {"shards": SHARDS, "plan": first, "then": others})
    return [whole, placed, *placed["then"]]


@pytest.mark.parametrize("number", range(PLANS))
def test_any_plan_gives_the_whole_models_answers(answers: list[dict[str, Any]], number: int) -> None:
    whole, placed = answers[0], answers[1 + number]

    assert differences(whole["runs"]["whole"], placed["runs"]["whole"]) == []
    held = [list(shard["experts"].values()) for shard in placed["placement"]]
    for layer, ranks in enumerate(random_plan(number).placement.experts):
        assert [set(held[rank][layer]) for rank in range(SHARDS)] == [set(slots.tolist()) for slots in ranks]


def test_shards_compute_what_the_plan_predicts(answers: list[dict[str, Any]]) -> None:
    """Predicted from what the whole model's experts were given; measured at the kernels' door."""
    tokens = np.array(answers[0]["counted"][0])
    shares = []
    for number in range(PLANS):
        predicted = random_plan(number).placement.rank_loads(tokens.astype(float))
        measured = np.array(answers[1 + number]["computed"]).T
        has_spare = random_plan(number).slots > EXPERTS // SHARDS
        np.testing.assert_allclose(measured, predicted, rtol=0.1 if has_spare else 0)  # copies share in whole tokens
        shares.append(predicted[:, 0] / predicted.sum(1))
    assert np.ptp(shares) > 0.2, "the plans are all alike"


def test_load_by_shard_follows_the_placement_that_the_workers_tell(answers: list[dict[str, Any]]) -> None:
    for number in (0, 2, 4):  # without copies
        told = answers[1 + number]
        shards = [ShardPlacement(**shard) for shard in told["placement"]]
        measured = np.array(told["computed"]).T
        assert shard_tokens(np.array(told["counted"][0]), shards).tolist() == measured.tolist()


def test_a_plan_for_another_model_is_refused(engines: Engines, tmp_path: Path) -> None:
    plan = PlacementPlan("another", Placement(np.arange(6).reshape(1, 2, 3).repeat(LAYERS, 0), 6))
    (tmp_path / "plan.json").write_bytes(plan.to_json())
    job = {"model": str(checkpoint_path()), "shards": SHARDS, "plan": str(tmp_path / "plan.json")}
    assert engines.answer(job) == {"failed": True}

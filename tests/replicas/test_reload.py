"""Real engines that reload: what they answer then is what an engine answers that started with those weights.

float32, greedy, in one process and over two shards whose experts a plan places, some of them twice.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_moe
from reloading_engines import replies
from safetensors.torch import load_file, save_file

from experts.plan import Placement, PlacementPlan
from experts.tiny_r1 import checkpoint_path

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two shards, two CPUs"),
]

LAYERS, EXPERTS = 4, 8
FAMILIES = ("qwen2_moe", "olmoe", "deepseek_v3")
GATE = "model.layers.1.mlp.gate.weight"
UP = "model.layers.1.mlp.experts.3.up_proj.weight"


def change(folder: Path, name: str, how: Any) -> str:
    """A copy of the embedded model with other tensors."""
    directory = folder / name
    shutil.copytree(checkpoint_path(), directory)
    [file] = directory.glob("*.safetensors")
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return str(directory)


def exchange_experts(tensors: dict[str, Any]) -> None:
    for layer in range(LAYERS):
        for part in ("gate_proj", "up_proj", "down_proj"):
            one, other = (f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight" for expert in (1, 6))
            tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


def rename(tensors: dict[str, Any]) -> None:
    tensors["model.layers.9.mlp.gate.weight"] = tensors.pop(GATE)


def narrow(tensors: dict[str, Any]) -> None:
    tensors[GATE] = tensors[GATE][:, :64].contiguous()


def plan(folder: Path) -> str:
    """Each shard's experts are neither those of vLLM's own deal nor in order, and two are on both."""
    slots = np.array([[5, 0, 7, 2, 3], [6, 1, 4, 3, 0]])
    file = folder / "plan.json"
    file.write_bytes(PlacementPlan("m", Placement(np.stack([slots] * LAYERS), EXPERTS)).to_json())
    return str(file)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What each engine told: about 4 s an engine where nothing else runs."""
    folder = tmp_path_factory.mktemp("versions")
    v1, v2 = str(checkpoint_path()), change(folder, "v2", exchange_experts)
    bad = {name: change(folder, name, how) for name, how in (("renamed", rename), ("narrow", narrow))}
    bad["lacking"] = change(folder, "lacking", lambda tensors: tensors.pop(UP))
    one: dict[str, Any] = {"shards": 1, "version": "v1"}
    two: dict[str, Any] = {"shards": 2, "version": "v1", "plan": plan(folder)}
    there_and_back = [["reload", v2], ["reload", v1]]
    broken = [act for name in ("renamed", "narrow") for act in (["force", bad[name]], ["reload", v1])]
    probes = [{"prompt": list(range(40, 60)), "max_tokens": 5, "logprobs": [-1.0] * 19}]
    refused = [["reload", bad[name]] for name in ("renamed", "narrow", "lacking")] + [["reload", str(folder / "none")]]
    jobs = {
        "one": one | {"model": v1, "acts": [*there_and_back, *broken, *refused, ["probe", probes]]},
        "one fresh": one | {"model": v2, "acts": []},
        "two": two | {"model": v1, "acts": [*there_and_back, *broken]},
        "two fresh": two | {"model": v2, "acts": []},
    }
    for family in FAMILIES:
        seeds = [str(random_moe.write(family, folder / f"{family}-{seed}", seed)) for seed in (0, 1)]
        jobs[family] = one | {"model": seeds[0], "acts": [["reload", seeds[1]], ["reload", seeds[0]]]}
    with replies(list(jobs.values())) as each:
        yield dict(zip(jobs, each, strict=True))


SAME = ("checksum", "tokens", "placement", "counted")  # an engine's state: what it has and what it does


@pytest.mark.parametrize("shards", ["one", "two"])
def test_what_is_reloaded_is_what_is_loaded(told: dict[str, Any], shards: str) -> None:
    start, fresh = told[shards]["start"], told[f"{shards} fresh"]["start"]
    to_v2, back = told[shards]["acts"][:2]

    assert to_v2["failed"] is back["failed"] is None
    assert [to_v2[what] for what in SAME] == [fresh[what] for what in SAME]
    assert [back[what] for what in SAME] == [start[what] for what in SAME]
    assert start["checksum"] != fresh["checksum"] and start["tokens"] != fresh["tokens"]


def test_the_counts_of_experts_follow_the_weights(told: dict[str, Any]) -> None:
    """v2 is v1 with two experts' weights exchanged and not their rows of the gate: it routes otherwise from then on."""
    start, to_v2 = told["one"]["start"], told["one"]["acts"][0]
    counts = np.array(to_v2["counted"])
    assert counts.shape == (LAYERS, EXPERTS) and (counts.sum(1) == counts[0].sum()).all() and counts.sum() > 0
    assert (counts[-1] != np.array(start["counted"])[-1]).any()


@pytest.mark.parametrize("shards", ["one", "two"])
def test_a_reload_that_fails_half_way_can_be_taken_back(told: dict[str, Any], shards: str) -> None:
    start, acts = told[shards]["start"], told[shards]["acts"][2:6]
    for failed, back in (acts[:2], acts[2:]):
        assert failed["touched"] and failed["failed"] and failed["checksum"] == ""
        assert back["failed"] is None and [back[what] for what in SAME] == [start[what] for what in SAME]


def test_other_tensors_are_refused_before_anything_is_touched(told: dict[str, Any]) -> None:
    start, acts = told["one"]["start"], told["one"]["acts"][6:10]
    assert not any(act["touched"] for act in acts)
    same = ("checksum", "tokens", "placement")  # it computes less: what is cached of the prompts stays
    assert all([act[what] for what in same] == [start[what] for what in same] for act in acts)
    renamed, narrow, lacking, none = (act["failed"] for act in acts)
    assert f"lacks {GATE}, holds model.layers.9.mlp.gate.weight too many" in renamed
    assert f"has {GATE} as float [8, 64] instead of float [8, 128]" in narrow
    assert f"lacks {UP}" in lacking
    assert "none/config.json cannot be read" in none


def test_blocks_of_the_old_weights_are_forgotten(told: dict[str, Any]) -> None:
    """The prompts are the same: what was cached of them before would be found again, and nothing stored."""
    start, to_v2 = told["one"]["start"], told["one"]["acts"][0]
    assert start["stored"] and sorted(to_v2["stored"]) == sorted(start["stored"])


def test_probes_are_answered_with_the_prompts_log_probabilities(told: dict[str, Any]) -> None:
    [(tokens, logprobs)] = told["one"]["acts"][10]["probed"]
    assert len(tokens) <= 5 and len(logprobs) == 19 and all(value < 0 for value in logprobs)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_architectures_reload(told: dict[str, Any], family: str) -> None:
    start, (to_other, back) = told[family]["start"], told[family]["acts"]
    assert to_other["failed"] is back["failed"] is None
    assert to_other["checksum"] != start["checksum"] and to_other["tokens"] != start["tokens"]
    assert [back[what] for what in SAME] == [start[what] for what in SAME]

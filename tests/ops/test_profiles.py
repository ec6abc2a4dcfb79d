"""The profiles that ship: they are the planner's, they keep what they promise, and they are settings."""

import dataclasses
from itertools import pairwise

import pytest
import yaml
from typer.testing import CliRunner

from cluster.config import load
from cluster.model_settings import PROFILES
from cluster.settings import Machine
from experts.limits import BLOCK_TOKENS, NoTime, limits
from experts.model_spec import TIERS, tier
from experts.sharding import (
    LONG_CONTEXT,
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
from ops.cli import app
from ops.errors import UserError

A100S = parse("8xA100-80GB")
EIGHT_GPUS = Machine(cpus=64, gpus=8)


def plan(*arguments):
    return CliRunner().invoke(app, ["plan", "profile", *arguments])


@pytest.fixture
def shipped(request):
    """`shipped("32b")`: the file's text."""
    return lambda name: (request.config.rootpath / "cluster" / "profiles" / f"{name}.yaml").read_text()


def in_force(name):
    """Settings of the profile, as a session would have them."""
    return load(overrides={"model.profile": name, "model.path": "/models/x"}, machine=EIGHT_GPUS).settings


def layout_of(settings):
    shards = settings.experts.shards
    return Layout(shards, 1, by_expert=shards > 1)


def test_there_is_one_for_each_tier_that_eight_gpus_can_serve(request):
    files = (request.config.rootpath / "cluster" / "profiles").iterdir()
    assert sorted(file.stem for file in files) == sorted(PROFILES)
    assert set(PROFILES) == set(TIERS) - {"671b"}
    assert "Nothing fits" in str(plan("--model", "671b").exception)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_what_the_planner_says_today(name, shipped):
    assert plan("--model", name).output == shipped(name), (
        f"run: moray plan profile --model {name} > cluster/profiles/{name}.yaml"
    )


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_the_recommended_layout_of_those_that_we_serve(name):
    found = [assess(tier(name), A100S, layout, Demand()) for layout in legal(tier(name), A100S)]
    best = recommended([each for each in found if each.layout.one_engine])
    made = in_force(name)
    assert (layout_of(made), made.replicas.count) == (best.layout, best.groups)
    assert made.engine.max_num_seqs == best.step.sequences
    smaller = [each for each in found if each.layout.one_engine and each.layout.group < best.layout.group]
    assert all(each.tokens_per_s < 0.9 * max(e.tokens_per_s for e in found if e.layout.one_engine) for each in smaller)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_fits_its_gpu_with_the_contexts_that_the_plan_promises(name):
    spec, made = tier(name), in_force(name)
    layout, demand = layout_of(made), Demand()
    promised = assess(spec, A100S, layout, demand).kv_tokens // LONG_CONTEXT
    assert promised >= 10
    kv = made.engine.kv_cache_mib << 20
    token = spec.kv_bytes_per_token(2.0, layout.tensor_parallel)
    assert kv // (token * BLOCK_TOKENS) * BLOCK_TOKENS >= promised * made.model.max_model_len
    taken = kv + weight_bytes(spec, layout, 2.0) + demand.activation_bytes
    assert taken <= demand.utilization * A100S.gpu.memory < taken + 2 * 2**20


@pytest.mark.parametrize("name", PROFILES)
def test_steps_within_a_profiles_limits_keep_the_tpot(name):
    """Step by step: a step full of usual prompts, and a 32K prompt beside a full batch from its first chunk on."""
    spec, made = tier(name), in_force(name)
    sequences, tpot = made.engine.max_num_seqs, made.router.tpot_slo_s
    assert tpot == 0.05

    def seconds(tokens, earlier, cached):
        prefill = Prefill(tokens, earlier, cached)
        return step(spec, A100S, layout_of(made), Demand(), sequences, usual_efficiency(), prefill).seconds

    def over_a_long_prompt(chunk):
        ends = [*range(0, LONG_CONTEXT, chunk), LONG_CONTEXT]
        steps = [seconds(end - begin, (begin + end) / 2, begin) for begin, end in pairwise(ends)]
        return sum(steps) / len(steps)

    usual, chunk = made.engine.max_num_batched_tokens - sequences, made.engine.extra["long_prefill_token_threshold"]
    assert seconds(usual, 512, 0) <= tpot < seconds(usual + 2 * BLOCK_TOKENS, 512, 0)
    assert over_a_long_prompt(chunk) <= tpot < over_a_long_prompt(chunk + 2 * BLOCK_TOKENS)
    assert chunk <= usual


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_serves_32k_in_chunks(name):
    made = in_force(name)
    assert made.model.max_model_len == LONG_CONTEXT > made.engine.max_num_batched_tokens
    assert made.engine.extra["enable_chunked_prefill"] and made.engine.enable_prefix_caching
    assert (made.engine.device, made.model.dtype) == ("cuda", "bfloat16")


def test_a_profile_for_another_cluster_says_how_it_was_made(tmp_path):
    made = plan("--model", "32b", "--cluster", "2xH200-141GB", "--prompt", "4096", "--tpot-ms", "40")
    assert "`moray plan profile --model 32b --cluster 2xH200-141GB --prompt 4096 --tpot-ms 40`" in made.output
    file = tmp_path / "moray.yaml"
    file.write_text(made.output)
    settings = load(file, overrides={"model.path": "/models/x"}, machine=Machine(64, 2)).settings
    assert settings.router.tpot_slo_s == 0.04 and settings.experts.shards * settings.replicas.count == 2
    assert yaml.safe_load(made.output)["model"] == {"dtype": "bfloat16", "max_model_len": LONG_CONTEXT}


def test_a_long_prompt_that_leaves_no_time_is_told():
    """Where memory limits the batch there is always time; where the TPOT does, usual prompts got all of it."""
    spec, layout, demand = tier("16b"), Layout(1, 1, by_expert=False), Demand(prompt=1, output=10_000)
    found = assess(spec, A100S, layout, demand)
    with pytest.raises(NoTime, match="no time for a chunk of a 32,768-token prompt within 50 ms"):
        limits(spec, A100S, found, demand)
    assert limits(spec, A100S, found, dataclasses.replace(demand, tpot_s=0.1)).prompt_chunk > 0
    said = plan("--model", "16b", "--prompt", "1", "--output", "10000").exception
    assert isinstance(said, UserError) and "allow more by --tpot-ms" in str(said)


@pytest.mark.vllm
@pytest.mark.parametrize("name", PROFILES)
def test_vllm_knows_what_a_profile_passes_on(name):
    from cluster.app import engine_spec
    from replicas.vllm_core import engine_args

    made = engine_args(engine_spec(in_force(name)))
    assert made.max_model_len == LONG_CONTEXT and made.enable_chunked_prefill
    assert 0 < made.long_prefill_token_threshold < made.max_num_batched_tokens
    assert made.kv_cache_memory_bytes == in_force(name).engine.kv_cache_mib << 20

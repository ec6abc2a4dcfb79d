import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.model_spec import expert_count
from experts.plan import Placement, PlacementPlan
from experts.quantize import convert
from experts.tiny_r1 import checkpoint_path, store_path
from replicas.model_directory import Flaw, check, check_context, check_cpu, check_plan, check_version, runs_int8_experts

QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 3,
    "kv_lora_rank": 16,
}
DENSE = {"architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 4}


def safetensors(tensors):
    """A file's bytes: name -> (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, nbytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


WHOLE = safetensors({"a": ("F32", [2, 3], 24), "b": ("BF16", [5], 10), "empty": ("I64", [0], 0)})


@pytest.fixture
def model(tmp_path):
    """A sound directory, to be spoilt."""

    def make(config=QWEN, weights=WHOLE):
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "tokenizer.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(weights)
        return tmp_path

    return make


def only(directory, shards=1):
    (problem,) = check(directory, shards)
    return problem


def test_the_embedded_model_is_sound():
    assert check(checkpoint_path(), 2) == []


def test_a_sound_directory_has_no_problems(model):
    assert check(model(), 1) == check(model(), 2) == []


def test_no_directory(tmp_path):
    assert only(tmp_path / "no").flaw is Flaw.DIRECTORY
    (tmp_path / "file").write_text("")
    assert "is a file" in only(tmp_path / "file").text


def test_no_config(model):
    directory = model()
    (directory / "config.json").unlink()
    assert only(directory).flaw is Flaw.CONFIG and "no config.json" in only(directory).text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"architectures": []}'])
def test_unusable_configs(model, text):
    directory = model()
    (directory / "config.json").write_text(text)
    assert only(directory).flaw is Flaw.CONFIG


def test_no_tokenizer(model):
    directory = model()
    (directory / "tokenizer.json").unlink()
    assert only(directory).flaw is Flaw.TOKENIZER


@pytest.mark.parametrize(
    ("config", "shards", "said"),
    [
        (DENSE, 2, "Qwen3ForCausalLM is a dense model"),
        (QWEN | {"num_attention_heads": 32, "num_key_value_heads": 16}, 16, "has 8 experts"),
        (
            QWEN,
            3,
            "and 2 key-value heads, which do not divide over 3 shards: experts.expert_parallel can be 1, 2, 4",
        ),
        (QWEN | {"num_attention_heads": 6, "num_key_value_heads": 4}, 6, "4 key-value heads"),
    ],
)
def test_layouts_that_vllm_refuses(model, config, shards, said):
    problem = only(model(config), shards)
    assert problem.flaw is Flaw.SHARDS and said in str(problem)


@pytest.mark.parametrize(
    ("config", "shards"),
    [
        (DENSE, 1),
        (QWEN, 4),  # two key-value heads, each on two shards
        (QWEN | {"num_experts": 7}, 2),  # 4 experts on the first shard, 3 on the second
        (DEEPSEEK, 4),  # latent attention: no key-value heads to divide
        ({"architectures": ["X"], "text_config": QWEN}, 2),
    ],
)
def test_layouts_that_vllm_takes(model, config, shards):
    assert check(model(config), shards) == []


def test_experts_are_counted_by_each_familys_name():
    assert expert_count(QWEN) == expert_count(DEEPSEEK) == expert_count({"num_local_experts": 8}) == 8
    assert expert_count(DENSE) == expert_count({"num_experts": 0}) == 0


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (WHOLE[:-1], "its header says"),
        (WHOLE + b"x", "its header says"),
        (WHOLE[:40], "ends inside its header"),
        (b"", "0 bytes long"),
        (b"\xff" * 100, "no safetensors header"),
        (struct.pack("<Q", 4) + b"nope", "header is not readable"),
        (safetensors({"a": ("F32", [2, 3], 20)}), "the bytes of a do not fit"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no safetensors header"),
    ],
)
def test_damaged_weights(model, weights, said):
    problem = only(model(weights=weights))
    assert problem.flaw is Flaw.WEIGHTS and said in problem.text and "copy it again" in problem.text


def test_no_weights(model):
    directory = model()
    (directory / "model.safetensors").unlink()
    assert "holds no weights" in only(directory).text
    (directory / "pytorch_model.bin").write_bytes(b"x")
    assert check(directory, 1) == []


def test_an_index_tells_missing_files_and_tensors(model):
    directory = model()
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    index = directory / "model.safetensors.index.json"
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    assert check(directory, 1) == []
    index.write_text(json.dumps({"weight_map": names | {"c": "model-00002-of-00002.safetensors"}}))
    assert "lacks 1 of 2 weight files: model-00002-of-00002.safetensors" in only(directory).text
    index.write_text(json.dumps({"weight_map": names | {"z": "model-00001-of-00002.safetensors"}}))
    assert "names 1 tensors that their files do not hold, the first is z" in only(directory).text
    index.write_text("[]")
    assert "cannot be read" in only(directory).text


@given(st.integers(0, len(WHOLE) - 1))
def test_every_truncation_is_noticed(tmp_path_factory, at):
    directory = tmp_path_factory.mktemp("cut")
    (directory / "config.json").write_text(json.dumps(QWEN))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(WHOLE[:at])
    assert only(directory).flaw is Flaw.WEIGHTS


@given(st.binary(max_size=64))
def test_no_bytes_are_too_strange_to_judge(tmp_path_factory, blob):
    directory = tmp_path_factory.mktemp("blob")
    (directory / "config.json").write_text(json.dumps(QWEN))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", max(0, len(blob) - 8)) + blob)
    check(directory, 1)


def test_int8_experts_are_refused_where_no_kernel_runs_them(tmp_path):
    convert(checkpoint_path(), tmp_path / "int8", lambda *_: None)
    assert check(tmp_path / "int8", 1) == []
    (problem,) = check_cpu(tmp_path / "int8", int8_experts=False)
    assert problem.flaw is Flaw.KERNEL and "serve it on CUDA" in str(problem) and "pip install zentorch" in str(problem)
    assert check_cpu(tmp_path / "int8", int8_experts=True) == check_cpu(checkpoint_path(), int8_experts=False) == []


def test_int8_experts_on_a_cpu_are_neither_sharded_nor_in_float32(tmp_path):
    convert(checkpoint_path(), tmp_path / "int8", lambda *_: None)
    (shards,) = check_cpu(tmp_path / "int8", True, shards=2)
    assert "set experts.expert_parallel to 1, not 2" in str(shards)
    (dtype,) = check_cpu(tmp_path / "int8", True, dtype="float32")
    assert "set model.dtype to bfloat16 or auto, not float32" in str(dtype)
    assert check_cpu(tmp_path / "int8", True, 1, "bfloat16") == check_cpu(checkpoint_path(), False, 2, "float32") == []


def test_int8_experts_run_on_amx_and_on_amd_with_zentorch():
    amd = "vendor_id : AuthenticAMD\nflags : fpu avx2 avx512f"
    assert runs_int8_experts("flags : fpu amx_tile amx_int8", zentorch=False) and runs_int8_experts(amd, True)
    assert not runs_int8_experts("fpu avx512_vnni amx_int88", zentorch=False) and not runs_int8_experts(amd, False)
    assert not runs_int8_experts(amd.replace("AuthenticAMD", "GenuineIntel"), True)  # vLLM loads it on AMD only
    assert not runs_int8_experts(amd.replace("avx512f", ""), True)


LONG = {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}


def test_a_context_beyond_the_models_is_refused_with_both_ways_out(model):
    directory = model(QWEN | LONG)
    assert check_context(directory, 4096, {}) == check_context(directory, None, {}) == []
    (problem,) = check_context(directory, 32768, {})
    assert problem.flaw is Flaw.CONTEXT and "allows 4,096 tokens" in str(problem) and "lower it" in str(problem)
    way_out = json.loads(str(problem).partition("hf_overrides='")[2].removesuffix("'"))
    assert way_out["rope_parameters"] == {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096, "rope_theta": 5e5,
    }  # fmt: skip
    assert check_context(directory, 32768, way_out) == []


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        ({"max_position_embeddings": 8192, "rope_scaling": {"type": "linear", "factor": 2.0}}, 16384),
        ({"max_position_embeddings": 8192, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 8192),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": 8192, "rope_scaling": None}, 8192),
    ],
)
def test_scaled_positions_count_as_vllm_counts_them(model, config, allowed):
    directory = model(QWEN | config)
    assert check_context(directory, allowed, {}) == []
    assert len(check_context(directory, allowed + 1, {})) == 1


def test_a_config_that_names_no_context_is_vllms_to_judge(model):
    assert check_context(model(), 10**9, {}) == []


def plan(tmp_path, model="tiny-r1", layers=4, experts=8, shards=2):
    placed = np.tile(np.arange(experts).reshape(1, shards, -1), (layers, 1, 1))
    file = tmp_path / "plan.json"
    file.write_bytes(PlacementPlan(model, Placement(placed, experts)).to_json())
    return file


def test_a_plan_for_this_model_and_so_many_shards_is_taken(tmp_path):
    assert check_plan(checkpoint_path(), plan(tmp_path), "tiny-r1", 2) == []


@pytest.mark.parametrize(
    ("made_for", "reason"),
    [
        ({"model": "other"}, "the plan is for other, not for tiny-r1"),
        ({"layers": 3}, "3 MoE layers, not 4"),
        ({"experts": 16}, "16 experts, not 8"),
        ({"shards": 4}, "4 ranks, not 2"),
    ],
)
def test_a_plan_for_something_else_is_refused_with_what_it_is_for(tmp_path, made_for, reason):
    (problem,) = check_plan(checkpoint_path(), plan(tmp_path, **made_for), "tiny-r1", 2)
    assert problem.flaw is Flaw.PLAN and reason in problem.text


def test_a_plan_that_is_none_or_not_there_is_refused(tmp_path):
    (tmp_path / "load.json").write_text("{}")
    for name, reason in (("load.json", "this is no placement plan"), ("nowhere.json", "No such file")):
        (problem,) = check_plan(checkpoint_path(), tmp_path / name, "tiny-r1", 2)
        assert problem.flaw is Flaw.PLAN and reason in problem.text


def test_a_version_is_whole_or_told_in_one_sentence(tmp_path):
    assert check_version(store_path(), "v1") == []
    shutil.copytree(store_path() / "v1", tmp_path / "v1")
    assert check_version(tmp_path, "v1") == []
    weights = tmp_path / "v1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (problem,) = check_version(tmp_path, "v1")
    assert problem.flaw is Flaw.VERSION and "model.safetensors is truncated" in str(problem)
    (problem,) = check_version(tmp_path, "v2")
    assert problem.flaw is Flaw.VERSION and "has no version v2; it has: v1" in str(problem)

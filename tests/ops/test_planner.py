"""`moray plan shard` as it is typed."""

import json

import pytest
from typer.testing import CliRunner

from ops.cli import app
from ops.errors import UserError


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", "shard", *arguments])


def test_it_recommends_a_layout_with_its_reason():
    result = run("--model", "32B")
    assert result.exit_code == 0
    assert "Qwen3-30B-A3B on 8xA100-80GB: 30.5B parameters, 3.4B active" in result.output
    assert "Take TP1 DP4: it gives the most tokens a second" in result.output
    smaller = run("--model", "16b").output
    assert "Take TP1 DP2" in smaller and "a lost GPU takes its whole group" in smaller


def test_json_holds_every_layout_and_vllms_arguments():
    told = json.loads(run("--model", "16b", "--cluster", "2xH100-80GB", "--json").output)
    assert told["model"] == "DeepSeek-V2-Lite" and told["recommended"] in {each["layout"] for each in told["layouts"]}
    assert set(told["vllm_arguments"]) == {"tensor_parallel_size", "data_parallel_size", "enable_expert_parallel"}
    assert all(each["tokens_per_s"] > 0 for each in told["layouts"])


def test_what_cannot_be_had_says_by_how_much_and_fails():
    result = run("--model", "671b")
    assert result.exit_code == 1
    assert "Nothing fits: TP8 comes nearest and lacks 96.0 GB on each GPU" in result.output
    assert run("--tpot-ms", "0.1").exit_code == 1


def test_a_checkpoints_directory_is_read(tmp_path):
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_experts": 4, "top_k": 2}
    config |= {"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert json.loads(run("--model", str(tmp_path), "--json").output)["model"] == tmp_path.name
    assert json.loads(run("--model", str(tmp_path / "config.json"), "--json").output)["model"] == tmp_path.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "8b"], "neither a tier (7b, 16b, 32b, 671b) nor a file"),
        (["--cluster", "8xB100"], "no GPU B100 is known here"),
        (["--weights", "int4"], "take one of bf16, int8, fp8"),
    ],
)
def test_mistakes_are_told_with_the_way_out(arguments, said):
    result = run(*arguments)
    assert isinstance(result.exception, UserError) and said in str(result.exception)


def test_a_dense_model_and_a_broken_config_are_refused_with_a_sentence(tmp_path):
    for text, said in (('{"hidden_size": 64}', "is a dense model"), ("{", "is no JSON")):
        (tmp_path / "config.json").write_text(text)
        assert said in str(run("--model", str(tmp_path)).exception)

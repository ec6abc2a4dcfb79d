"""The command's mistakes and help; what it does lies in the modules beside it."""

import json

import pytest
from typer.testing import CliRunner

from experts.tiny_r1 import checkpoint_path
from ops.cli import app
from ops.errors import UserError


def run(*arguments):
    return CliRunner().invoke(app, ["tune", *arguments], env={"COLUMNS": "200"})


def test_help_names_both_commands():
    assert "kernels" in run("--help").output
    assert "--ttft-slo" in run("--help").output
    assert "--int8" in run("kernels", "--help").output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--out FILE"),
        (("--out", "x.yaml", "--tier", "32b", "--model", "/m"), "not both"),
        (("--out", "x.yaml", "--set", "engine.max_num_seqs"), "key=value"),
        (("--out", "x.yaml", "--set", "engine.max_num_sqs=3"), "did you mean engine.max_num_seqs"),
        (("kernels", "--out", "x"), "a tier or a model"),
    ],
)
def test_what_is_used_wrongly_is_told(arguments, told):
    ended = run(*arguments)
    assert ended.exit_code == 2
    assert told in ended.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--out", "x.yaml", "--tier", "33b"), "there is no tier '33b'"),
        (("kernels", "--out", "x", "--tier", "33b"), "there is no tier '33b'"),
        (("kernels", "--out", "x", "--tier", "32b", "--expert-parallel", "3"), "does not divide"),
        (("kernels", "--out", "x", "--model", "/nowhere"), "nor a file or directory with a config.json"),
    ],
)
def test_what_cannot_be_had_is_told(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        raise run(*arguments).exception
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [{"hidden_size": 3}, {"hidden_size": 3, "text_config": None}])
def test_a_directory_without_a_model_is_told(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names no vocab_size"):
        raise run("--out", str(tmp_path / "x.yaml"), "--model", str(tmp_path)).exception


def test_kernels_need_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="shows none"):
        raise run("kernels", "--out", str(tmp_path / "x"), "--model", str(checkpoint_path())).exception

"""`moray bench int8`: its figures, its refusals, and the int8 engine itself where there is a kernel for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from experts.quantize import Summary
from experts.tiny_r1 import checkpoint_path
from ops.bench import int8
from ops.bench.int8 import Said, Side, agreement, divergence, figures, held_out, table
from ops.cli import app
from ops.errors import UserError
from replicas.model_directory import has_zentorch, runs_int8_experts

runner = CliRunner()


def logs(*rows):
    return np.log(np.array(rows, np.float32))


def test_an_answer_is_what_follows_the_thinking():
    wanted = ["a</think>1", "b</think>2", "c</think>3", "endless"]
    got = ["a</think>1", "B</think>2", "c</think>4", "endless"]
    assert agreement(wanted, got) == (0.5, 0.5)
    assert agreement(wanted[:3], wanted[:3]) == (1.0, 1.0)


def test_divergence_is_that_of_the_distributions():
    p, q = logs([0.5, 0.25, 0.25], [0.1, 0.8, 0.1]), logs([0.25, 0.5, 0.25], [0.1, 0.8, 0.1])
    told = divergence(p, q)
    assert told["kl_max"] == pytest.approx(0.25 * np.log(2), rel=1e-5)
    assert told["kl_mean"] == pytest.approx(told["kl_max"] / 2, rel=1e-5) and told["top1_agreement"] == 0.5
    assert divergence(p, p) == {"kl_mean": 0.0, "kl_max": 0.0, "top1_agreement": 1.0}


def test_what_the_model_gave_no_chance_counts_nothing():
    with np.errstate(divide="ignore"):
        p = logs([1.0, 0.0])
    assert divergence(p, p)["kl_mean"] == 0.0
    assert divergence(p, logs([0.5, 0.5]))["kl_mean"] == pytest.approx(np.log(2), rel=1e-5)


def test_prompts_are_held_out_and_the_same_each_time():
    asked = held_out(40, 3)
    assert len({q.chat[-1]["content"] for q in asked}) == 40 and {q.group for q in asked} == {*map(str, int8.TASKS)}
    assert asked == held_out(40, 3) != held_out(40, 4)


def test_the_figures_at_the_top_are_the_post_training_forms():
    asked = held_out(4, 3)
    right = [f"x</think>{question.answer}" for question in asked]
    wrong = ["y</think>no", *right[1:]]
    summary = Summary(bytes_before=400, bytes_after=100, parameters=95, parameters_in_int8=90, resumed_files=0)
    sides = [
        Side("fp32", Path(), "float32", 400),
        Side("post_training", Path(), "bfloat16", 100, summary),
        Side("quantization_aware", Path(), "bfloat16", 100, summary),
    ]
    same = logs([0.5, 0.5])
    said = {"fp32": Said(right, [], same), "post_training": Said(wrong, [], same)}
    told = figures(asked, sides, said | {"quantization_aware": Said(right, [], same)})
    assert (told["size_ratio_fp32"], told["size_ratio_bf16"], told["agreement"]) == (4.0, 1.9, 0.75)
    rows = told["sides"]
    assert rows["fp32"]["accuracy"] == rows["quantization_aware"]["agreement"] == 1.0
    assert rows["post_training"]["accuracy"] == rows["post_training"]["whole_output_agreement"] == 0.75
    json.dumps(told)
    assert table(told).row_count == len(rows["post_training"])


def test_without_a_kernel_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "runs_int8_experts", lambda cpuinfo, zentorch: False)
    failed = runner.invoke(app, ["bench", "int8"])
    assert isinstance(failed.exception, UserError) and "pip install zentorch" in str(failed.exception)
    failed = runner.invoke(app, ["bench", "int8", "--zentorch", str(tmp_path)])
    assert isinstance(failed.exception, UserError) and "no zentorch lies there" in str(failed.exception)


def test_what_was_not_fine_tuned_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "runs_int8_experts", lambda cpuinfo, zentorch: True)
    failed = runner.invoke(app, ["bench", "int8", "--qat", str(tmp_path)])
    assert isinstance(failed.exception, UserError) and "is no checkpoint's directory" in str(failed.exception)


@pytest.mark.vllm
def test_a_side_that_does_not_run_says_why(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "none"}')
    with pytest.raises(UserError, match=r"fp32 does not run here: .*Error"):
        int8._run(Side("fp32", tmp_path, "float32", 1), held_out(4, 3), None, tmp_path, None)


@pytest.mark.vllm
def test_int8_answers_as_float32_does():
    if not runs_int8_experts(Path("/proc/cpuinfo").read_text(), has_zentorch()):
        pytest.skip("no kernel for int8 experts here: it takes AMX, or zentorch on AMD")
    done = runner.invoke(app, ["bench", "int8", "--prompts", "100", "--qat", str(checkpoint_path()), "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["size_ratio_fp32"] >= 3.7 and told["agreement"] >= 0.97
    assert told["sides"]["post_training"]["kl_mean"] < 1e-3
    assert told["sides"]["quantization_aware"]["agreement"] == told["agreement"]  # of the same checkpoint here

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from experts.plan import PlacementPlan
from ops.cli import app
from ops.planner.placement import Load, neighbours, planned

TOKENS = np.array([[90.0, 10, 10, 10], [10, 10, 10, 90], [0, 0, 0, 0]])


def run(*args):
    return CliRunner().invoke(app, ["plan", "experts", *map(str, args)])


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "load.json"
    file.write_text(json.dumps({"model": "m", "tokens": TOKENS.astype(int).tolist(), "replicas": []}))
    return file


def test_a_plan_is_written_and_told(load, tmp_path):
    out = tmp_path / "plan.json"
    result = run("--load", load, "--shards", 2, "--out", out)
    assert result.exit_code == 0, result.output
    plan = PlacementPlan.from_json(out.read_bytes())
    assert (plan.model, plan.layers, plan.ranks, plan.slots, plan.experts) == ("m", 3, 2, 2, 4)
    assert f"experts.plan={out}" in result.output and "vLLM's placement" in result.output


def test_spare_slots_make_it_even(load, tmp_path):
    found = planned(Load("m", TOKENS), 2, 2, None)
    assert (found.before, found.after) == (pytest.approx((100 / 60 + 100 / 60 + 1) / 3), pytest.approx(1.0, abs=0.12))
    assert found.after < planned(Load("m", TOKENS), 2, 0, None).after
    result = run("--load", load, "--spare", 2, "--out", tmp_path / "p", "--json")
    assert json.loads(result.output)["after"] == found.after


def test_from_the_plan_in_force_few_move(load, tmp_path):
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    assert run("--load", load, "--out", first).exit_code == 0
    result = run("--load", load, "--from", first, "--out", second)
    assert "0 of 12 slots get another expert" in result.output
    assert second.read_bytes() == first.read_bytes()


def test_vllms_placement_is_neighbours_the_first_shards_one_more():
    assert neighbours(np.array([[4.0, 2, 0]]), 2).tolist() == [2.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "is no load of experts"),
        ('{"model": "m", "tokens": []}', "tells of no load"),
        ('{"model": "m", "tokens": [[0, 0]]}', "tells of no load"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_load_is_refused_with_the_way_to_one(tmp_path, text, reason):
    file = tmp_path / "load.json"
    if text is not None:
        file.write_text(text)
    result = run("--load", file, "--out", tmp_path / "p")
    assert result.exit_code == 1 and reason in str(result.exception)


def test_a_plan_for_something_else_and_spare_slots_that_do_not_divide_are_refused(load, tmp_path):
    assert run("--load", load, "--out", tmp_path / "p").exit_code == 0
    result = run("--load", load, "--from", tmp_path / "p", "--shards", 4, "--out", tmp_path / "q")
    assert "2 ranks, not 4" in str(result.exception)
    assert "do not divide" in str(run("--load", load, "--spare", 1, "--out", tmp_path / "q").exception)


def test_it_says_whether_a_move_is_worth_it(tmp_path):
    tokens = np.random.default_rng(0).permuted(np.tile(1000.0 / np.arange(1, 129), (48, 1)), axis=1)
    load, first = tmp_path / "load.json", tmp_path / "1.json"
    load.write_text(json.dumps({"model": "32b", "tokens": tokens.astype(int).tolist()}))
    even = tmp_path / "even.json"
    even.write_text(json.dumps({"model": "32b", "tokens": np.ones((48, 128), int).tolist()}))
    assert run("--load", even, "--shards", 4, "--out", first).exit_code == 0
    asked = ("--shards", 4, "--from", first, "--model", "32b", "--out", tmp_path / "2", "--json")
    answer = json.loads(run("--load", load, *asked).output)
    assert answer["worth"] in ("yes", "not enough data") and "imbalance" in answer["why"]
    still = json.loads(run("--load", even, *asked).output)
    assert still["worth"] == "no" and "moves nothing" in still["why"]
    result = run("--load", load, "--model", "32b", "--out", tmp_path / "3")
    assert "--from says from where" in str(result.exception)

"""`moray calibrate` on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experts.step_model import read
from ops.cli import app
from ops.errors import UserError

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "ops" / "bench" / "results"
LATEST, BASELINE = str(RESULTS / "gpu.json"), str(RESULTS / "gpu_baseline.json")


def calibrate(*arguments: str):
    return CliRunner().invoke(app, ["calibrate", *arguments], env={"COLUMNS": "200"})


def test_the_machine_that_ships_is_what_the_command_makes_of_the_committed_rows(tmp_path) -> None:
    out = tmp_path / "machine.json"
    assert calibrate(LATEST, BASELINE, "--out", str(out)).exit_code == 0
    made, ships = read(out.read_bytes()), read((ROOT / "experts" / "machines" / "h200-steps.json").read_bytes())
    assert made == ships, (
        "run: moray calibrate ops/bench/results/gpu.json ops/bench/results/gpu_baseline.json "
        "--out experts/machines/h200-steps.json"
    )


def test_it_prints_costs_residuals_and_what_was_held_out() -> None:
    told = calibrate(LATEST, BASELINE)
    assert told.exit_code == 0
    for part in ("reading every expert", "decode 512 of 208", "512x512x128, req/s, simulated", "req/s, planned"):
        assert part in told.output


def test_json_has_them_all() -> None:
    told = json.loads(calibrate(LATEST, BASELINE, "--json").output)
    assert told["machine"]["gpu"] == "H200-141GB" and set(told["uncertainty"]) > {"base_s", "request_s"}
    latest, baseline = told["data_sets"]
    assert len(baseline["fitted"]) == 7 and len(latest["held_out"]) == 8
    assert latest["spread"] > 0.95
    assert all({"throughput"} <= each["errors"].keys() for each in baseline["held_out"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((LATEST, "--model", "33b"), "no such tier"),
        (("nowhere.jsonl",), "cannot be read"),
        ((LATEST, "--out", "/nowhere/machine.json"), "cannot be written"),
    ],
)
def test_mistakes_are_told(arguments, told) -> None:
    result = calibrate(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, UserError) and told in str(result.exception)


def test_different_machines_are_not_fitted_together(tmp_path) -> None:
    other = tmp_path / "a100.json"
    other.write_text(Path(LATEST).read_text().replace("NVIDIA H200", "NVIDIA A100-SXM4-80GB"))
    assert "different machines" in str(calibrate(LATEST, str(other)).exception)

"""`moray simulate` and `moray bench goodput` as commands."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ops.bench.cli import app as bench
from ops.bench.goodput import Setting, checked_traces, highest_rate, measure
from ops.cli import app
from ops.errors import UserError

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{minute:02}:{second:02}.0000000,300,20\n" for minute in range(3) for second in range(60)
)


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text(TRACE)
    return str(file)


def simulate(*arguments: str):
    return CliRunner().invoke(app, ["simulate", *arguments])


def test_a_trace_runs_and_the_last_line_is_json(trace):
    result = simulate("--trace", trace, "--replicas", "2", "--json")
    figures = json.loads(result.output.splitlines()[-1])
    assert result.exit_code == 0 and figures["requests"] == 180 and figures["attainment"] == 1.0
    assert figures["rate"] == pytest.approx(1.0) and figures["virtual_s"] > 179 and figures["speed_factor"] > 100
    assert (figures["policy"], figures["basis"]) == ("continuous", "fitted")


def test_made_up_load_tells_of_each_tenant():
    result = simulate(
        "--workload", "tenants", "--rate", "20", "--seconds", "5", "--replicas", "2", "--slow", "1",
        "--policy", "round_robin", "--machine", "a100", "--json",
    )  # fmt: skip
    figures = json.loads(result.output.splitlines()[-1])
    assert set(figures["tenants"]) == {"interactive", "batch"} and figures["basis"] == "predicted"
    assert sum(tenant["requests"] for tenant in figures["tenants"].values()) == figures["requests"]
    assert "attainment" in simulate("--workload", "conv", "--rate", "5", "--seconds", "5").output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "either --trace FILE or --workload NAME"),
        (["--workload", "conv"], "--rate"),
        (["--workload", "nothing", "--rate", "1"], "conv, code, chat, tenants"),
        (["--workload", "conv", "--rate", "1", "--policy", "best"], "round_robin"),
        (["--workload", "conv", "--rate", "1", "--machine", "tpu"], "h200, h200-steps, a100"),
        (["--workload", "conv", "--rate", "1", "--replicas", "2", "--slow", "3"], "only 2 replicas"),
        (["--trace", "/nowhere/trace.csv"], "no file"),
    ],
)
def test_what_cannot_be_run_is_told(arguments, told):
    result = simulate(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, UserError) and told in str(result.exception)


def test_help_shows_examples_and_the_policies_have_a_list():
    assert "Examples:" in simulate("--help").output
    assert simulate("--policy", "list").output.split()[:2] == ["continuous", "round_robin"]


@pytest.mark.parametrize("true_rate", [0.5, 100.0, 3000.0])
def test_the_search_finds_the_rate_from_wherever_it_begins(true_rate):
    found = highest_rate(lambda rate: 0.95 if rate <= true_rate else 0.5, 100.0, 0.02)
    assert true_rate / 1.02 <= found <= true_rate


def test_a_goal_that_is_never_reached_is_zero():
    assert highest_rate(lambda rate: 0.1, 10.0, 0.1) == 0.0


def test_goodput_compares_the_policies():
    lines: list[str] = []
    setting = Setting(1, 1, None, 0.3, "h200")
    figures = measure(setting, "conv,tenants", "continuous", 1, lines.append)
    conv = figures["workloads"]["conv"]
    assert figures["traces"] == "made-up stand-ins" and "stand-ins" in lines[0]
    assert set(conv["capacity_req_per_s"]) == {"round_robin", "continuous", "upper_bound"}
    assert conv["best_peer"] == "round_robin" and conv["vs_best_peer"] == conv["vs_round_robin"] > 1.0
    assert 0 < conv["vs_upper_bound"] <= 1.0
    assert conv["attainment_1_3x"] > conv["attainment_at_times_round_robin"]["round_robin"]["1.3"]
    assert set(figures["isolation"]["continuous"]) == {"alone", "flooded"}
    assert any("capacity" in line for line in lines)


def test_goodput_refuses_what_it_does_not_know(tmp_path):
    for options, told in (
        (["--workloads", "none"], "conv"),
        (["--policies", "none"], "round_robin"),
        (["--traces", str(tmp_path)], "azure_2023_conv"),
        (["--machine", "tpu"], "h200"),
    ):
        result = CliRunner().invoke(bench, ["goodput", *options])
        assert isinstance(result.exception, UserError) and told in str(result.exception)
    assert checked_traces(None) is None

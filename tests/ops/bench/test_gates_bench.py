"""The gates' bench: what it counts."""

import io
import json

from rich.console import Console
from typer.testing import CliRunner

from ops.bench.cli import app
from ops.bench.gates import SAME, Fault, roll, table
from ops.rollout.spec import RolloutSpec


def test_it_prints_one_object_of_rates() -> None:
    printed = CliRunner().invoke(app, ["gates", "--rollouts", "2", "--json"])
    assert printed.exit_code == 0, printed.output
    figures = json.loads(printed.output.splitlines()[-1])
    assert figures["rollouts"] == 2 and figures["min_samples"] == RolloutSpec(version="v").min_samples
    assert figures["false_rollback"] == figures["identical"]["rolled_back"] / 2
    assert figures["detected"] == min(row["rolled_back"] for row in figures["faults"].values()) / 2
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(figures))
    assert "just like the old" in console.export_text()


def test_a_rollout_is_repeatable_and_a_disaster_is_short() -> None:
    spec = RolloutSpec(version="v2")
    assert roll(SAME, 4, 10.0, spec, 1) == roll(SAME, 4, 10.0, spec, 1)
    outcome = roll(Fault("all fail", errors=1.0), 4, 10.0, spec, 1)
    assert not outcome.promoted and outcome.by_gate == "errors" and outcome.seconds < 60.0

"""What of the chart is made by a program is up to date, and the command says what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ops.chart import __main__ as command
from ops.chart.generated import CHART, generated, stale


def test_generated_files_are_up_to_date() -> None:
    assert stale(CHART, generated(CHART)) == [], "run: make chart"


def test_the_check_names_what_is_not_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = tmp_path / "helm" / "moray"
    shutil.copytree(CHART, chart)
    monkeypatch.setattr(command, "CHART", chart)
    app = typer.Typer()
    app.command()(command.main)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.output

    values = chart / "values.yaml"
    values.write_text(values.read_text() + "\n# A new one.\nadded: 1\n")
    (chart / "files" / "dashboards" / "gone.json").write_text("{}")
    (chart / "files" / "moray.rules.yaml").unlink()
    told = ["VALUES.md", "files/dashboards/gone.json", "files/moray.rules.yaml", "values.schema.json"]
    code, said = run("--check")
    assert code == 1 and said.splitlines()[:4] == [f"not up to date: helm/moray/{path}" for path in told]
    assert run() == (0, "".join(f"written: helm/moray/{path}\n" for path in told))
    assert run("--check") == (0, "")
    assert "added" in json.loads((chart / "values.schema.json").read_text())["properties"]
    values.write_text("a: 1\n")
    code, said = run()
    assert code == 1 and "values.yaml:1: a has no comment that says what it is" in said

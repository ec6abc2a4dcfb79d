"""`moray metrics` and METRICS.md say what the catalogue says."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from ops import metrics_reference
from ops.cli import app
from ops.k8s.node_metrics import Metrics
from replicas.metrics import CATALOGUE


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["metrics", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_is_what_the_catalogue_makes() -> None:
    assert metrics_reference.PAGE.read_text() == metrics_reference.page(), "run: python -m ops.metrics_reference"


def test_every_metric_is_on_the_page_with_its_labels() -> None:
    rows = {line.split(" | ")[0]: line for line in run("--markdown").splitlines() if line.startswith("| `")}
    of_node_watcher = Metrics().catalogue
    assert len(rows) == len(CATALOGUE) + len(of_node_watcher)
    for told in of_node_watcher:
        row = rows[f"| `{told.name}`"]
        assert told.help in row and all(f"`{label}`" in row for label in told.labels)
    for metric in CATALOGUE:
        row = rows[f"| `{metric.scraped}`"]
        assert metric.help in row and all(f"`{label}`" in row for label in metric.labels)


def test_the_command_lists_all() -> None:
    told = json.loads(run("--json"))
    assert [metric["name"] for metric in told] == [metric.name for metric in CATALOGUE]
    assert {"name", "scraped", "kind", "told_by", "unit", "labels", "buckets", "help"} == told[0].keys()
    table = run()
    assert all(metric.scraped in table for metric in CATALOGUE)

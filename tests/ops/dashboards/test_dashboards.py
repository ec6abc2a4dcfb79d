"""Dashboards: the committed JSON is what the code makes, every query parses and names a metric that exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promql import PROMTOOL, complaints, known_names, metric_names, of_dashboards

from ops.dashboards.__main__ import GENERATED, rendered
from replicas.metrics import CATALOGUE

BOARDS: dict[str, dict[str, Any]] = {path.name: json.loads(path.read_text()) for path in GENERATED.glob("*.json")}
BUILT_IN = {"__rate_interval", "__all"}  # Grafana's


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            yield name, panel


def test_committed_files_are_what_the_code_makes() -> None:
    made = rendered()
    assert {path.name: path.read_text() for path in GENERATED.iterdir()} == made, "run: python -m ops.dashboards"


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: apt-get install prometheus")
def test_every_query_parses(tmp_path: Path) -> None:
    queries = of_dashboards()
    assert len(queries) > 60 and complaints(queries, tmp_path) == ""


def test_every_query_names_metrics_that_exist() -> None:
    for query in of_dashboards():
        assert metric_names(query) and not metric_names(query) - known_names(), query
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                [metric, label] = re.fullmatch(r"label_values\((\w+)[^,]*, (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
                assert metric in known_names() and label == variable["name"]


def test_every_metric_is_shown() -> None:
    shown = set().union(*(metric_names(query) for query in of_dashboards()))
    starts = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} | shown
    # When the router started is for an alert; a line of it tells nothing.
    assert {metric.scraped for metric in CATALOGUE} - starts == {"ray_moray_router_start_time_seconds"}


def test_variables_are_there_and_panels_have_their_place() -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    assert len(uids) == len(BOARDS) == 5
    for name, board in BOARDS.items():
        known = {variable["name"] for variable in board["templating"]["list"]} | BUILT_IN
        assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) <= known, name
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]), name
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken and max(x for x, _ in cells) < 24, (name, panel["title"])
            taken |= cells


def test_every_panel_has_a_title_a_unit_and_the_chosen_data_source() -> None:
    for name, panel in panels():
        assert panel["title"], name
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            by = re.findall(r"{{(\w+)}}", target["legendFormat"])
            for label in by:
                assert re.search(rf"\b{label}\b", target["expr"]), (name, panel["title"], label)

"""Runbooks: one for each alarm and none without; their commands, paths, settings and queries exist."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import typer.main
import yaml
from fastapi import FastAPI
from fastapi.routing import APIRoute
from promql import PROMTOOL, RULES, complaints, known_names, metric_names
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.testing import CliRunner

import ops.anomaly
from cluster.extensions import add_routes
from cluster.gateway import _add_own_routes
from cluster.settings import Settings
from ops import cli
from ops.anomaly.alarms import Kind

RUNBOOKS = Path(__file__).parents[3] / "ops" / "runbooks"
PAGES = {page.stem: page.read_text() for page in RUNBOOKS.glob("*.md") if page.stem != "README"}
SECTIONS = ["Symptom", "Meaning", "Check", "Fix", "Over when"]
OTHER_PROGRAMS = {"kill", "tail", "free"}  # of every Linux
OF_VLLM = {"/health"}  # vLLM's own route; tests/e2e/test_prometheus.py asks a live gateway


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", PAGES[page], re.DOTALL)


def commands(page: str) -> Iterator[list[str]]:
    for block in fenced(page, "sh"):
        for line in block.splitlines():
            yield shlex.split(line)


def curl_paths() -> set[str]:
    urls = {words[-1] for page in PAGES for words in commands(page) if words[0] == "curl"}
    return {"/" + url.split("/", 3)[3] for url in urls}


def kinds() -> set[str]:
    """All alarms that a detector may raise."""
    found = set()
    for module in pkgutil.iter_modules(ops.anomaly.__path__):
        values = vars(importlib.import_module(f"ops.anomaly.{module.name}")).values()
        found |= {value.name for value in values if isinstance(value, Kind)}
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_each_alarm_has_its_page_and_each_page_its_alarm() -> None:
    alarms = kinds() | {rule["alert"] for rule in rules()}
    assert len(kinds()) >= 9, "else they are not found"
    assert PAGES.keys() == alarms


def test_each_rule_points_to_its_page() -> None:
    for rule in rules():
        expected = "{{ $labels.alarm }}" if rule["alert"] == "controller-alarm" else rule["alert"]
        assert rule["annotations"]["runbook_url"] == f"ops/runbooks/{expected}.md"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_page_is_short_and_complete(page: str) -> None:
    text = PAGES[page]
    assert text.startswith(f"# {page}\n") and re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert len(text.splitlines()) < 90, "too long for 3 am"
    assert fenced(page, "sh"), "no command to run"
    for link in re.findall(r"\]\(([^)]*)\)", text):
        assert (RUNBOOKS / link).is_file(), link
    for group, key in re.findall(r"`([a-z]+)\.([a-z_]+)`", text):
        fields: Any = getattr(Settings.model_fields.get(group), "annotation", None)
        assert fields is None or key in fields.model_fields, f"no setting {group}.{key}"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_exist(page: str) -> None:
    for words in commands(page):
        if words[0] == "moray":
            has_help(words[1:])
        elif words[0] != "curl":
            assert words[0] in OTHER_PROGRAMS, words


def has_help(words: list[str]) -> None:
    """The way to the command resolves, typer knows its options and takes its arguments, and it tells its use."""
    command: Any = typer.main.get_command(cli.app)
    path, rest = [], list(words)
    while isinstance(command, TyperGroup):
        if not rest or rest[0] not in command.commands:
            break
        path.append(rest.pop(0))
        command = command.commands[path[-1]]
    assert path, f"no such command: {words}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word for word in rest if word.startswith("-")]
    assert set(options) <= known | {"--help"}, f"{words}: not among {sorted(known)}"
    if "--help" not in rest:
        assert not isinstance(command, TyperGroup), f"{words} lacks a sub-command"
        command.make_context("moray", list(rest))  # raises what a person would be told
    shown = CliRunner().invoke(cli.app, [*path, "--help"])
    assert shown.exit_code == 0 and "Usage" in shown.output, words


def test_wrong_commands_are_found() -> None:
    for wrong in (["drian", "x"], ["drain", "x", "--now"], ["drain"], ["plan"]):
        with pytest.raises((AssertionError, TyperException)):
            has_help(wrong)


async def test_paths_are_routes_of_the_gateway() -> None:
    # A gateway adds its routes on its event loop.
    app = FastAPI()
    spec: Any = SimpleNamespace(engine=SimpleNamespace(model="m"))
    _add_own_routes(app, spec, router=None, core=None)  # type: ignore[arg-type]
    add_routes(app, MagicMock())
    routes = {route.path for route in app.routes if isinstance(route, APIRoute)}
    assert curl_paths() and curl_paths() <= routes | OF_VLLM


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: apt-get install prometheus")
def test_queries_parse(tmp_path: Path) -> None:
    queries = [query for page in PAGES for query in fenced(page, "promql")]
    assert len(queries) > 30 and complaints(queries, tmp_path) == ""
    assert complaints([*queries, "sum(rate(a_total[5m])"], tmp_path), "else a wrong one would not be found"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_queries_name_metrics_that_exist(page: str) -> None:
    for query in fenced(page, "promql"):
        assert metric_names(query) and not metric_names(query) - known_names(), query

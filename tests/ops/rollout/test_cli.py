"""`moray rollout`: what it asks for, what it prints, and its exit codes. The gateway is a small HTTP server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http_server import Answer, Asked, http_server
from typer.testing import CliRunner, Result

from ops.errors import UserError
from ops.rollout import cli
from ops.rollout.client import Client

CURRENT: dict[str, Any] = {
    "id": "r1", "from": "v1", "to": "v2", "phase": "canary", "step": 1, "steps": [0.1, 0.5], "share": 0.5,
    "paused": False, "strategy": "in-place", "since_s": 100.0, "started_s": 50.0,
    "why": "60 of 100 requests are there.",
    "gates": [{"name": "ttft", "answer": "unknown", "detail": "1.02 times", "n_stable": 80, "n_canary": 60}],
    "replicas": [
        {"id": "rep1", "version": "v2", "phase": "ready"}, {"id": "rep2", "version": "v1", "phase": "loading"},
    ],
    "started_by": "alice", "events": [{"at_s": 60.0, "what": "step", "detail": "Half of it.", "by": "bob"}],
}  # fmt: skip
ENDED = {
    "id": "r1", "from": "v1", "to": "v2", "phase": "done", "strategy": "in-place", "why": "all replicas serve v2",
    "started_by": "", "started_s": 50.0, "ended_s": 170.0,
}  # fmt: skip
IDLE = {"current": None, "history": [], "stable": "v1", "versions": {"v1": {"replicas": 2, "share": None}}}
RUNS = IDLE | {
    "current": CURRENT,
    "versions": {"v1": {"replicas": 1, "share": 0.5}, "v2": {"replicas": 1, "share": 0.5}},
}


class Gateway:
    """Answers with the next of `answers`, at last with the last one."""

    url: str

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any, str | None]] = []
        self.answers: list[tuple[int, Any]] = [(200, IDLE)]

    def answer(self, asked: Asked) -> Answer:
        self.asked.append((asked.method, asked.path, asked.json, asked.key))
        return Answer(*(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(cli, "LOOK_EVERY_S", 0.01)
    monkeypatch.setenv("COLUMNS", "200")
    made = Gateway()
    with http_server(made.answer) as made.url:
        yield made


@pytest.fixture
def moray(gateway: Gateway) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.app, [*arguments, "--url", gateway.url])

    return run


def test_start_asks_for_what_was_given_and_for_no_more(gateway, moray) -> None:
    gateway.answers = [(200, RUNS)]
    result = moray("start", "v2")
    assert result.exit_code == 0 and gateway.asked == [("POST", "/moray/rollouts", {"version": "v2"}, None)]
    for part in ("v1 -> v2", "canary", "60 of 100 requests are there.", "ttft", "unknown", "rep2", "loading", "alice"):
        assert part in result.output
    moray(
        "start", "v2", "--strategy", "surge", "--steps", "0.1,0.3", "--mirror", "0.2", "--min-samples", "50",
        "--step-s", "9", "--deadline-s", "99", "--gate", "errors=0.01", "--gate", "ttft_ratio=2", "--set", "finish_s=7",
        "--api-key", "k",
    )  # fmt: skip
    assert gateway.asked[1][2:] == (
        {
            "version": "v2", "strategy": "surge", "steps": [0.1, 0.3], "mirror": 0.2, "min_samples": 50, "step_s": 9.0,
            "deadline_s": 99.0, "gates": {"errors": 0.01, "ttft_ratio": 2}, "finish_s": 7,
        },
        "Bearer k",
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [["--steps", "a,b"], ["--gate", "errors"], ["--set", "finish_s"]])
def test_an_argument_that_is_none_says_how_to_write_it(gateway, moray, wrong) -> None:
    result = moray("start", "v2", *wrong)
    assert result.exit_code == 2 and "write" in result.output and not gateway.asked


@pytest.mark.parametrize("command", ["pause", "resume", "promote", "abort"])
def test_commands(gateway, moray, command) -> None:
    gateway.answers = [(200, RUNS)]
    assert moray(command).exit_code == 0
    assert gateway.asked == [("POST", "/moray/rollouts/current", {"command": command}, None)]


def test_undo(gateway, moray) -> None:
    gateway.answers = [(200, RUNS)]
    assert moray("undo").exit_code == moray("undo", "--gated").exit_code == 0
    assert [asked[:3] for asked in gateway.asked] == [
        ("POST", "/moray/rollouts/undo", {"gated": False}), ("POST", "/moray/rollouts/undo", {"gated": True}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (409, {"error": {"message": "Rollout r1 runs: wait."}}, "Rollout r1 runs: wait."),
        (403, {"error": {"message": "This key is no operator's."}}, "no operator's: give an operator's key"),
        (502, b"<html>", "answered 502"),
        (500, {"error": "odd"}, "answered 500"),
    ],
)
def test_what_the_cluster_refuses_is_one_sentence(gateway, moray, status, body, said) -> None:
    gateway.answers = [(status, body)]
    result = moray("start", "v2")
    assert isinstance(result.exception, UserError) and said in str(result.exception)


def test_a_cluster_that_is_not_there_is_one_sentence(moray) -> None:
    result = CliRunner().invoke(cli.app, ["status", "--url", "http://127.0.0.1:9"])
    assert isinstance(result.exception, UserError) and "does not answer" in str(result.exception)


def test_status_without_a_rollout_tells_what_was(gateway, moray) -> None:
    assert "no rollout runs" in moray("status").output
    gateway.answers = [(200, IDLE | {"history": [ENDED]})]
    output = moray("status").output
    assert "all replicas serve v2" in output and "stable" in output
    assert json.loads(moray("status", "--json").output) == IDLE | {"history": [ENDED]}
    gateway.answers = [(200, IDLE | {"note": "The served model is no version."})]
    assert "The served model is no version." in moray("status").output


@pytest.mark.parametrize(("phase", "code"), [("done", 0), ("rolled-back", 1), ("failed", 1)])
def test_watch_follows_to_the_end_and_its_exit_code_tells(gateway, moray, phase, code) -> None:
    away = (503, {"error": {"message": "The controller does not answer; Ray restarts it."}})
    later = RUNS | {"current": CURRENT | {"phase": "promoting", "why": "1 of 2 replicas."}}
    gateway.answers = [
        (200, RUNS), (200, RUNS), away, (200, RUNS), (200, later),
        (200, IDLE | {"history": [ENDED | {"phase": phase}]}),
    ]  # fmt: skip
    result = moray("watch")
    assert result.exit_code == code
    assert result.output.splitlines() == [
        "v1 -> v2: canary step 2 of 2. 60 of 100 requests are there.",
        "v1 -> v2: promoting. 1 of 2 replicas.",
        f"v1 -> v2: {phase}. all replicas serve v2",
    ]


def test_watch_as_json_is_a_line_for_each_change(gateway, moray) -> None:
    gateway.answers = [(200, RUNS), (200, IDLE | {"history": [ENDED]})]
    result = moray("start", "v2", "--watch", "--json")
    assert [json.loads(line)["phase"] for line in result.output.splitlines()] == ["done"] and result.exit_code == 0


def test_watch_without_a_rollout_says_how_to_start_one(gateway, moray) -> None:
    result = moray("watch")
    assert isinstance(result.exception, UserError) and "moray rollout start VERSION" in str(result.exception)


def test_history_and_the_audit_log(gateway, moray) -> None:
    assert "no rollout has ended" in moray("history").output
    gateway.answers = [(200, IDLE | {"history": [ENDED]})]
    assert "(no keys)" in moray("history").output and json.loads(moray("history", "--json").output) == [ENDED]
    entry = {
        "number": 0, "at_s": 1.0, "model": "m", "who": "alice", "where": "10.0.0.7", "what": "start", "rollout": "r1",
        "detail": "from v1 to v2", "note": None, "before": "",
    }  # fmt: skip
    gateway.answers = [(200, {"entries": [entry]})]
    output = moray("history", "--audit", "--count", "5").output
    assert all(part in output for part in ("alice", "10.0.0.7", "start", "from v1 to v2"))
    assert gateway.asked[-1][1] == "/moray/rollouts/audit?count=5"
    assert json.loads(moray("history", "--audit", "--json").output) == [entry]
    gateway.answers = [(200, {"entries": []})]
    assert "the audit log is empty" in moray("history", "--audit").output


@pytest.mark.parametrize(
    "command", ["start", "status", "watch", "pause", "resume", "promote", "abort", "undo", "history"]
)
def test_help_has_examples(command) -> None:
    output = CliRunner().invoke(cli.app, [command, "--help"]).output
    assert "Examples:" in output and f"moray rollout {command}" in " ".join(output.split())


def test_a_look_asks_once(gateway) -> None:
    gateway.answers = [(200, RUNS), (200, RUNS), (200, IDLE | {"history": [ENDED]})]
    reports: list[dict[str, Any]] = []
    looks = list(cli._looks(Client(gateway.url), "r1", reports.append))
    assert [look["phase"] for look in looks] == ["canary", "done"] and len(gateway.asked) == len(reports) == 3

"""What `moray alarms` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from ops.alarms import render

ALARM = {
    "name": "up-but-not-serving", "severity": "page", "summary": "No token for 11 s.", "runbook": "up-but-not-serving",
    "labels": {"model": "m", "replica": "abc"}, "raised_s": 100.0,
}  # fmt: skip


def shown(**report: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    for part in render({"watching": True, "lag_s": 0.5, "alarms": [], "recent": [], "healing": []} | report, 160.0):
        console.print(part)
    return console.export_text()


def test_what_is_raised_has_its_age_its_figures_and_its_runbook() -> None:
    healing = {"at_s": 150.0, "replica": "abc", "action": "restart", "outcome": "withheld", "why": "budget"}
    text = shown(
        alarms=[ALARM], recent=[{"at_s": 100.0, "raised": True, "alarm": ALARM}], healing=[healing | {"model": "m"}]
    )
    for part in ("60 s", "No token for 11 s.", "ops/runbooks/up-but-not-serving.md", "withheld", "budget", "abc"):
        assert part in text


def test_no_alarm_is_only_told_by_who_watches() -> None:
    assert "no alarm is raised" in shown()
    assert "Nobody watches" in shown(watching=False) and "no alarm" not in shown(watching=False)
    assert "no gateway has reported for 30 s" in shown(lag_s=30.0)

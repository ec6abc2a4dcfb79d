"""`moray alarms`: what is raised, what was of late, and what self-healing did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_STYLES = {"page": "bold red", "ticket": "yellow"}
_BAD_OUTCOMES = {"failed", "refused", "withheld"}
SHOWN = 15  # of what was


def render(report: Mapping[str, Any], now_s: float) -> Iterator[RenderableType]:
    """The report's tables. `now_s`: Unix time."""
    if not report.get("watching"):
        yield Text("Nobody watches: the controller is away; Ray restarts it within seconds.", style="bold red")
        return
    lag_s = report.get("lag_s")
    if lag_s is None or lag_s > 10:
        heard = "no gateway has reported yet" if lag_s is None else f"no gateway has reported for {lag_s:.0f} s"
        yield Text(f"The controller watches, but {heard}.", style="yellow")
    if raised := report.get("alarms"):
        yield _raised(raised, now_s)
    else:
        yield Text("no alarm is raised", style="green")
    if changes := list(report.get("recent") or ())[-SHOWN:]:
        yield _recent(changes, now_s)
    if healing := list(report.get("healing") or ())[-SHOWN:]:
        yield _healing(healing, now_s)


def _raised(alarms: Sequence[Mapping[str, Any]], now_s: float) -> Table:
    table = _table("raised", "for", "alarm", "severity", "what", "runbook")
    for alarm in alarms:
        table.add_row(
            span(now_s - alarm["raised_s"]),
            Text(alarm["name"], style=_STYLES.get(alarm["severity"], "")),
            Text(alarm["severity"]),
            Text(alarm["summary"]),
            Text(f"ops/runbooks/{alarm['runbook']}.md"),
        )
    return table


def _recent(changes: Sequence[Mapping[str, Any]], now_s: float) -> Table:
    table = _table("of late", "ago", "", "alarm", "about")
    for change in reversed(changes):
        alarm = change["alarm"]
        about = alarm["labels"].get("replica") or alarm["labels"].get("model", "")
        what = Text("raised", style="red") if change["raised"] else Text("resolved", style="green")
        table.add_row(span(now_s - change["at_s"]), what, Text(alarm["name"]), Text(about))
    return table


def _healing(done: Sequence[Mapping[str, Any]], now_s: float) -> Table:
    table = _table("self-healing", "ago", "replica", "action", "outcome", "why")
    for one in reversed(done):
        style = "yellow" if one["outcome"] in _BAD_OUTCOMES else ""
        outcome = Text(one["outcome"], style=style)
        table.add_row(span(now_s - one["at_s"]), Text(one["replica"]), Text(one["action"]), outcome, Text(one["why"]))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("for", "ago") else "left")
    return table


def span(seconds: float) -> str:
    """In the unit that people would use; none is negative, for clocks differ."""
    seconds = max(seconds, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"

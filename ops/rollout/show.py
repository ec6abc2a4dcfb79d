"""What `moray rollout` prints of a report (GET /moray/rollouts)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ops.alarms import span

_PHASE_STYLES = {"done": "green", "rolling-back": "yellow", "rolled-back": "bold yellow", "failed": "bold red"}
_ANSWER_STYLES = {"yes": "green", "no": "bold red", "unknown": "yellow"}
SHOWN_EVENTS = 12


def render(report: Mapping[str, Any], now_s: float) -> Iterator[RenderableType]:
    """The rollout that runs, if there is one, and what is served. `now_s`: Unix time."""
    current = report.get("current")
    if current is None:
        yield Text("no rollout runs", style="dim")
        if history := report.get("history"):
            last = history[-1]
            yield Text.assemble("the last one, ", _sentence(last, now_s))
    else:
        yield from _current(current, now_s)
    yield _versions(report)
    if report.get("note"):
        yield Text(str(report["note"]), style="yellow")


def history(report: Mapping[str, Any], now_s: float) -> RenderableType:
    """Rollouts that ended, the last one first."""
    table = _table("", "ended", "from", "to", "outcome", "took", "by", "why")
    for one in reversed(report.get("history") or ()):
        table.add_row(
            _ago(now_s - (one.get("ended_s") or now_s)),
            Text(str(one["from"])),
            Text(str(one["to"])),
            phase(str(one["phase"])),
            span((one.get("ended_s") or now_s) - one["started_s"]),
            Text(who(one.get("started_by"))),
            Text(str(one.get("why") or "")),
        )
    return table if table.row_count else Text("no rollout has ended here yet", style="dim")


def audit(entries: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The audit log's entries, as they were written."""
    table = _table("", "when", "who", "from where", "what", "rollout", "about")
    for one in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["at_s"]))
        cells = (when, who(one["who"]), one["where"], one["what"], one["rollout"], one["detail"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table if table.row_count else Text("the audit log is empty", style="dim")


def line(current: Mapping[str, Any]) -> str:
    """Where a rollout stands, in one line."""
    step = f" step {current['step'] + 1} of {len(current['steps'])}" if current["phase"] == "canary" else ""
    paused = ", paused" if current.get("paused") else ""
    return (
        f"{current['from']} -> {current['to']}: {current['phase']}{step}{paused}. {current.get('why') or ''}".rstrip()
    )


def _current(current: Mapping[str, Any], now_s: float) -> Iterator[RenderableType]:
    head = Text.assemble(
        (f"{current['from']} -> {current['to']}", "bold"), "  ", phase(current["phase"]),
        f"  {current['strategy']}  for {span(now_s - current['since_s'])}  by {who(current.get('started_by'))}",
    )  # fmt: skip
    if current.get("paused"):
        head.append("  paused", style="bold yellow")
    yield head
    if current.get("why"):
        yield Text(str(current["why"]))
    steps = Text("steps  ")
    for number, share in enumerate(current["steps"]):
        here = current["phase"] == "canary" and number == current["step"]
        steps.append(f" {share:.0%} ", style="reverse" if here else "dim")
    steps.append(f"   share now {current['share']:.0%}")
    yield steps
    if gates := current.get("gates"):
        table = _table("gates", "gate", "passed", "old", "new", "figures")
        for gate in gates:
            answer = str(gate["answer"])
            counts = (Text(str(gate[key])) for key in ("n_stable", "n_canary"))
            table.add_row(
                Text(gate["name"]), Text(answer, style=_ANSWER_STYLES.get(answer, "")), *counts, Text(gate["detail"])
            )
        yield table
    if replicas := current.get("replicas"):
        table = _table("replicas", "id", "version", "is")
        for replica in replicas:
            table.add_row(Text(replica["id"]), Text(replica["version"]), Text(replica["phase"]))
        yield table
    if events := list(current.get("events") or ())[-SHOWN_EVENTS:]:
        table = _table("of late", "ago", "what", "about")
        for event in reversed(events):
            by = f" (by {event['by']})" if event.get("by") else ""
            table.add_row(_ago(now_s - event["at_s"]), Text(event["what"]), Text(f"{event['detail']}{by}"))
        yield table


def _versions(report: Mapping[str, Any]) -> Table:
    table = _table("versions", "version", "replicas", "share of new requests")
    for name, version in sorted((report.get("versions") or {}).items()):
        shown = Text(name or "(unnamed)")
        if name == report.get("stable"):
            shown.append("  stable", style="green")
        share = version.get("share")
        table.add_row(shown, Text(str(version["replicas"])), Text("by replicas" if share is None else f"{share:.0%}"))
    return table


def _sentence(ended: Mapping[str, Any], now_s: float) -> Text:
    ago = span(now_s - (ended.get("ended_s") or now_s))
    return Text.assemble(f"{ended['from']} -> {ended['to']}, ", phase(ended["phase"]), f" {ago} ago. {ended['why']}")


def phase(name: str) -> Text:
    return Text(name, style=_PHASE_STYLES.get(name, "cyan"))


def who(name: object) -> str:
    return str(name) if name else "(no keys)"


def _ago(seconds: float) -> Text:
    return Text(span(seconds))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(
            column, overflow="fold", justify="right" if column in ("ago", "ended", "old", "new") else "left"
        )
    return table

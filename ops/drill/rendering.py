"""A drill's report as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ops.drill.choosing import Fault

_MARKS = {True: Text("held", style="green"), False: Text("did not hold", style="bold red"), None: Text("not seen")}


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What was measured, the alarms, what held, and one line at the end."""
    yield _figures(report)
    if report["alarms"]:
        yield _alarms(report)
    table = Table(title="what held", title_justify="left", show_header=False)
    for check in report["checks"]:
        table.add_row(_MARKS[check["held"]], Text(check["what"]), Text(check["words"]))
    yield table
    yield verdict(report)


def verdict(report: Mapping[str, Any]) -> Text:
    """One line."""
    failed = [check["what"] for check in report["checks"] if check["held"] is False]
    unseen = [check["what"] for check in report["checks"] if check["held"] is None]
    if failed:
        return Text(f"did not hold: {', '.join(failed)}", style="bold red")
    more = f" (not seen: {', '.join(unseen)})" if unseen else ""
    return Text(f"held: the cluster recovered from {report['fault']}{more}", style="bold green")


def _figures(report: Mapping[str, Any]) -> Table:
    streams = report["streams"]
    table = Table(title=f"moray drill {report['fault']}", title_justify="left", show_header=False)

    def row(name: str, value: Any, unit: str = "") -> None:
        table.add_row(Text(name), Text("not seen" if value is None else f"{value}{unit}"))

    if report["replica"] is not None:
        row("replica", report["replica"])
        row("replaced by", ", ".join(report["replaced_by"]) or "none")
    row("streams at the strike", f"{streams['granted_at_strike']} granted, own ones {streams['running_at_strike']}")
    for name in ("resumed", "moved", "broken"):
        row(name, streams[name])
    row("wrong tokens", f"{streams['wrong']} of {streams['compared']} streams compared")
    row("longest gap between tokens", streams["longest_gap_s"], f" s (before: {streams['longest_gap_before_s']} s)")
    row("longest wait for a first token", streams["longest_first_token_s"], " s")
    if streams["slowest_tpot_s"] is not None and streams["median_tpot_before_s"] is not None:
        slowest, before = (1e3 * streams[key] for key in ("slowest_tpot_s", "median_tpot_before_s"))
        row("slowest stream", f"{slowest:.1f} ms a token (median before: {before:.1f} ms)")
    if report["replica"] is not None:
        row("out of rotation after", report["out_of_rotation_s"], " s")
    else:
        row("router downtime", report["router_downtime_s"], " s")
    if report["over_s"] is not None:
        row("slowed for" if report["fault"] == Fault.SLOW_REPLICA else "stopped for", report["over_s"], " s")
    row("full capacity after", report["full_capacity_s"], " s")
    row("errors of its own load", ", ".join(f"{code}: {n}" for code, n in report["errors"].items()) or "none")
    if report["alarms"] is None:
        row("alarms", "nobody watches this cluster")
    elif not report["alarms"]:
        row("alarms", f"none in {report['watched_s']} s")
    for one in report["healings"] or ():
        row("healing", f"{one['at_s']} s: {one['action']} {one['replica']}: {one['outcome']}")
    return table


def _alarms(report: Mapping[str, Any]) -> Table:
    table = Table("alarm", "severity", "raised", "resolved", "what", title="alarms", title_justify="left")
    for alarm in report["alarms"]:
        resolved = "not yet" if alarm["resolved_s"] is None else f"{alarm['resolved_s']} s"
        cells = (alarm["name"], alarm["severity"], f"{alarm['raised_s']} s", resolved, alarm["summary"])
        table.add_row(*map(Text, cells))
    return table

"""`moray bench detectors`: what the anomaly detectors find in days with faults, and what they say without a reason."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.table import Table

from ops.anomaly.alarms import Event
from ops.anomaly.monitor import Monitor
from ops.bench.faulty_days import DAY_S, SORTS, Days, Fault, faults
from ops.simulate.traces import read
from ops.simulate.workloads import Workload

TRACE = "azure_2023_conv.csv.gz"
LEARNING_DAYS, FAULTY_DAYS, QUIET_DAYS = 3, 2, 1
GRACE_S = 1200.0  # after a fault: its last window of 15 minutes has to end
RESTART_S = 6 * 3600.0  # how often the monitor is written as JSON and read again


class Run(NamedTuple):
    """What one seed gave."""

    detected: list[tuple[Fault, float | None]]  # with the delay in seconds; None: missed
    false: list[Event]
    unresolved: int  # alarms still raised at the end of the quiet day


def measure(seeds: int, rate: float, traces: Path | None, report: Callable[[str], None]) -> dict[str, Any]:
    """See `moray bench detectors --help`."""
    recorded = read(traces / TRACE) if traces else None
    if recorded is None:
        report("no recorded trace: made-up arrivals with its means and medians (--traces DIR names a folder)")
    runs = []
    for seed in range(seeds):
        runs.append(run(seed, rate, recorded))
        found = sum(delay is not None for _, delay in runs[-1].detected)
        report(f"seed {seed}: {found} of {len(runs[-1].detected)} faults, {len(runs[-1].false)} false alarms")
    return figures(runs) | {"rate": rate, "seeds": seeds, "trace": recorded.name if recorded else "made up"}


def run(seed: int, rate: float, recorded: Workload | None) -> Run:
    """Days to learn, days with each fault once, and a quiet day."""
    rng = random.Random(seed)
    placed = faults(rng, LEARNING_DAYS * DAY_S, FAULTY_DAYS)
    monitor, events, restart_s = Monitor(), [], RESTART_S
    for now, seen in Days(rng, LEARNING_DAYS + FAULTY_DAYS + QUIET_DAYS, placed, rate, recorded).ticks():
        for observation in seen:
            events += monitor.observe(observation)
        events += monitor.evaluate(now)
        if now >= restart_s:
            monitor, restart_s = Monitor.restored(monitor.saved()), restart_s + RESTART_S
    return judged(placed, events)._replace(unresolved=len(monitor.raised))


def judged(placed: list[Fault], events: Iterable[Event]) -> Run:
    """Which faults were told, and which alarms no fault explains. One fault's alarm does not find another."""
    raised = [event for event in events if event.raised]
    false: list[Event] = []
    first: dict[Fault, float] = {}
    for event in raised:
        near = [fault for fault in placed if fault.begin_s <= event.at_s <= fault.end_s + GRACE_S]
        finding = [fault for fault in near if event.alarm.name in fault.sort.alarms and _same_replica(fault, event)]
        for fault in finding:
            first.setdefault(fault, event.at_s - fault.begin_s)
        if not finding and not any(event.alarm.name in fault.sort.also for fault in near):
            false.append(event)
    return Run([(fault, first.get(fault)) for fault in placed], false, 0)


def _same_replica(fault: Fault, event: Event) -> bool:
    return fault.replica is None or event.alarm.labels.get("replica") == fault.replica


def figures(runs: list[Run]) -> dict[str, Any]:
    """False alarms of all days, over those behind the learning alone: a silent day does not improve the rate."""
    detected = [pair for run in runs for pair in run.detected]
    days = len(runs) * (FAULTY_DAYS + QUIET_DAYS)
    rows = {}
    for sort in SORTS:
        delays = [delay for fault, delay in detected if fault.sort is sort]
        known = [delay for delay in delays if delay is not None]
        rows[sort.name] = {
            "injected": len(delays),
            "detected": len(known),
            "delay_p50_s": round(median(known), 1) if known else None,
            "delay_max_s": round(max(known), 1) if known else None,
            "alarms": sorted(sort.alarms),
        }
    false = [event for run in runs for event in run.false]
    return {
        "recall": round(sum(delay is not None for _, delay in detected) / len(detected), 4),
        "false_alarms_per_day": round(len(false) / days, 4),
        "faults_injected": len(detected),
        "judged_days": days,
        "unresolved": sum(run.unresolved for run in runs),
        "faults": rows,
        "false_alarms": [f"{event.at_s / DAY_S:.2f} d: {event.alarm.name}: {event.alarm.summary}" for event in false],
    }


def table(figures: dict[str, Any]) -> Table:
    """The faults, what was found, and how late."""
    title = f"recall {figures['recall']:.1%}, {figures['false_alarms_per_day']:.2f} false alarms a day"
    shown = Table(title=title)
    for column in ("fault", "detected", "delay p50", "delay max", "alarms"):
        shown.add_column(column)
    for name, row in figures["faults"].items():
        delays = ["-" if row[key] is None else f"{row[key]:,.0f} s" for key in ("delay_p50_s", "delay_max_s")]
        shown.add_row(name, f"{row['detected']} of {row['injected']}", *delays, ", ".join(row["alarms"]))
    for line in figures["false_alarms"]:
        shown.add_row(f"false: {line}")
    return shown

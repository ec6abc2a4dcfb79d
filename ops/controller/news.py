"""What the sinks and /moray/alarms are told: an alarm's beginning or end, or what was done to a replica."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from ops.anomaly.alarms import Alarm
from ops.controller.healing import Step


class Change(msgspec.Struct, frozen=True, tag="alarm"):
    """An alarm's beginning or end."""

    at_s: float
    raised: bool  # False: resolved
    alarm: Alarm


class Healing(msgspec.Struct, frozen=True, tag="healing"):
    """What was done to a replica, or why it was not."""

    at_s: float
    replica: str
    model: str
    action: str  # drain, restart, recover
    outcome: str  # done, failed, refused, withheld, recovered
    why: str

    @classmethod
    def of(cls, at_s: float, step: Step, outcome: str = "", why: str = "") -> "Healing":
        return cls(at_s, step.replica, step.model, step.action, outcome or step.outcome, why or step.why)


News = Change | Healing


class Alert(msgspec.Struct, frozen=True):
    """An alarm as Prometheus' Alertmanager names its parts."""

    labels: dict[str, str]
    annotations: dict[str, str]
    starts_s: float
    ends_s: float | None  # None: it is raised

    @property
    def fingerprint(self) -> str:
        """The same for one alarm's beginning and end, another the next time that it is raised."""
        parts = [*sorted(self.labels.items()), ("", f"{self.starts_s:.6f}")]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def alert(change: Change, runbook_url: str | None) -> Alert:
    alarm = change.alarm
    annotations = {"summary": alarm.summary, "runbook": runbook(alarm)}
    if runbook_url:
        annotations["runbook_url"] = f"{runbook_url.rstrip('/')}/{alarm.runbook}.md"
    labels = {"alertname": alarm.name, "severity": alarm.severity.value, **alarm.labels}
    return Alert(labels, annotations, alarm.raised_s, None if change.raised else change.at_s)


def runbook(alarm: Alarm) -> str:
    """Its path in Moray's repository."""
    return f"ops/runbooks/{alarm.runbook}.md"


def rfc3339(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def recent(change: Change) -> dict[str, Any]:
    """As /moray/alarms has it."""
    return {"at_s": change.at_s, "raised": change.raised, "alarm": msgspec.to_builtins(change.alarm)}


def done(healing: Healing) -> dict[str, Any]:
    """As /moray/alarms has it."""
    return {field: getattr(healing, field) for field in healing.__struct_fields__}

"""The controller's own metrics, on Ray's metrics port."""

from collections import Counter

from ops.anomaly.alarms import Alarm
from ops.controller.news import Change, Healing
from replicas import metrics
from replicas.ray_metrics import Make, in_actor


class Metrics:
    def __init__(self, model: str, make: Make = in_actor) -> None:
        self._model = model
        self._raised, self._lag = make(metrics.ALARM_RAISED), make(metrics.WATCH_LAG)
        self._alarms, self._healings = make(metrics.ALARMS), make(metrics.HEALINGS)
        self._standing: set[tuple[str, ...]] = set()  # labels of what is raised
        self._counts: Counter[tuple[str, ...]] = Counter()  # since this process began

    def stands(self, alarm: Alarm, raised: bool) -> None:
        model, replica = alarm.labels.get("model", self._model), alarm.labels.get("replica", "")
        labels = alarm.name, alarm.severity.value, model, replica
        self._raised.tell(float(raised), *labels)
        if raised:
            self._standing.add(labels)
        else:
            self._standing.discard(labels)

    def changed(self, change: Change) -> None:
        alarm = change.alarm
        self.stands(alarm, change.raised)
        if change.raised:
            self._counts[alarm.name,] += 1
            self._alarms.tell(self._counts[alarm.name,], alarm.name)

    def healed(self, healing: Healing) -> None:
        key = healing.action, healing.outcome
        self._counts[key] += 1
        self._healings.tell(self._counts[key], *key)

    def looked(self, lag_s: float | None) -> None:
        for labels in self._standing:
            self._raised.tell(1.0, *labels)
        if lag_s is not None:
            self._lag.tell(lag_s)

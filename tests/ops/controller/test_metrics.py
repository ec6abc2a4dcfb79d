"""The controller tells exactly what the catalogue says that it tells."""

from __future__ import annotations

from ops.anomaly.alarms import Alarm, Severity
from ops.controller.metrics import Metrics
from ops.controller.news import Change, Healing
from ops.rollout.metrics import Metrics as Rollouts
from replicas.metrics import Metric, Teller, of


class Told:
    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.values: list[tuple[float, ...]] = []

    def tell(self, value: float, *labels: str) -> None:
        assert len(labels) == len(self.metric.labels)
        self.values.append((value, *labels))


def test_each_metric_of_the_controller_is_told() -> None:
    made: dict[str, Told] = {}

    def make(metric: Metric) -> Told:
        return made.setdefault(metric.name, Told(metric))

    metrics = Metrics("m", make)
    alarm = Alarm("stuck-queue", Severity.PAGE, "Why.", "stuck-queue", {"model": "m"}, 1.0)
    for raised in (True, False, True):
        metrics.changed(Change(1.0, raised, alarm))
    metrics.healed(Healing(1.0, "a", "m", "drain", "done", "Why."))
    metrics.looked(None)
    metrics.looked(0.5)
    rollouts = Rollouts("m", make)
    rollouts.looked(None, {})
    rollouts.looked("canary", {"v1": 0.9, "v2": 0.1})
    rollouts.swapped(1.5)
    rollouts.looked("done", {})
    rollouts.ended("done")
    assert set(made) == {metric.name for metric in of(Teller.CONTROLLER)}
    assert made["moray_rollout_phase"].values == [(1.0, "m", "canary"), (0.0, "m", "canary"), (1.0, "m", "done")]
    shares = made["moray_rollout_share"].values
    assert shares[:2] == [(0.9, "m", "v1"), (0.1, "m", "v2")], "and 0 once no shares are set any more"
    assert sorted(shares[2:]) == [(0.0, "m", "v1"), (0.0, "m", "v2")]
    assert made["moray_rollouts_total"].values == [(1, "m", "done")]
    assert made["moray_swap_seconds"].values == [(1.5, "m")]
    raised_values = [value[0] for value in made["moray_alarm_raised"].values]
    assert raised_values == [1.0, 0.0, 1.0, 1.0, 1.0], "what is raised is told anew with each look, or Ray forgets it"
    assert made["moray_alarm_raised"].values[0][1:] == ("stuck-queue", "page", "m", "")
    assert made["moray_alarms_total"].values == [(1, "stuck-queue"), (2, "stuck-queue")]
    assert made["moray_healings_total"].values == [(1, "drain", "done")]
    assert made["moray_watch_lag_seconds"].values == [(0.5,)]

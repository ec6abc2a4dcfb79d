"""Metrics of the catalogue on Ray's metrics port. Ray collects them from each process every ten seconds.

A gauge that is not told again leaves the port after two collections: what stands for long has to be told with the rest.
"""

from collections.abc import Callable
from typing import Any

from replicas.metrics import Kind, Metric

# A counter must be there before its first event, or its rate misses that one; Ray refuses to count 0. 1 and this is 1.
NOTHING = 1e-300

Make = Callable[[Metric], "RayMetric"]


class RayMetric:
    """A gauge, or a counter that is told totals."""

    def __init__(self, metric: Metric, made: Any) -> None:
        """`made` is Ray's own Gauge or Counter."""
        self._is_counter = metric.kind is Kind.COUNTER
        self._labels = metric.labels
        self._made = made
        self._told: dict[tuple[str, ...], float] = {}

    def tell(self, value: float, *labels: str) -> None:
        """A gauge's value, or a counter's total since this process began; labels in the catalogue's order."""
        tags = dict(zip(self._labels, labels, strict=True))
        if not self._is_counter:
            self._made.set(float(value), tags)
        elif (new := value - self._told.get(labels, -NOTHING)) > 0:
            self._told[labels] = value
            self._made.inc(new, tags)


def in_actor(metric: Metric) -> RayMetric:
    """In a plain Ray actor."""
    from ray.util import metrics

    return _made(metrics, metric)


def in_replica(metric: Metric) -> RayMetric:
    """In a Serve replica: Serve adds which one."""
    from ray.serve import metrics

    return _made(metrics, metric)


def _made(of_ray: Any, metric: Metric) -> RayMetric:
    """`of_ray`: a module of Ray with its Counter and Gauge."""
    kind = of_ray.Counter if metric.kind is Kind.COUNTER else of_ray.Gauge
    return RayMetric(metric, kind(metric.name, metric.help, metric.labels))

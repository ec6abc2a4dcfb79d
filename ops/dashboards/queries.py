"""PromQL over the catalogue's metrics (replicas/metrics.py), narrowed by a dashboard's variables."""

from replicas.metrics import Kind, Metric, Teller

WINDOW = "[$__rate_interval]"  # Grafana's: four scrapes, or a step of the graph


def select(metric: Metric, where: str = "", part: str = "", window: str = "") -> str:
    """The metric's series of the chosen models and replicas. `where`: further matchers; `part`: of a histogram."""
    matchers = []
    if "model" in metric.labels:
        matchers.append('model=~"$model"')
    if metric.teller is Teller.REPLICA:
        matchers.append('replica=~"$replica"')
    matchers += [where] if where else []
    chosen = f"{{{','.join(matchers)}}}" if matchers else ""
    return f"{metric.scraped}{part}{chosen}{window}"


def of(function: str, metric: Metric, *by: str, where: str = "") -> str:
    """An aggregation (sum, avg, max, min, count) of a gauge."""
    return f"{function}{_by(by)} ({select(metric, where)})"


def rate(metric: Metric, *by: str, where: str = "") -> str:
    """A counter's events a second, or a histogram's observations."""
    part = "_count" if metric.kind is Kind.HISTOGRAM else ""
    return f"sum{_by(by)} (rate({select(metric, where, part, WINDOW)}))"


def increase(metric: Metric, *by: str) -> str:
    """A counter's events within the graph's step."""
    return f"sum{_by(by)} (increase({select(metric, window=WINDOW)}))"


def quantile(share: float, metric: Metric, *by: str) -> str:
    """Of a histogram, in its unit."""
    buckets = select(metric, part="_bucket", window=WINDOW)
    return f"histogram_quantile({share:g}, sum{_by(('le', *by))} (rate({buckets})))"


def mean(metric: Metric, *by: str) -> str:
    """Of a histogram, in its unit."""
    total = select(metric, part="_sum", window=WINDOW)
    return f"sum{_by(by)} (rate({total})) / {rate(metric, *by)}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""

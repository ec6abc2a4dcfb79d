"""`moray metrics`, and METRICS.md beside this file: `python -m ops.metrics_reference` writes it, a test compares it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from replicas import metrics
from replicas.metrics import CATALOGUE, Metric, Teller

EXAMPLES = "Examples: `moray metrics` · `moray metrics --json | jq -r '.[].scraped'` · `moray metrics --markdown`"
PAGE = Path(__file__).with_name("METRICS.md")

TOLD_BY = {
    Teller.GATEWAY: "Gateways: each on a port of its own (`metrics.port`), and under /metrics of the API.",
    Teller.ROUTER: "The router: on the metrics port of its Ray node.",
    Teller.REPLICA: "Replicas: on the metrics port of their Ray nodes; Serve adds the label `replica`.",
    Teller.CONTROLLER: "The controller: on the metrics port of its Ray node.",
}
SCRAPE = """\
scrape_configs:
  - job_name: moray
    http_sd_configs:
      - url: http://GATEWAY:8000/moray/targets
"""


def reference(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference page instead.")] = False,
) -> None:
    """List every metric of a session: its name on its scrape target, its kind, unit, labels, and what it counts.

    The page has those of the node watcher, which runs on Kubernetes only, too.

    GET /moray/targets lists where they are scraped, as Prometheus' http_sd_configs want it.
    """
    if as_json:
        sys.stdout.write(json.dumps([_as_json(metric) for metric in CATALOGUE]) + "\n")
    elif markdown:
        sys.stdout.write(page())
    else:
        _print_tables()


def _as_json(metric: Metric) -> dict[str, object]:
    return {
        "name": metric.name,
        "scraped": metric.scraped,
        "kind": metric.kind.value,
        "told_by": metric.teller.value,
        "unit": metric.unit,
        "labels": metric.labels,
        "buckets": metric.buckets,
        "help": metric.help,
    }


def _print_tables() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for teller, where in TOLD_BY.items():
        table = Table(title=where.replace("`", ""), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in ("name", "kind", "unit", "labels", "what"):
            table.add_column(column, overflow="fold")
        for metric in metrics.of(teller):
            table.add_row(metric.scraped, metric.kind.value, metric.unit, ", ".join(metric.labels), metric.help)
        console.print(table)
        console.print()


def page() -> str:
    """METRICS.md."""
    parts = [
        "# Metrics",
        "Made of `replicas/metrics.py` by `python -m ops.metrics_reference`: change that, not this page.",
        "Prometheus finds all but the node watcher's by itself:",
        f"```yaml\n{SCRAPE}```",
        "With API keys configured, /moray/targets asks for one (`authorization:` in `http_sd_configs`); the metrics "
        "ports do not. A histogram's samples end in `_bucket`, `_sum` and `_count`. Ray tells a change within ten "
        "seconds.",
        "Beside these, a gateway serves vLLM's own metrics of its front end (`vllm:…`, setting `metrics.vllm`). What "
        "only an engine knows (`vllm:kv_cache_usage_perc` and the like) is not among them: a gateway has many engines, "
        "and each replica tells it for itself here. `vllm:num_requests_running` and `…_waiting` are the gateway's own.",
    ]
    for teller, where in TOLD_BY.items():
        parts.append(f"## {teller.value.capitalize()}\n\n{where}")
        rows = ["| metric | kind | unit | labels | what |", "| --- | --- | --- | --- | --- |"]
        for m in metrics.of(teller):
            labels = ", ".join(f"`{label}`" for label in m.labels) or "-"
            rows.append(f"| `{m.scraped}` | {m.kind.value} | {m.unit} | {labels} | {m.help} |")
        parts.append("\n".join(rows))
    parts.append(_of_node_watcher())
    bounds = [f"- `{m.name}`: {', '.join(f'{b:g}' for b in m.buckets)}" for m in CATALOGUE if m.buckets]
    parts.append("## Buckets\n\nUpper bounds in seconds.\n\n" + "\n".join(bounds))
    return "\n\n".join(parts) + "\n"


def _of_node_watcher() -> str:
    from ops.k8s.node_metrics import Metrics

    rows = [
        "## Node watcher",
        "",
        "On Kubernetes: the port `http` of its pods, which the chart's PodMonitor scrapes (job `moray-node-watcher`).",
        "",
        "| metric | kind | labels | what |",
        "| --- | --- | --- | --- |",
    ]
    for told in Metrics().catalogue:
        labels = ", ".join(f"`{label}`" for label in told.labels) or "-"
        rows.append(f"| `{told.name}` | {told.kind} | {labels} | {told.help} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())

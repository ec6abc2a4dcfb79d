"""PromQL of rules, runbooks and dashboards: does it parse, and which metrics does it name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from ops.k8s.node_metrics import Metrics
from replicas.metrics import CATALOGUE, Kind

RULES = Path(__file__).parents[2] / "ops" / "alerts" / "moray.rules.yaml"
DASHBOARDS = RULES.parents[1] / "dashboards" / "generated"
PROMTOOL = shutil.which("promtool")

# Named by us, told by others: vLLM's front end, Ray, Ray Serve. tests/e2e/test_prometheus.py finds each of them live.
OF_OTHERS = {
    "vllm:num_requests_running",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_cpu_utilization",
    "ray_serve_deployment_replica_healthy",
    "ray_serve_num_ongoing_http_requests",
}
OF_PROMETHEUS = {"up", "ALERTS"}
_KEYWORDS = {"and", "or", "unless", "by", "on", "ignoring", "without", "group_left", "group_right", "offset", "bool"}


def metric_names(query: str) -> set[str]:
    of_vllm = {f"vllm:{name}" for name in re.findall(r'__name__=~"vllm\[:_\](\w+)"', query)}
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"(?<![\w:])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", bare)
    return set(names) - _KEYWORDS | of_vllm


def catalogue_names() -> set[str]:
    """As queries have them."""
    names = set()
    for metric in CATALOGUE:
        parts = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        names |= {metric.scraped + part for part in parts}
    return names


def recorded_names() -> set[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def known_names() -> set[str]:
    return catalogue_names() | recorded_names() | node_watcher_names() | OF_OTHERS | OF_PROMETHEUS


def node_watcher_names() -> set[str]:
    return {told.name for told in Metrics().catalogue}


def complaints(queries: Iterable[str], directory: Path) -> str:
    """What promtool's own parser says of them; empty: nothing."""
    rules = [{"record": f"q:{n}", "expr": query} for n, query in enumerate(queries)]
    file = directory / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    ran = subprocess.run([str(PROMTOOL), "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def of_dashboards() -> list[str]:
    """Every query, with Grafana's variables as Grafana fills them in when all is chosen."""
    queries = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "1m")
                queries.append(re.sub(r"\$(model|replica|tenant)\b", ".*", query))
    return queries

"""Where a cluster's metrics are scraped: Prometheus' HTTP service discovery. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any


def targets(gateways: Iterable[str], nodes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Scrape targets in the format of Prometheus' http_sd_configs.

    `gateways` are "host:port" of each gateway's metrics, `nodes` what `ray.nodes()` tells.
    """
    ray = (
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in nodes
        if node["Alive"] and node["MetricsExportPort"]
    )
    groups = {"moray-gateway": sorted(address for address in gateways if address), "ray": sorted(ray)}
    return [{"targets": found, "labels": {"job": job}} for job, found in groups.items() if found]

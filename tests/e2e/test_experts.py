"""The experts' load of a running session: `moray experts`, and as metrics on Ray's port."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from replicas import metrics

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

LAYERS, EXPERTS, TOP_K = 4, 8, 2
EXPERT_IMBALANCE, SHARD_IMBALANCE, SHARD_SHARE = (
    metric.name for metric in (metrics.EXPERT_IMBALANCE, metrics.SHARD_IMBALANCE, metrics.SHARD_SHARE)
)


def ask(url: str, tokens: int) -> int:
    """Tokens that went through the model."""
    body = {"model": "tiny-r1", "prompt": "12+34", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    usage = httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()["usage"]
    return int(usage["total_tokens"])


def samples(session: Any) -> dict[str, dict[str, float]]:
    """The experts' gauges on Ray's metrics port: name -> layer or shard -> value."""
    found: dict[str, dict[str, float]] = {}
    agents = (psutil.Process(p.pid) for p in session.processes())
    ports = {
        c.laddr.port for agent in agents if "Dashboard" in agent.name() for c in agent.net_connections() if not c.raddr
    }
    for port in ports:
        try:
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).raise_for_status().text
        except httpx.HTTPError:  # the agent's other ports
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.labels.get("layer") or sample.labels.get("shard")
                if sample.name.startswith("ray_moray_") and key:
                    found.setdefault(sample.name.removeprefix("ray_"), {})[key] = sample.value
    return found


def test_the_experts_load_is_told_to_whoever_asks(sharded: Any, eventually: Callable[..., Any]) -> None:
    """What is counted is held against the engine's own word in tests/experts; here, that it arrives."""
    ask(sharded.url, 4)  # the window begins with the first count that is told
    asked = ask(sharded.url, 300)

    def told() -> dict[str, Any] | None:
        report: dict[str, Any] = json.loads(sharded.moray("experts", "--json").stdout)
        # The last token is sampled, but never fed to the model.
        return report if report["tokens"] and sum(report["tokens"][0]) >= TOP_K * (asked - 1) else None

    report = eventually(told, 20, "the count")
    by_layer = [sum(layer) for layer in report["tokens"]]
    assert (len(by_layer), {len(layer) for layer in report["tokens"]}) == (LAYERS, {EXPERTS})
    assert len(set(by_layer)) == 1, "every token passes every layer"
    (replica,) = report["replicas"]
    assert sum(shard["tokens"] for shard in replica["shards"]) == pytest.approx(sum(by_layer), abs=1)
    assert "choices of an expert" in sharded.moray("experts").stdout


def test_their_evenness_is_on_rays_metrics_port(sharded: Any, eventually: Callable[..., Any]) -> None:
    ask(sharded.url, 200)

    def told() -> dict[str, dict[str, float]] | None:
        found = samples(sharded)
        return found if found.get(EXPERT_IMBALANCE, {}).get("0", 0.0) > 1 else None

    found = eventually(told, 30, "the gauges")
    assert found.keys() == {EXPERT_IMBALANCE, SHARD_IMBALANCE, SHARD_SHARE}
    assert found[EXPERT_IMBALANCE].keys() == found[SHARD_IMBALANCE].keys() == {str(layer) for layer in range(LAYERS)}
    assert all(1 <= value <= 2 for value in found[SHARD_IMBALANCE].values())  # of two shards
    assert sum(found[SHARD_SHARE].values()) == pytest.approx(1.0)

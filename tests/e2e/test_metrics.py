"""Every metric of the catalogue, found by a scrape of what /moray/targets names, on the real stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from replicas import metrics
from replicas.metrics import Kind, Metric, Teller

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

# NVML answers where GPUs are; tests/replicas/test_metrics.py has those.
ON_GPUS = {metrics.GPU_UTILIZATION, metrics.GPU_MEMORY_USED, metrics.GPU_MEMORY_TOTAL}
ELSEWHERE = ON_GPUS | {metrics.MIRRORED_REQUESTS}  # and no request is copied where no version is rolled
JOBS = {"moray-gateway", "ray"}


def ask(url: str, **what: Any) -> httpx.Response:
    body = {"model": "tiny-r1", "prompt": "12+34=" * 30, "max_tokens": 30, "ignore_eos": True, "temperature": 0} | what
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def scrape(session: Any) -> dict[str, dict[str, list[Any]]]:
    """job -> name of a sample -> samples, over all targets."""
    found: dict[str, dict[str, list[Any]]] = {}
    for group in httpx.get(f"{session.url}/moray/targets", timeout=10).raise_for_status().json():
        job = found.setdefault(group["labels"]["job"], {})
        for target in group["targets"]:
            text = httpx.get(f"http://{target}/metrics", timeout=10).raise_for_status().text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    job.setdefault(sample.name, []).append(sample)
    return found


def samples(found: dict[str, dict[str, list[Any]]], metric: Metric) -> list[Any]:
    job = "moray-gateway" if metric.teller is Teller.GATEWAY else "ray"
    return found[job].get(metric.scraped + ("_count" if metric.kind is Kind.HISTOGRAM else ""), [])


def test_every_metric_is_found_and_counts(sharded: Any, eventually: Callable[..., Any]) -> None:
    before = scrape(sharded)
    assert before.keys() == JOBS
    for stream in (False, True, False):
        assert ask(sharded.url, stream=stream).status_code == 200
    assert ask(sharded.url, max_tokens=10**9).status_code == 400  # vLLM's front end says so: no engine request
    wanted = [m for m in metrics.CATALOGUE if m.teller is not Teller.CONTROLLER and m not in ELSEWHERE]

    def all_there() -> dict[str, dict[str, list[Any]]] | None:
        found = scrape(sharded)
        steps = samples(found, metrics.ENGINE_STEPS)
        return found if all(samples(found, m) for m in wanted) and steps[0].value > 60 else None

    found = eventually(all_there, 60, f"all of {[m.name for m in wanted if not samples(scrape(sharded), m)]}")
    for metric in wanted:
        for sample in samples(found, metric):
            assert set(metric.labels) <= sample.labels.keys(), metric

    def total(metric: Metric, when: dict[str, dict[str, list[Any]]] = found, **labels: str) -> float:
        return sum(s.value for s in samples(when, metric) if labels.items() <= s.labels.items())

    new = {m: total(m) - total(m, before) for m in (metrics.OUTPUT_TOKENS, metrics.TTFT_SECONDS, metrics.TPOT_SECONDS)}
    assert new == {metrics.OUTPUT_TOKENS: 90, metrics.TTFT_SECONDS: 3, metrics.TPOT_SECONDS: 3}
    assert total(metrics.REQUESTS, ending="DONE") - total(metrics.REQUESTS, before, ending="DONE") == 3
    assert total(metrics.CACHED_PROMPT_TOKENS) > 0 and total(metrics.PREFIX_HIT_TOKENS) > 0, "one prompt, three times"
    assert total(metrics.REPLICAS, state="ready") == 1 and total(metrics.OPEN_REQUESTS) == 0
    for stage in metrics.STAGES:
        assert total(metrics.STAGE_SECONDS, stage=stage) - total(metrics.STAGE_SECONDS, before, stage=stage) == 3, stage
    known = {m.scraped for m in metrics.CATALOGUE}
    ours = {f.removesuffix(s) for job in found.values() for f in job for s in ("",) if "moray_" in f}
    parts = ("_bucket", "_count", "_sum")
    unknown = {n for n in ours if n not in known and not any(n.removesuffix(p) in known for p in parts)}
    assert not unknown, "told, but not in the catalogue"


def test_vllms_own_are_there_and_true(sharded: Any) -> None:
    def value(found: dict[str, dict[str, list[Any]]], name: str) -> float:
        return sum(sample.value for sample in found["moray-gateway"][name])

    before = scrape(sharded)
    assert ask(sharded.url, max_tokens=25).status_code == 200
    after = scrape(sharded)
    assert value(after, "vllm:generation_tokens_total") - value(before, "vllm:generation_tokens_total") == 25
    gaps = "vllm:inter_token_latency_seconds_count"
    assert value(after, gaps) - value(before, gaps) == 24
    assert value(after, "vllm:num_requests_running") == value(after, "vllm:num_requests_waiting") == 0
    queued, prefilled = (
        value(after, f"vllm:request_{what}_time_seconds_sum") - value(before, f"vllm:request_{what}_time_seconds_sum")
        for what in ("queue", "prefill")
    )
    assert 0 < queued < 5 and 0 < prefilled < 5, "times of one clock"
    assert "vllm:kv_cache_usage_perc" not in after["moray-gateway"], "a gateway has no KV cache"


def test_the_api_has_them_too(sharded: Any) -> None:
    text = httpx.get(f"{sharded.url}/metrics", timeout=10, follow_redirects=True).raise_for_status().text
    assert "moray_requests_total{" in text and "vllm:time_to_first_token_seconds_count{" in text

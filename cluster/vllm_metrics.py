"""vLLM's own metrics at a gateway: what of them is true when the engine is a cluster.

vLLM's front end counts requests and tokens as they pass, and gauges what its engine core tells of itself with each
step. Ours tells nothing there: a gateway that has 40 replicas has no KV cache of which a share could be in use. So the
two gauges that a gateway does know are read from it at each scrape, and those that would stand at 0 for ever are taken
away: `moray_kv_used_ratio`, `moray_prefix_hit_tokens_total` and so on tell of each replica what is true there.
"""

from typing import Any

from prometheus_client import REGISTRY

# What only an engine core knows (vllm/v1/metrics/loggers.py, PrometheusStatLogger.record under `scheduler_stats`).
OF_AN_ENGINE = (
    "vllm:num_requests_waiting_by_reason",
    "vllm:num_requests_kv_fetch_by_stage",
    "vllm:engine_sleep_state",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:external_prefix_cache_queries",
    "vllm:external_prefix_cache_hits",
    "vllm:num_preemptions",
    "vllm:request_num_preemptions",
    "vllm:cache_config_info",
    "vllm:estimated_flops_per_gpu",
    "vllm:estimated_read_bytes_per_gpu",
    "vllm:estimated_write_bytes_per_gpu",
)


def show_cluster_as_engine(manager: Any, core: Any) -> None:
    """`manager` is AsyncLLM's StatLoggerManager, `core` its ClusterCore."""
    for logger in manager.stat_loggers:
        if (running := getattr(logger, "gauge_scheduler_running", None)) is not None:
            running[0].set_function(lambda: _running(core))
            logger.gauge_scheduler_waiting[0].set_function(lambda: core.open_requests - _running(core))
    for name in OF_AN_ENGINE:
        collector = REGISTRY._names_to_collectors.get(name)  # it has no public way from a name to what is registered
        if collector is not None:
            REGISTRY.unregister(collector)


def _running(core: Any) -> int:
    return sum(replica.running for replica in core.seen())

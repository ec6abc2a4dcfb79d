"""The five dashboards. What an operator asks first stands on top."""

from collections.abc import Iterator

from grafana_foundation_sdk.models.dashboard import Dashboard

from ops.dashboards.overview import FAILED, MODEL, REPLICA, overview
from ops.dashboards.panels import Limits, Query, Row, choice, figure, graph, heat, page, states
from ops.dashboards.queries import increase, of, quantile, rate
from replicas import metrics as m

SHED = 'ending=~"TOO_LATE|QUEUE_FULL"'


def all_pages() -> Iterator[tuple[str, Dashboard]]:
    """(name of its file, dashboard)"""
    yield "overview", overview()
    yield "replicas", replicas()
    yield "experts", experts()
    yield "tenants", tenants()
    yield "alarms", alarms()


def replicas() -> Dashboard:
    each = "{{replica}}"
    work = Row(
        "Work",
        [
            graph("Running", "Requests in the batch.", "short", Query(of("max", m.RUNNING_REQUESTS, "replica"), each)),
            graph(
                "Engine steps",
                "A second. A replica that runs requests and does no steps hangs.",
                "short",
                Query(rate(m.ENGINE_STEPS, "replica"), each),
            ),
            graph(
                "Waiting in the engine",
                "Near 0: the router holds requests back until there is room.",
                "short",
                Query(of("max", m.ENGINE_WAITING_REQUESTS, "replica"), each),
            ),
            graph("Batch fill", "", "percentunit", Query(of("max", m.BATCH_FILL, "replica"), each), most=1),
            graph("KV used", "", "percentunit", Query(of("max", m.KV_USED, "replica"), each), most=1),
            graph("KV headroom", "Tokens.", "short", Query(of("min", m.KV_HEADROOM, "replica"), each)),
            graph(
                "Prefix hits",
                "Share of the prompt tokens that the cache had.",
                "percentunit",
                Query(f"{rate(m.PREFIX_HIT_TOKENS, 'replica')} / {rate(m.PREFIX_QUERY_TOKENS, 'replica')}", each),
                most=1,
                wide=12,
            ),
            graph(
                "Age",
                "Since the replica's engine got ready; a fall to 0 is a restart.",
                "s",
                Query(f"time() - {of('max', m.REPLICA_START, 'replica')}", each),
                wide=12,
            ),
        ],
    )
    memory = (m.GPU_MEMORY_USED, m.GPU_MEMORY_TOTAL)
    gpus = Row(
        "GPUs, where NVML answers",
        [
            graph(
                "GPU utilisation",
                "Time with a kernel running.",
                "percentunit",
                Query(of("max", m.GPU_UTILIZATION, "replica", "gpu"), "{{replica}} {{gpu}}"),
                most=1,
                wide=12,
            ),
            graph(
                "GPU memory",
                "In use, of all.",
                "percentunit",
                Query(" / ".join(of("max", metric, "replica", "gpu") for metric in memory), "{{replica}} {{gpu}}"),
                most=1,
                wide=12,
            ),
        ],
    )
    life = Row(
        "Life",
        [
            graph("Lost", "Within the step.", "short", Query(increase(m.REPLICAS_LOST, "model"), "{{model}}"), wide=12),
            graph(
                "Healthy for Ray Serve",
                "By its own health check, of each deployment.",
                "short",
                Query("sum by (deployment) (ray_serve_deployment_replica_healthy)", "{{deployment}}"),
                wide=12,
            ),
        ],
    )
    return page("replicas", "Replicas", "One replica beside the others.", [MODEL, REPLICA], [work, gpus, life])


def experts() -> Dashboard:
    balance = Row(
        "Balance",
        [
            figure(
                "Shards, max over mean",
                "Mean of layers, of the worst replica. 1 is even; each layer waits for its fullest shard.",
                "none",
                f"max({of('avg', m.SHARD_IMBALANCE, 'replica')})",
                Limits(1.3, 1.5),
                wide=6,
            ),
            figure(
                "Experts, max over mean",
                "Mean of layers, of the worst replica. What a placement has to even out.",
                "none",
                f"max({of('avg', m.EXPERT_IMBALANCE, 'replica')})",
                wide=6,
            ),
            graph(
                "Shards, max over mean",
                "Mean of layers.",
                "none",
                Query(of("avg", m.SHARD_IMBALANCE, "replica"), "{{replica}}"),
                wide=12,
            ),
        ],
    )
    maps = Row(
        "Heat maps",
        [
            heat(
                "Layers: fullest shard over the mean",
                "Each row is a layer. What is dark is where the step waits.",
                "none",
                Query(of("max", m.SHARD_IMBALANCE, "layer"), "layer {{layer}}"),
            ),
            heat(
                "Layers: most chosen expert over the mean",
                "Each row is a layer. How uneven the gates choose, wherever the experts are.",
                "none",
                Query(of("max", m.EXPERT_IMBALANCE, "layer"), "layer {{layer}}"),
            ),
            heat(
                "Shards: share of all tokens",
                "Each row is a shard of a replica.",
                "percentunit",
                Query(of("max", m.SHARD_SHARE, "replica", "shard"), "{{replica}} shard {{shard}}"),
            ),
        ],
    )
    what = "How evenly experts and shards are loaded, of the last minute of work. `moray experts` shows single experts."
    return page("experts", "Experts", what, [MODEL, REPLICA], [balance, maps])


def tenants() -> Dashboard:
    tenant = choice("tenant", f"label_values({m.TENANT_TOKENS.scraped}, tenant)")
    chosen = 'tenant=~"$tenant"'

    def top(kind: str) -> Query:
        of_kind = f'{chosen},kind="{kind}"'
        return Query(f"topk(10, {rate(m.TENANT_TOKENS, 'tenant', where=of_kind)})", "{{tenant}}")

    use = Row(
        "Tokens",
        [
            graph("Prompt tokens a second", "The ten largest.", "short", top("prompt"), stacked=True, wide=12),
            graph("Output tokens a second", "The ten largest.", "short", top("output"), stacked=True, wide=12),
            graph(
                "Share of all tokens",
                "",
                "percentunit",
                Query(
                    f"topk(10, {rate(m.TENANT_TOKENS, 'tenant', where=chosen)}"
                    f" / on () group_left () {rate(m.TENANT_TOKENS)})",
                    "{{tenant}}",
                ),
                most=1,
                wide=24,
            ),
        ],
    )
    refused = Row(
        "Refused, of all tenants",
        [
            graph(
                "By a quota", "429, a second.", "reqps", Query(rate(m.DENIALS, where='ending="RATE_LIMITED"'), "quota")
            ),
            graph("Shed", "429, a second.", "reqps", Query(rate(m.REQUESTS, "ending", where=SHED), "{{ending}}")),
            graph(
                "By priority",
                "Requests that wait; a lower class goes first.",
                "short",
                Query(of("sum", m.QUEUE_REQUESTS, "priority"), "class {{priority}}"),
            ),
        ],
    )
    what = "Who uses how much. Tenants after the first metrics.tenants are counted as `other`."
    return page("tenants", "Tenants", what, [MODEL, tenant], [use, refused])


def alarms() -> Dashboard:
    pages, few = Limits(0.5, 1), Limits(1, 5)
    count = "count(ALERTS{alertstate='firing',severity='%s'})"
    now = Row(
        "Now",
        [
            figure("Pages", "Rules that fire.", "short", count % "page", pages),
            figure("Tickets", "Rules that fire.", "short", count % "ticket", few),
            figure("Controller", "Alarms that it raised.", "short", of("sum", m.ALARM_RAISED), few, none="0"),
            figure("Watching", "Age of its newest observation.", "s", of("max", m.WATCH_LAG), Limits(10, 30)),
            figure("Gateways", "That answer Prometheus.", "short", 'sum(up{job="moray-gateway"})', Limits(1.5, 0.5)),
            figure("Ray's ports", "That answer Prometheus.", "short", 'sum(up{job="ray"})', Limits(1.5, 0.5)),
        ],
    )
    raised = Row(
        "Raised",
        [
            states(
                "Rules of Prometheus",
                "ops/alerts/moray.rules.yaml; each has its page in ops/runbooks.",
                Query(
                    'max by (alertname, model, replica) (ALERTS{alertstate="firing"})',
                    "{{alertname}} {{model}} {{replica}}",
                ),
            ),
            states(
                "Alarms of the controller",
                "By its detectors, within seconds; the same pages.",
                Query(of("max", m.ALARM_RAISED, "alarm", "model", "replica"), "{{alarm}} {{model}} {{replica}}"),
            ),
        ],
    )
    healing = Row(
        "Healing",
        [
            graph(
                "Self-healing",
                "What it did or withheld, within the step.",
                "short",
                Query(increase(m.HEALINGS, "action", "outcome"), "{{action}}: {{outcome}}"),
            ),
            graph("Alarms raised", "Within the step.", "short", Query(increase(m.ALARMS, "alarm"), "{{alarm}}")),
            graph("Replicas lost", "Within the step.", "short", Query(increase(m.REPLICAS_LOST, "model"), "{{model}}")),
        ],
    )
    rollout = Row(
        "Rollouts",
        [
            states(
                "Phase",
                "Of the rollout that runs, or of the last one; `moray rollout status` tells why.",
                Query(f"{of('max', m.ROLLOUT_PHASE, 'model', 'phase')} > 0", "{{model}} {{phase}}"),
            ),
            graph(
                "Share by version",
                "Of the new requests, while shares are set.",
                "percentunit",
                Query(of("max", m.ROLLOUT_SHARE, "model", "version"), "{{model}} {{version}}"),
                most=1,
            ),
            graph("Rollouts ended", "Within the step.", "short", Query(increase(m.ROLLOUTS, "outcome"), "{{outcome}}")),
            graph(
                "Loading of a swap", "Of the last replica.", "s", Query(of("max", m.SWAP_SECONDS, "model"), "{{model}}")
            ),
            graph(
                "Replicas by version",
                "What is loaded.",
                "short",
                Query(of("sum", m.MODEL_VERSION, "model", "version"), "{{model}} {{version}}"),
                stacked=True,
            ),
            graph(
                "Requests by version",
                "A second.",
                "reqps",
                Query(rate(m.REQUESTS, "model", "version"), "{{model}} {{version}}"),
                stacked=True,
            ),
            graph(
                "Failed by version",
                "Share of its requests.",
                "percentunit",
                Query(
                    f"{rate(m.REQUESTS, 'model', 'version', where=FAILED)} / {rate(m.REQUESTS, 'model', 'version')}",
                    "{{model}} {{version}}",
                ),
                most=1,
            ),
            graph(
                "TTFT by version, p95",
                "",
                "s",
                Query(quantile(0.95, m.TTFT_SECONDS, "model", "version"), "{{model}} {{version}}"),
                wide=12,
            ),
            graph(
                "TPOT by version, p95",
                "",
                "s",
                Query(quantile(0.95, m.TPOT_SECONDS, "model", "version"), "{{model}} {{version}}"),
                wide=12,
            ),
            graph(
                "Copies by version",
                "A second, by ending: requests that ran once more on a version under trial, for nobody to read.",
                "reqps",
                Query(rate(m.MIRRORED_REQUESTS, "model", "version", "ending"), "{{model}} {{version}}: {{ending}}"),
                wide=24,
            ),
        ],
    )
    what = "What is wrong, what was done about it, and whether a version differs from another."
    return page("alarms", "Alarms and rollouts", what, [MODEL, REPLICA], [now, raised, healing, rollout])

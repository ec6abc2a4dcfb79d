"""The first dashboard: is it served well, where does the time go, is there room?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from ops.dashboards.panels import Limits, Query, Row, choice, figure, graph, page
from ops.dashboards.queries import mean, of, quantile, rate
from replicas import metrics as m

MODEL = choice("model", f"label_values({m.REPLICAS.scraped}, model)")
REPLICA = choice("replica", f'label_values({m.RUNNING_REQUESTS.scraped}{{model=~"$model"}}, replica)')
FAILED = 'ending=~"ERROR|NO_REPLICA|LOST|VERSION_GONE|QUARANTINED"'
MET = 'met="true"'
ATTAINED = f"{rate(m.SLO_REQUESTS, where=MET)} / {rate(m.SLO_REQUESTS)}"


def quantiles(metric: m.Metric) -> list[Query]:
    return [Query(quantile(share, metric), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


def overview() -> Dashboard:
    now = Row(
        "Now",
        [
            figure("SLO attained", "Requests within TTFT and TPOT.", "percentunit", ATTAINED, Limits(0.99, 0.95)),
            figure("Requests", "That ended, a second.", "reqps", rate(m.REQUESTS)),
            figure("Failed", "By our error, a second.", "reqps", rate(m.REQUESTS, where=FAILED), Limits(0.01, 0.1)),
            figure("Output tokens", "A second.", "short", rate(m.OUTPUT_TOKENS)),
            figure("Waiting", "Requests in the router's queue.", "short", of("sum", m.QUEUE_REQUESTS), Limits(10, 100)),
            figure(
                "Replicas ready", "", "short", of("sum", m.REPLICAS, where='state="ready"'), Limits(1.5, 0.5), none="0"
            ),
        ],
    )
    slo = Row(
        "SLO and latency",
        [
            graph(
                "Budget burn",
                "How much too fast the error budget of 1% goes: 14.4 pages after an hour, 6 after six.",
                "none",
                *(
                    Query(
                        f'model:moray_slo_missed:ratio_rate{window}{{model=~"$model"}} '
                        "/ scalar(moray:slo_budget:ratio)",
                        f"{{{{model}}}} {window}",
                    )
                    for window in ("5m", "1h", "6h")
                ),
            ),
            graph("TTFT", "From arrival to the first token.", "s", *quantiles(m.TTFT_SECONDS)),
            graph("TPOT", "Mean time from token to token of a request.", "s", *quantiles(m.TPOT_SECONDS)),
            graph(
                "Where the time goes",
                "Mean seconds of a request in each stage.",
                "s",
                Query(mean(m.STAGE_SECONDS, "stage"), "{{stage}}"),
                stacked=True,
            ),
            graph(
                "Stages, p95",
                "The slow ones.",
                "s",
                Query(quantile(0.95, m.STAGE_SECONDS, "stage"), "{{stage}}"),
            ),
            graph(
                "Time between tokens",
                "Every gap of every stream, as vLLM's front end sees it.",
                "s",
                *(
                    Query(
                        f"histogram_quantile({share:g}, sum by (le) (rate("
                        '{__name__=~"vllm[:_]inter_token_latency_seconds_bucket",model_name=~"$model"}[$__rate_interval])))',
                        f"p{share * 100:g}",
                    )
                    for share in (0.5, 0.99)
                ),
            ),
        ],
    )
    work = Row(
        "Work",
        [
            graph(
                "Tokens a second",
                "Prompt tokens are computed unless the prefix cache has them.",
                "short",
                Query(rate(m.PROMPT_TOKENS), "prompt"),
                Query(rate(m.CACHED_PROMPT_TOKENS), "of these cached"),
                Query(rate(m.OUTPUT_TOKENS), "output"),
            ),
            graph(
                "Endings", "Requests a second.", "reqps", Query(rate(m.REQUESTS, "ending"), "{{ending}}"), stacked=True
            ),
            graph(
                "HTTP requests in flight",
                "Open at Ray Serve's proxies, and open requests of the engine at gateways.",
                "short",
                Query("sum(ray_serve_num_ongoing_http_requests)", "HTTP"),
                Query(of("sum", m.OPEN_REQUESTS), "engine requests"),
            ),
            graph(
                "Queue",
                "Requests that wait for a replica, by priority class.",
                "short",
                Query(of("sum", m.QUEUE_REQUESTS, "priority"), "class {{priority}}"),
                stacked=True,
            ),
            graph(
                "Oldest in the queue",
                "It is to be below the TTFT limit.",
                "s",
                Query(of("max", m.QUEUE_OLDEST_SECONDS, "model"), "{{model}}"),
            ),
            graph("Prompt tokens queued", "Of all that wait.", "short", Query(of("sum", m.QUEUE_PROMPT_TOKENS))),
            graph(
                "Grants and denials",
                "What the router decided, a second.",
                "reqps",
                Query(rate(m.GRANTS), "granted"),
                Query(rate(m.DENIALS, "ending"), "{{ending}}"),
            ),
        ],
    )
    capacity = Row(
        "Capacity",
        [
            graph(
                "Replicas", "By state.", "short", Query(of("sum", m.REPLICAS, "model", "state"), "{{model}} {{state}}")
            ),
            graph(
                "Batch fill",
                "Requests in the batch over the most that fit.",
                "percentunit",
                Query(of("avg", m.BATCH_FILL, "model"), "{{model}}"),
                Query(of("max", m.BATCH_FILL, "model"), "{{model}}, fullest"),
                most=1,
            ),
            graph(
                "KV cache",
                "Share of blocks in use.",
                "percentunit",
                Query(of("avg", m.KV_USED, "model"), "{{model}}"),
                Query(of("max", m.KV_USED, "model"), "{{model}}, fullest"),
                most=1,
            ),
            graph(
                "Streams resumed",
                "That went on elsewhere, a minute: lost with a replica, or moved by a drain.",
                "short",
                Query(f"60 * {rate(m.RESUMES, 'cause')}", "{{cause}}"),
            ),
            graph("Gap of resumed streams", "", "s", *quantiles(m.RESUME_GAP_SECONDS)),
            graph(
                "Nodes",
                "CPU and memory of each.",
                "percent",
                Query("max by (ip) (ray_node_cpu_utilization)", "{{ip}} CPU"),
                Query("100 * max by (ip) (ray_node_mem_used / ray_node_mem_total)", "{{ip}} memory"),
                most=100,
            ),
        ],
    )
    what = "Is it served well, where does the time go, and is there room?"
    return page("overview", "Overview", what, [MODEL, REPLICA], [now, slo, work, capacity])

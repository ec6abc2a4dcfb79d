"""`moray bench …`: performance is measured here, never by timed tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ops.bench.gpu.cli import gpu
from ops.bench.reporting import reporter
from ops.bench.rollout_cli import gates, rollout
from ops.options import AsJsonLine

Traces = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the Azure LLM inference traces of 2023 (azure_2023_conv.csv.gz, azure_2023_code.csv.gz). "
        "Default: made-up stand-ins.",
        metavar="DIR",
    ),
]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure Moray. Every bench takes --json.")


@app.callback()
def bench() -> None:
    """Measure Moray. Ratios are taken side by side in one run: absolute figures belong to the machine."""


@app.command()
def frontend(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each alternates between both sides.")] = 5,
    output_tokens: Annotated[int, typer.Option(min=2, max=2048, help="Tokens that each request generates.")] = 128,
    stream_interval: Annotated[int, typer.Option(min=1, help="Tokens in one event of a stream.")] = 1,
    as_json: AsJsonLine = False,
) -> None:
    """What HTTP, proxy, gateway, router and Ray cost around the engine, at concurrency 1, 32 and 128.

    The same unsharded engine core is driven directly in one process and through the whole stack, in turns, on the
    same machine, load generator included. throughput_ratio_N: tokens/s through the stack over the engine's alone.
    added_ttft_p50_ms_1: first token's delay added at concurrency 1. cpu_us_per_token_32: CPU microseconds that each
    hop spends per streamed token, requests' own cost included.

    Example: moray bench frontend --rounds 3 --json
    """
    from ops.bench.frontend import measure

    _show("moray bench frontend", measure(rounds, output_tokens, stream_interval, reporter(as_json)), as_json)


@app.command()
def telemetry(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each, every side takes the load once.")] = 16,
    requests: Annotated[int, typer.Option(min=32, help="Requests of each run, 32 at a time.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=2, max=2048, help="Tokens that each request generates.")] = 128,
    as_json: AsJsonLine = False,
) -> None:
    """What metrics and traces cost the front end, in tokens/s and in the gateway's CPU.

    Four sessions side by side take the same load in turns: off (no metrics at the gateway), metrics (Moray's alone),
    vllm (vLLM's too: the default), all (traces as well). throughput_ratio_NAME: its tokens/s over those of off, the
    median of the rounds; …_spread: their middle half. cpu_ratio_NAME: the same of the CPU time of all hops, load
    generator and engine included, which is the steadier figure. Takes 2 GB of memory for each session.

    Example: moray bench telemetry --rounds 8 --json
    """
    from ops.bench.telemetry import measure

    _show("moray bench telemetry", measure(rounds, requests, output_tokens, reporter(as_json)), as_json)


@app.command()
def transport(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each alternates between both ways.")] = 3,
    frames: Annotated[int, typer.Option(min=100, help="Frames in each round and way.")] = 1000,
    as_json: AsJsonLine = False,
) -> None:
    """What a frame of tokens costs from replica to gateway: through Ray, and over our own connection.

    Example: moray bench transport --json
    """
    from ops.bench.transport import measure

    _show("moray bench transport", measure(rounds, frames), as_json)


@app.command()
def counting(
    rounds: Annotated[int, typer.Option(min=4, help="Rounds; each alternates between both ways.")] = 20,
    as_json: AsJsonLine = False,
) -> None:
    """What counting the experts' load costs an engine, on the embedded model and this machine's CPU.

    counting_share_N: of a step with N requests, what counting takes, timed alone. overhead_N: CPU time of the same
    requests with counting over without, less one: the median of the rounds, and its middle half as spread.
    asking_share_N: of the engine's time, what telling the counts takes.

    Example: moray bench counting --json
    """
    from ops.bench.counting import measure

    _show("moray bench counting", measure(rounds, reporter(as_json)), as_json)


@app.command()
def router(
    seconds: Annotated[float, typer.Option(min=2, help="Seconds of 500 tickets each.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the core alone, 10 and 1,000 replicas in turns.")] = 3,
    as_json: AsJsonLine = False,
) -> None:
    """What a scheduling decision takes, prefix scoring included.

    p50_ms, p95_ms: from a ticket's sending to its grant's arrival in the gateway, through the router's actor, at 500
    tickets/s over 10 replicas. core_tickets_per_s: tickets through the batcher alone on one CPU, at 10 replicas.
    cost_ratio_1000_vs_10: a ticket's CPU at 1,000 replicas over that at 10.

    Example: moray bench router --json
    """
    from ops.bench.scheduling import measure

    _show("moray bench router", measure(seconds, rounds, reporter(as_json)), as_json)


@app.command()
def goodput(
    replicas: Annotated[int, typer.Option(min=1, max=1024, help="Replicas; above 16 the windows are shorter.")] = 16,
    workloads: Annotated[
        str | None, typer.Option(help="Some of conv, code, chat, tenants, slow, by commas.", metavar="NAMES")
    ] = None,
    policies: Annotated[
        str | None, typer.Option(help="Some of those that `moray simulate --policy list` shows.", metavar="NAMES")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs whose attainments are averaged.")] = 1,
    traces: Traces = None,
    precision: Annotated[float, typer.Option(min=0.001, help="Of the capacities, as a share.")] = 0.03,
    machine: Annotated[
        str, typer.Option(help="h200, h200-steps (both fitted to measurements) or a100 (predicted).")
    ] = "h200",
    processes: Annotated[int, typer.Option(min=1, help="Simulations at once.")] = 1,
    as_json: AsJsonLine = False,
) -> None:
    """How much load each policy carries within the SLO, in simulation.

    Capacity: the highest rate at which 90% of all requests have TTFT <= 1 s and mean TPOT <= 50 ms. vs_round_robin,
    vs_best_peer, vs_upper_bound: the capacity of `continuous` over theirs; the upper bound is computed
    (ops/simulate/upper_bound.py says from what). attainment_1_3x: `continuous` at 1.3 times round robin's capacity.
    isolation: the interactive tenant's attainment alone and beside a flood. Exactly repeatable.

    Example: moray bench goodput --workloads conv,code --policies round_robin,continuous --json
    """
    from ops.bench.goodput import Setting, checked_traces, measure
    from ops.errors import UserError
    from replicas.step_time import MACHINES

    if machine not in MACHINES:
        raise UserError(f"--machine {machine}: there is no such one; take one of {', '.join(MACHINES)}")
    setting = Setting(replicas, seeds, checked_traces(traces), precision, machine)
    figures = measure(setting, workloads, policies, processes, reporter(as_json))
    _show("moray bench goodput", figures, as_json)


@app.command()
def start(
    starts: Annotated[int, typer.Option(min=1, help="Sessions, one after the other.")] = 5,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the sessions, as for `moray up`.", metavar="KEY=VALUE"),
    ] = None,
    as_json: AsJsonLine = False,
) -> None:
    """How long a session takes to start, by stages, and to end.

    first_ready_s: the first start, which fills what is kept between starts. ready_s: the median of the others, from the
    command to a session that answers; ready_s_range: their least and greatest. first_answer_ms: one token, right then.

    Example: moray bench start --starts 3 --set engine.own_cpu=false --json
    """
    from ops.bench.start import measure

    settings = dict(option.partition("=")[::2] for option in chosen or ())
    _show("moray bench start", measure(starts, settings, reporter(as_json)), as_json)


@app.command()
def autoscale(
    days: Annotated[str | None, typer.Option(help="Some of conv, mixed, by commas.", metavar="NAMES")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Days of each shape.")] = 3,
    first_seed: Annotated[int, typer.Option(help="Of the first day. Ours was tuned on 100.")] = 0,
    as_json: AsJsonLine = False,
) -> None:
    """Replica-hours of a simulated day: our autoscaling against Ray Serve's default policy.

    A fluid model of the simulated cluster, compared with it at constant load (calibration). replica_hours_ratio: ours
    over Ray Serve's with the best of a swept target_ongoing_requests whose SLO attainment (slo_baseline) is no worse
    than ours (slo_ours). ratio_tuned: the same with its delays and its downscaling factor swept too. At the top are the
    worst days. …_spread: least and most of the seeds.

    Example: moray bench autoscale --days conv --seeds 1 --json
    """
    from ops.bench.autoscale import measure

    _show("moray bench autoscale", measure(days, seeds, first_seed, reporter(as_json)), as_json)


@app.command()
def peers(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each, every side is measured once.")] = 2,
    seconds: Annotated[float, typer.Option(min=2, help="Seconds of arrivals in each round, side and rate.")] = 8,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Requests a second (offered: 0.8, 1.2, 1.6 times it). Default: found.")
    ] = None,
    policies: Annotated[
        str, typer.Option(help="Peers' policies to run in Moray, by commas: see router.policy.", metavar="NAMES")
    ] = "round_robin,least_outstanding",
    ttft_ms: Annotated[float, typer.Option(min=1, help="The SLO's limit on the time to the first token.")] = 300,
    tpot_ms: Annotated[float, typer.Option(min=1, help="And on the mean time of each further token.")] = 30,
    ray_llm_packages: Annotated[
        Path | None,
        typer.Option(help="Folder of what ray.serve.llm imports beyond our own: `pip install -t DIR pyarrow`."),
    ] = None,
    as_json: AsJsonLine = False,
) -> None:
    """Two real CPU engines behind Moray, behind peers' policies, HAProxy leastconn, and ray.serve.llm.

    goodput: requests/s that met both limits; a shed request or an error met none. vs_NAME: Moray's figure over that
    side's. The rates are 0.8, 1.2 and 1.6 times what Moray carries. A peer that does not run here is told with its
    error.

    Example: moray bench peers --rounds 3 --json
    """
    from ops.bench.peers.rounds import Options, measure
    from ops.simulate.results import Slo

    names = [name.strip() for name in policies.split(",") if name.strip()]
    options = Options(rounds, seconds, rate, names, Slo(ttft_ms / 1e3, tpot_ms / 1e3), ray_llm_packages)
    _show("moray bench peers", measure(options, reporter(as_json)), as_json)


@app.command()
def balance(
    seed: Annotated[int, typer.Option(help="Of the made-up loads.")] = 0,
    as_json: AsJsonLine = False,
) -> None:
    """Our placements of experts against those of the EPLB policy that vLLM brings.

    On made-up loads, and on the embedded model's by task, measured at the beginning on its engine.

    ours, eplb, lp_bound: the fullest rank's load over the mean, the mean over layers; the bound is no placement's.
    eplb is asked as vLLM does for these groups and nodes, eplb_flat as if there were none.
    drift_…: the same as the load changes three times, for the first placement (stay) and those that follow on it.
    moved: share of all slots that then hold an expert that their rank had not. sent_…: hidden states that a token sends
    to other nodes in a layer, by the dispatch; own_node_first_…: the imbalance that this dispatch makes of it.
    worst_…: the worst row, ours over theirs. plan_ms_…: the slowest load's placement, from nothing.

    Example: moray bench balance --json
    """
    from ops.bench.balance import measure
    from ops.bench.measured_load import loads_by_task

    report = reporter(as_json)
    report("measuring the embedded model's load by task")
    _show("moray bench balance", measure(seed, report, loads_by_task()), as_json)


@app.command()
def context(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each alternates between both lengths.")] = 5,
    output_tokens: Annotated[int, typer.Option(min=2, max=512, help="Tokens that each stream generates.")] = 64,
    chunk: Annotated[int, typer.Option(min=128, max=32768, help="Prompt tokens in one step.")] = 1024,
    as_json: AsJsonLine = False,
) -> None:
    """What 32K of context costs one stream, on the embedded model's architecture with stretched positions, on a CPU.

    tpot_ratio_32k_vs_1k: time per token of a stream that ends at 32,768 tokens over one that ends at 1,024.
    prefill_tok_s_at: prompt tokens/s of the chunk that begins at that position; its attention covers all before it.

    Example: moray bench context --rounds 3 --json
    """
    from ops.bench.context import measure

    _show("moray bench context", measure(rounds, output_tokens, chunk, reporter(as_json)), as_json)


@app.command()
def int8(
    prompts: Annotated[int, typer.Option(min=4, help="Held-out prompts, a quarter of each of four tasks.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 3,
    qat: Annotated[
        Path | None,
        typer.Option(help="Checkpoint fine-tuned for int8, as `make train-tiny-qat` makes it.", metavar="DIR"),
    ] = None,
    zentorch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of AMD's kernels: `pip install --no-deps -t DIR zentorch==2.13.0.1 deprecated wrapt`.",
        ),
    ] = None,
    as_json: AsJsonLine = False,
) -> None:
    """int8 forms of the embedded model against the model itself, on real CPU engines.

    size_ratio_fp32, size_ratio_bf16: how much smaller its weights are. agreement: share of the prompts whose greedy
    answers equal float32's; whole_output_agreement: the thinking too. kl_mean, kl_max (nats), top1_agreement: of the
    next token's distributions along float32's answers to every fifth prompt. The figures at the top are those of
    post-training quantisation. Needs a CPU that runs int8 experts: Intel's AMX, or AMD's AVX-512 with zentorch.

    Example: moray bench int8 --qat build/tiny_r1_qat/checkpoint --json
    """
    from ops.bench.int8 import measure, table

    figures = measure(
        prompts,
        seed,
        qat.expanduser() if qat else None,
        zentorch.expanduser() if zentorch else None,
        reporter(as_json),
    )
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        Console().print(table(figures))


@app.command()
def detectors(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of six days, each with every fault once.")] = 3,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second, the mean of a usual day.")] = 0.5,
    traces: Traces = None,
    as_json: AsJsonLine = False,
) -> None:
    """What the anomaly detectors find in simulated days with faults, and what they say without a reason.

    Each run has three days to learn from, two with every fault once, and a quiet one; load and latency have a daily
    rhythm, and single errors, restarts, bursts and lost reports are no faults. recall: share of the faults for which
    an alarm of the right name and replica began before the fault's end and 20 minutes. false_alarms_per_day: alarms
    that no fault explains, over the days behind the learning. delay: from a fault's beginning to its alarm.
    Exactly repeatable.

    Example: moray bench detectors --seeds 5 --json
    """
    from ops.bench.detectors import measure, table
    from ops.bench.goodput import checked_traces

    figures = measure(seeds, rate, checked_traces(traces), reporter(as_json))
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        Console().print(table(figures))


app.command()(rollout)
app.command()(gates)
app.command()(gpu)


def _show(title: str, figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    table = Table(title=title, show_header=False)
    for name, value in _flat(figures):
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

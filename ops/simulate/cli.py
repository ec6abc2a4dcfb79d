"""The command `moray simulate`: arguments and output."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import UserError
from ops.options import AsJsonLine

if TYPE_CHECKING:
    from ops.simulate.workloads import Workload

EXAMPLES = (
    "Examples: `moray simulate --trace azure_2023_conv.csv.gz --replicas 16` · "
    "`moray simulate --workload chat --rate 400 --replicas 16 --policy prefix_affinity --json` · "
    "`moray simulate --workload tenants --rate 200 --replicas 8 --slow 1`"
)


def simulate(
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Azure LLM inference trace, CSV or CSV.gz.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Made-up load instead: conv, code, chat or tenants.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=4096, help="Replicas of the 32B tier.")] = 16,
    policy: Annotated[str, typer.Option(help="continuous, or another router's: `--policy list` shows them.")] = (
        "continuous"
    ),
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second, all replicas together. Default: the trace's.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Virtual seconds of made-up load.")] = 120.0,
    machine: Annotated[
        str, typer.Option(help="h200, h200-steps (both fitted to measurements) or a100 (predicted).")
    ] = "h200",
    slow: Annotated[int, typer.Option(min=0, help="Replicas that run at half speed.")] = 0,
    ttft_s: Annotated[float, typer.Option(min=0.001, help="Wanted: seconds to the first token.")] = 1.0,
    tpot_s: Annotated[float, typer.Option(min=0.001, help="Wanted: mean seconds of each further token.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of made-up load and random choices.")] = 0,
    as_json: AsJsonLine = False,
) -> None:
    """Run load through the router's batcher over simulated engines, in virtual time.

    attainment: share of all requests with both TTFT and mean TPOT as wanted; shed and unfinished ones are misses.
    speed_factor: virtual seconds per second. A recorded trace is brought to --rate by compressing its time; behind
    more than 16 replicas it is superposed with copies of itself, rotated in time.
    """
    from cluster.batching import Policy
    from cluster.policies import POLICIES, batcher
    from replicas.step_time import MACHINES

    if policy == "list":
        typer.echo("\n".join(POLICIES))
        return
    _one_of("--policy", policy, POLICIES)
    _one_of("--machine", machine, MACHINES)
    if slow > replicas:
        raise UserError(f"--slow {slow}: there are only {replicas} replicas")
    load = _load(trace, workload, replicas, rate, seconds, seed)

    from ops.simulate.cluster import Cluster
    from ops.simulate.results import Slo, by_tenant, summary

    slo = Slo(ttft_s, tpot_s)
    speeds = [0.5 if i < slow else 1.0 for i in range(replicas)]
    cluster = Cluster(batcher(policy, Policy(tpot_s=tpot_s), seed), MACHINES[machine], speeds, slo)
    began = time.perf_counter()
    told = [began]

    def progress(virtual_s: float) -> None:
        if time.perf_counter() - told[0] > 2.0:
            told[0] = time.perf_counter()
            sys.stderr.write(f"{virtual_s:,.0f} of {load.duration_s:,.0f} virtual seconds\n")

    records = cluster.run(load, progress)
    took_s = time.perf_counter() - began
    figures: dict[str, Any] = {
        "workload": load.name,
        "policy": policy,
        "replicas": replicas,
        "machine": machine,
        "basis": MACHINES[machine].basis,
        "rate": round(load.rate, 3),
        "virtual_s": round(cluster.now, 1),
        "speed_factor": round(cluster.now / took_s, 1),
        **summary(records, slo),
        "preemptions": cluster.preemptions,
        "tenants": by_tenant(records, slo),
    }
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        _show(figures)


def _one_of(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise UserError(f"{option} {value}: there is no such one; take one of {', '.join(known)}")


def _load(
    trace: Path | None, name: str | None, replicas: int, rate: float | None, seconds: float, seed: int
) -> Workload:
    from ops.simulate import traces, workloads

    if (trace is None) == (name is None):
        raise UserError("either --trace FILE or --workload NAME says what load to run")
    if trace is not None:
        return workloads.scaled(traces.read(trace), replicas, rate)
    assert name is not None
    _one_of("--workload", name, workloads.SYNTHETIC)
    if rate is None:
        raise UserError("--workload goes with --rate: made-up load has no rate of its own")
    return workloads.SYNTHETIC[name](rate, seconds, seed)


def _show(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="moray simulate", show_header=False)
    for name, value in figures.items():
        if isinstance(value, dict):
            for part, inner in value.items():
                table.add_row(f"{name}.{part}", str(inner))
        else:
            table.add_row(name, str(value))
    Console().print(table)

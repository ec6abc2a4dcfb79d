"""`moray bench goodput`: how much load each policy carries within the SLO, in simulation.

Per workload and policy, the *capacity*: the highest rate of arrivals at which 90% of all requests have their first
token within 1 s and at most 50 ms for each further one, on average; shed requests are misses. And the attainment at
multiples of round robin's capacity, where clusters are overloaded. Everything is `ops.simulate`: the router's real
batcher, simulated engines on a step time fitted to one H200 (`replicas.step_time`); no figure here is from GPUs.

The recorded traces are brought to a rate by compressing their hour: what were minutes of higher load are seconds then,
with the same share of requests in them. Their stand-ins have no such swings: round robin carries 1.4 times as much of
them, and the gains are smaller.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from cluster.batching import Policy
from cluster.policies import CONTINUOUS, POLICIES, batcher
from ops.errors import UserError
from ops.simulate import traces, workloads
from ops.simulate.cluster import Cluster
from ops.simulate.results import Record, Slo, attainment
from ops.simulate.upper_bound import attainment_bound
from ops.simulate.workloads import Workload
from replicas.step_time import MACHINES

ROUND_ROBIN = "round_robin"
BOUND = "upper_bound"  # stands where a policy does: what no policy can exceed
GOAL = 0.9  # attainment at capacity
OVERLOADS = (1.1, 1.3, 1.6)  # times round robin's capacity
TRACE_FILES = {"conv": "azure_2023_conv.csv.gz", "code": "azure_2023_code.csv.gz"}
SLO = Slo()

INTERACTIVE_SHARE = 0.5  # of round robin's capacity on `tenants`: the interactive tenant's rate beside the flood
FLOOD = 1.5  # times that capacity: the flood's


class Scenario(NamedTuple):
    """A workload on a cluster. Rates and seconds are for sixteen replicas."""

    name: str
    load: str  # a trace, or a made-up workload
    guess: float  # requests a second and replica, where the search for the capacity begins
    window_s: float  # of made-up load that is counted
    warm_up_s: float = 15.0  # running streams last about 10 s near capacity
    slow: int = 0  # replicas at half speed
    note: str = ""


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("conv", "conv", 22.0, 60.0, note="Azure conversations"),
        Scenario("code", "code", 5.0, 120.0, note="Azure code completion, bursts"),
        # 16 s lie between two turns on average: what a turn finds cached must have been computed within the run.
        Scenario("chat", "chat", 18.0, 25.0, 50.0, note="turns that share their beginnings, behind 32 system prompts"),
        Scenario("tenants", "tenants", 12.0, 60.0, note="an interactive tenant and one that sends batches in bursts"),
        Scenario("slow", "conv", 21.0, 60.0, slow=1, note="conv, one replica at half speed"),
    )
}


class Setting(NamedTuple):
    """What all runs of one bench share."""

    replicas: int
    seeds: int
    traces: Path | None  # folder of recordings; None: made-up stand-ins
    precision: float
    machine: str


@cache
def _trace(path: Path) -> Workload:
    return traces.read(path)


@lru_cache(maxsize=8)  # searches begin with the same rates, and overloads are the same for all policies
def _load(scenario: Scenario, setting: Setting, rate: float, seed: int) -> Workload:
    """Load at that rate, all replicas together, with a warm-up."""
    large = setting.replicas > workloads.ROTATE_ABOVE
    window_s = scenario.window_s / 3 if large else scenario.window_s
    if setting.traces is None or scenario.load not in TRACE_FILES:
        made = workloads.SYNTHETIC[scenario.load](rate, window_s + scenario.warm_up_s, seed)
        return made._replace(warm_up_s=scenario.warm_up_s)
    trace = workloads.rotated(_trace(setting.traces / TRACE_FILES[scenario.load]), seed * 0.382 % 1.0)
    load = workloads.scaled(trace, setting.replicas, rate)
    part = workloads.part(load, 0.0, min(window_s, load.duration_s)) if large else load
    return workloads.warmed_up(part, scenario.warm_up_s)


def _speeds(scenario: Scenario, replicas: int) -> list[float]:
    return [0.5] * scenario.slow + [1.0] * (replicas - scenario.slow)


def _run(load: Workload, policy: str, setting: Setting, speeds: Sequence[float], seed: int) -> list[Record]:
    """The counted requests."""
    cluster = Cluster(batcher(policy, Policy(tpot_s=SLO.tpot_s), seed), MACHINES[setting.machine], speeds, SLO)
    return [record for record in cluster.run(load) if record.arrival.at_s >= load.warm_up_s]


def attained(scenario: Scenario, policy: str, setting: Setting, rate: float) -> float:
    """Attainment at that rate, over all seeds."""
    speeds = _speeds(scenario, setting.replicas)
    shares = []
    for seed in range(setting.seeds):
        load = _load(scenario, setting, rate, seed)
        if policy == BOUND:
            shares.append(attainment_bound(load, MACHINES[setting.machine], speeds, SLO))
        else:
            shares.append(attainment(_run(load, policy, setting, speeds, seed), SLO))
    return sum(shares) / len(shares)


def highest_rate(share_at: Callable[[float], float], guess: float, precision: float) -> float:
    """The highest rate at which the goal was seen to be reached, within `precision`; 0 if it never was.

    Takes attainment to fall as the rate rises.
    """
    low, high, rate = 0.0, math.inf, guess
    while low == 0.0 or high == math.inf:
        if share_at(rate) >= GOAL:
            low, rate = rate, rate * 1.25
        else:
            high, rate = rate, rate / 1.25
        if not guess / 1000 < rate < guess * 1000:
            return low
    while high / low > 1.0 + precision:
        rate = math.sqrt(low * high)
        if share_at(rate) >= GOAL:
            low = rate
        else:
            high = rate
    return low


class _Task(NamedTuple):
    """One cell of the results; what a process is given."""

    scenario: str
    policy: str
    setting: Setting
    rate: float = 0.0  # 0: find the capacity
    flood: float | None = None  # the flood's rate beside the interactive tenant's; None: no such run


def _work(task: _Task) -> tuple[_Task, float, float]:
    """(task, result, seconds that it took)."""
    began = time.perf_counter()
    scenario, setting = SCENARIOS[task.scenario], task.setting
    if task.flood is not None:
        result = _interactive(task)
    elif task.rate:
        result = attained(scenario, task.policy, setting, task.rate)
    else:
        guess = scenario.guess * setting.replicas
        result = highest_rate(lambda rate: attained(scenario, task.policy, setting, rate), guess, setting.precision)
    return task, result, time.perf_counter() - began


def _interactive(task: _Task) -> float:
    """The interactive tenant's attainment beside a flood, over all seeds."""
    scenario, setting = SCENARIOS[task.scenario], task.setting
    window_s = scenario.window_s / (3 if setting.replicas > workloads.ROTATE_ABOVE else 1)
    shares = []
    for seed in range(setting.seeds):
        load = workloads.flood(task.rate, task.flood or 0.0, window_s + scenario.warm_up_s, seed)
        records = _run(
            load._replace(warm_up_s=scenario.warm_up_s), task.policy, setting, _speeds(scenario, setting.replicas), seed
        )
        shares.append(attainment([r for r in records if r.arrival.tenant == workloads.INTERACTIVE], SLO))
    return sum(shares) / len(shares)


def _results(tasks: Sequence[_Task], processes: int, report: Callable[[str], None]) -> Iterator[tuple[_Task, float]]:
    """Each task's result as it comes, with a line about it."""

    def said(done: tuple[_Task, float, float]) -> tuple[_Task, float]:
        task, result, took_s = done
        what = f"{task.scenario}, {task.policy}"
        if task.flood is not None:
            line = f"{what}: interactive tenant {'beside a flood' if task.flood else 'alone'}: {result:.3f}"
        elif task.rate:
            line = f"{what}: attainment {result:.3f} at {task.rate:,.1f} req/s"
        else:
            line = f"{what}: capacity {result:,.1f} req/s"
        report(f"{line} ({took_s:.0f} s)")
        return task, result

    if processes == 1:
        yield from map(said, map(_work, tasks))
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from map(said, pool.imap_unordered(_work, tasks))


def _chosen(option: str, given: str | None, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in given.split(",")] if given else list(known)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{option} {unknown[0]}: there is no such one; take some of {', '.join(known)}")
    return names


def checked_traces(given: Path | None) -> Path | None:
    """The folder of recordings that was asked for. UserError: it lacks a file."""
    missing = [name for name in TRACE_FILES.values() if given is not None and not (given / name).is_file()]
    if missing:
        raise UserError(f"--traces {given}: there is no {missing[0]} in it")
    return given


def measure(
    setting: Setting, chosen: str | None, policies: str | None, processes: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """All of it; see `moray bench goodput --help`."""
    scenarios = _chosen("--workloads", chosen, list(SCENARIOS))
    names = _chosen("--policies", policies, POLICIES)
    if ROUND_ROBIN not in names:
        names.insert(0, ROUND_ROBIN)  # all is told in relation to it
    if setting.traces is None:
        report("no recorded traces: made-up stand-ins with their means and medians (--traces DIR names a folder)")
    searches = [_Task(s, p, setting) for s in scenarios for p in (*names, BOUND)]
    capacity: dict[str, dict[str, float]] = {s: {} for s in scenarios}
    for task, rate in _results(searches, processes, report):
        capacity[task.scenario][task.policy] = rate
    overloads = [
        _Task(s, p, setting, capacity[s][ROUND_ROBIN] * times) for s in scenarios for times in OVERLOADS for p in names
    ]
    at: dict[tuple[str, str, float], float] = {}
    for task, share in _results([t for t in overloads if t.rate], processes, report):
        at[task.scenario, task.policy, task.rate] = share
    figures: dict[str, Any] = {
        "replicas": setting.replicas,
        "machine": setting.machine,
        "basis": f"simulated; step times {MACHINES[setting.machine].basis}",
        "traces": "recorded" if setting.traces else "made-up stand-ins",
        "slo": {"ttft_s": SLO.ttft_s, "tpot_s": SLO.tpot_s, "goal": GOAL},
        "seeds": setting.seeds,
        "precision": setting.precision,
        "workloads": {s: _figures(capacity[s], names, s, at) for s in scenarios},
    }
    if "tenants" in scenarios and (base := capacity["tenants"][ROUND_ROBIN]):
        calm, wild = INTERACTIVE_SHARE * base, FLOOD * base
        tasks = [_Task("tenants", p, setting, calm, flood) for p in names for flood in (0.0, wild)]
        isolation: dict[str, Any] = {"interactive_rate": round(calm, 1), "flood_rate": round(wild, 1)}
        for task, share in _results(tasks, processes, report):
            isolation.setdefault(task.policy, {})["flooded" if task.flood else "alone"] = round(share, 4)
        figures["isolation"] = isolation
    return figures


def _figures(
    capacity: dict[str, float], names: Sequence[str], scenario: str, at: dict[tuple[str, str, float], float]
) -> dict[str, Any]:
    """One workload's."""
    base = capacity[ROUND_ROBIN]
    shares = {p: {f"{times:g}": round(at[scenario, p, base * times], 4) for times in OVERLOADS} for p in names if base}
    figures: dict[str, Any] = {
        "what": SCENARIOS[scenario].note,
        "capacity_req_per_s": {p: round(rate, 2) for p, rate in capacity.items()},
        "attainment_at_times_round_robin": shares,
    }
    if CONTINUOUS in names:
        ours = capacity[CONTINUOUS]
        peers = {p: capacity[p] for p in names if p != CONTINUOUS}
        best = max(peers, key=lambda p: peers[p])
        figures["best_peer"] = best
        for name, other in (("round_robin", base), ("best_peer", peers[best]), ("upper_bound", capacity[BOUND])):
            figures[f"vs_{name}"] = round(ours / other, 3) if other else None
        figures["attainment_1_3x"] = shares[CONTINUOUS]["1.3"] if base else None
    return figures

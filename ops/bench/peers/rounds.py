"""`moray bench peers`: the same two engines behind Moray and behind what others put in front of them.

Every side runs two engines with the arguments of our replicas on the embedded model, and gets the same requests at the
same times. One side is measured at a time, in turns that begin with another side each round; the others are stopped
by signal meanwhile, and begin with some load that is not counted. Client, engines and all between share the machine's
CPUs: a side whose own work takes more of them leaves less to its engines, and that is part of what is measured. With
each figure is told what the client took, how late it was, and what took processes that have no part in this.

The rates follow from what Moray's engines carry when there is always more to do, within the limit on TPOT.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import uvloop

from cluster.app import engine_spec
from cluster.config import Settings, load
from cluster.edge import TTFT_HEADER
from cluster.peers import PEERS
from ops.bench.peers import figures
from ops.bench.peers.load import arrival_times, bodies
from ops.bench.peers.sides import Side, SideFailed, haproxy, moray, ray_serve_llm
from ops.bench.sse_load import Load, run_load, run_open_load
from ops.errors import UserError
from ops.session import STATE_VARIABLE, Session
from ops.simulate.results import Slo

OURS = "moray"
FACTORS = (0.8, 1.2, 1.6)  # of what Moray carries: the rates that are offered
SATURATING = 48  # streams at once, by far more than keep two engines busy
DRAIN_S = 60.0  # from the last arrival to the end of the last stream at most
WARM_UP_S = 4.0  # of load: caches of a side that stood still are cold, and what our router knows of its engines is old


class Options(NamedTuple):
    """As on the command line."""

    rounds: int
    seconds: float  # of arrivals, in each round, side and rate
    rate: float | None  # requests a second; None: what Moray carries
    policies: Sequence[str]  # of peers, run in Moray
    slo: Slo
    ray_llm_packages: Path | None


def measure(options: Options, report: Callable[[str], None]) -> dict[str, Any]:
    """The whole comparison; see `moray bench peers --help`."""
    if unknown := [name for name in options.policies if name not in PEERS]:
        raise UserError(f"--policies {unknown[0]}: there is no such one; take some of {', '.join(PEERS)}")
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moray-peers-")))
        os.environ[STATE_VARIABLE] = str(state)  # our sessions are nobody else's
        stack.enter_context(Session("127.0.0.1", 0, None))  # ends all that we start, should we be killed too
        settings = load(None, os.environ, _COMMON).settings
        sides, failed = _started(options, settings, state, stack, report)
        model = settings.model.served_name
        rate = options.rate or _saturated(sides[OURS], model, report)
        runs: dict[str, dict[str, list[figures.Run]]] = {name: {} for name in sides}
        for number in range(options.rounds):
            for side in _turns(list(sides.values()), number):
                _wake(side, model)
                _offer(side, model, rate, WARM_UP_S, seed=-1)
                for factor in FACTORS:
                    run = _run(side, model, factor * rate, options, seed=number)
                    runs[side.name].setdefault(f"{factor:g}x", []).append(run)
                    report(
                        f"round {number + 1}/{options.rounds}, {side.name} at {factor * rate:.1f} req/s: goodput "
                        f"{figures.goodput(run, options.slo):.1f} req/s"
                    )
                side.freeze()
    return _results(runs, failed, rate, options)


_COMMON = {
    "experts.expert_parallel": "1",
    "replicas.count": "2",
    "ray.dashboard": "false",
    "gateway.keys_file": "null",  # whatever the environment says: the load carries no key
}


def _started(
    options: Options, settings: Settings, state: Path, stack: ExitStack, report: Callable[[str], None]
) -> tuple[dict[str, Side], dict[str, str]]:
    """Sides that serve, one loading after the other and stopped by signal; and why others do not, by name."""
    spec = engine_spec(settings)
    limits = {"router.ttft_slo_s": f"{options.slo.ttft_s}", "router.tpot_slo_s": f"{options.slo.tpot_s}"}
    makers: dict[str, Callable[[], Side]] = {OURS: lambda: moray(OURS, state, _COMMON | limits)}
    for policy in options.policies:
        makers[policy] = lambda policy=policy: moray(policy, state, _COMMON | {"router.policy": policy})  # type: ignore[misc]
    makers["haproxy"] = lambda: haproxy(spec, state)
    makers["ray_serve_llm"] = lambda: ray_serve_llm(settings, spec, state, options.ray_llm_packages)
    sides: dict[str, Side] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        began = time.monotonic()
        side = make()
        stack.callback(side.stop)
        try:
            side.wait()
            _wake(side, settings.model.served_name)
        except SideFailed as error:
            if name == OURS:
                raise
            failed[name] = str(error)
            report(f"{name} did not come up: {error}")
            continue
        side.freeze()
        sides[name] = side
        report(f"{name} serves, after {time.monotonic() - began:.0f} s")
    return sides, failed


def _wake(side: Side, model: str) -> None:
    """Has it serve again, and serves it some requests that are not counted. Raises SideFailed."""
    side.thaw()
    side.wait()
    for attempt in range(10):
        load = uvloop.run(run_load(side.url, bodies(model, 24, seed=-1 - attempt), 6))
        if not load.errors:
            return
        time.sleep(1)
    raise SideFailed(f"{side.name} does not answer: {load.errors[0][:300]}")


def _saturated(side: Side, model: str, report: Callable[[str], None]) -> float:
    """Requests a second that it carries when as many as it takes always wait."""
    _wake(side, model)
    rates: list[float] = []
    for seed in (-101, -102):
        count = 8 * SATURATING
        load = uvloop.run(run_load(side.url, bodies(model, count, seed), SATURATING, {TTFT_HEADER: "600000"}))
        if load.errors:
            raise SideFailed(f"{side.name} failed under full load: {load.errors[0][:300]}")
        rates.append(count / load.seconds)
    side.freeze()
    rate = statistics.mean(rates)
    report(f"{side.name} carries {rate:.1f} req/s")
    return rate


def _run(side: Side, model: str, rate: float, options: Options, seed: int) -> figures.Run:
    before = _cpu_seconds(side)
    load = _offer(side, model, rate, options.seconds, seed)
    client, ours, machine = (b - a for a, b in zip(before, _cpu_seconds(side), strict=True))
    other = max(machine - ours - client, 0.0)
    return figures.Run(load, options.seconds, client / load.seconds, other / load.seconds)


def _offer(side: Side, model: str, rate: float, seconds: float, seed: int) -> Load:
    count = round(rate * seconds)
    arrivals = list(zip(arrival_times(count, seconds, seed), bodies(model, count, seed), strict=True))
    load: Load = uvloop.run(run_open_load(side.url, arrivals, seconds + DRAIN_S))
    return load


def _cpu_seconds(side: Side) -> tuple[float, float, float]:
    """Of this process, of the side's, of all on this machine."""
    times = psutil.cpu_times()
    return time.process_time(), side.cpu_s(), sum(times) - times.idle - times.iowait


def _turns(sides: Sequence[Side], number: int) -> Iterator[Side]:
    """All of them, each round beginning with another."""
    at = number % len(sides)
    yield from [*sides[at:], *sides[:at]]


def _results(
    runs: dict[str, dict[str, list[figures.Run]]], failed: dict[str, str], rate: float, options: Options
) -> dict[str, Any]:
    slo = options.slo
    found: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "slo": {"ttft_ms": round(1e3 * slo.ttft_s, 3), "tpot_ms": round(1e3 * slo.tpot_s, 3)},
        "rate_req_per_s": {f"{factor:g}x": round(factor * rate, 2) for factor in FACTORS},
    }
    found |= {name: figures.of_side(of_side, slo) for name, of_side in runs.items()}
    found |= {name: {"error": error} for name, error in failed.items()}
    found |= {f"vs_{name}": figures.ratios(runs[OURS], runs[name], slo) for name in runs if name != OURS}
    return found

"""`moray bench telemetry`: what metrics and traces cost the front end.

Sessions that differ in nothing else stand side by side and take the same load in turns, so that a noisy machine is
noisy to all. While one is loaded the others idle. A side that has metrics is scraped once in each run; a side that has
traces sends them to a collector on this machine, which reads and forgets them.
"""

import asyncio
import contextlib
import multiprocessing
import os
import socket
import statistics
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import httpx
import uvloop

from cluster.config import load
from ops.bench.direct_engine import BenchFailed
from ops.bench.frontend import HopCpu, bodies_of
from ops.bench.sse_load import Load, run_load
from ops.own_session import OwnSession, own_session

CONCURRENCY = 32
COLLECTOR = "COLLECTOR"  # stands in a side's settings where the collector's URL goes

OFF = "off"
SIDES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        OFF: {"metrics.enabled": "false", "metrics.vllm": "false"},
        "metrics": {"metrics.vllm": "false"},
        "vllm": {},  # the defaults: Moray's metrics and vLLM's
        "all": {"metrics.otlp_endpoint": COLLECTOR},
    }
)


def measure(rounds: int, requests: int, output_tokens: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Runs the comparison; returns its figures (see `moray bench telemetry --help`)."""
    common = {
        "experts.expert_parallel": "1",
        "ray.dashboard": "false",
        "gateway.keys_file": "null",  # whatever the environment says: the load carries no key
    }
    model = load(None, os.environ, common).settings.model.served_name
    bodies = bodies_of(model, requests, output_tokens)
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(_collector())
        sessions: dict[str, _Side] = {}
        for name, settings in SIDES.items():
            report(f"starting the session {name!r}")
            chosen = {key: collector if value == COLLECTOR else value for key, value in settings.items()}
            sessions[name] = _Side(stack.enter_context(own_session(common | chosen)))
        runs: dict[str, list[_Run]] = {name: [] for name in SIDES}
        for number in range(-1, rounds):  # the first one warms up all
            names = list(SIDES)
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:  # each is first, second and so on as often
                run = sessions[name].run(bodies)
                if number >= 0:
                    runs[name].append(run)
            if number >= 0:
                told = ", ".join(f"{name} {made[-1].tok_s:,.0f}" for name, made in runs.items())
                report(f"round {number + 1}/{rounds}: tok/s {told}")
    return {"rounds": rounds, "output_tokens": output_tokens, "cpus": os.cpu_count()} | figures(runs)


class _Run:
    """What one side did in one run."""

    def __init__(self, load: Load, hops: Mapping[str, float]) -> None:
        """`hops`: CPU seconds of each, as `HopCpu` names them."""
        self.tok_s = load.tokens / load.seconds
        self.gateway_us = 1e6 * hops["gateway"] / load.tokens
        self.cpu_us = 1e6 * sum(hops.values()) / load.tokens


class _Side:
    def __init__(self, session: OwnSession) -> None:
        self._url = session.url
        self._cpu = HopCpu(session.url)
        groups = httpx.get(f"{session.url}/moray/targets", timeout=30, trust_env=False).raise_for_status().json()
        self._targets = [target for group in groups for target in group["targets"]]

    def run(self, bodies: list[dict[str, Any]]) -> _Run:
        before = self._cpu.read()
        done = uvloop.run(self._loaded(bodies))
        if done.errors:
            raise BenchFailed(f"a request failed: {done.errors[:1]}")
        after = self._cpu.read()
        return _Run(done, {hop: after[hop] - before[hop] for hop in after})

    async def _loaded(self, bodies: list[dict[str, Any]]) -> Load:
        async def scrape() -> None:
            async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
                for target in self._targets:
                    (await client.get(f"http://{target}/metrics")).raise_for_status()

        scraping = asyncio.create_task(scrape())
        done = await run_load(self._url, bodies, CONCURRENCY)
        await scraping
        return done


def figures(runs: Mapping[str, list["_Run"]]) -> dict[str, Any]:
    """Each side against `off`: the ratio is taken within a round, its spread is the rounds' middle half."""
    out: dict[str, Any] = {}
    for name, made in runs.items():
        out[f"tok_s_{name}"] = round(statistics.median(run.tok_s for run in made))
        out[f"gateway_us_per_token_{name}"] = round(statistics.median(run.gateway_us for run in made), 1)
        out[f"cpu_us_per_token_{name}"] = round(statistics.median(run.cpu_us for run in made), 1)
        if name == OFF:
            continue
        for what, of in (("throughput", attrgetter("tok_s")), ("cpu", attrgetter("cpu_us"))):
            ratios = [of(run) / of(off) for run, off in zip(made, runs[OFF], strict=True)]
            quarters = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
            out[f"{what}_ratio_{name}"] = round(statistics.median(ratios), 4)
            out[f"{what}_ratio_{name}_spread"] = [round(quarters[0], 4), round(quarters[2], 4)]
    return out


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """The URL of an OTLP receiver in a process of its own that answers 200 to whatever comes."""
    listening = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=_receive, args=(listening,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces"
    finally:
        process.kill()
        process.join()
        listening.close()


def _receive(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as said:
            while head := _head(said):
                said.read(head)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


def _head(said: Any) -> int:
    """Reads a request's head; returns its body's length, 0 at the end."""
    length = 0
    while (line := said.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return length

"""`moray bench frontend`: what everything around the engine costs.

The same unsharded engine core, once driven directly in one process, once through HTTP, proxy, gateway, router and Ray;
both stand side by side, and rounds alternate between them, so that a noisy machine is noisy to both.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import uvloop

from cluster.app import engine_spec
from cluster.config import load
from ops.bench.direct_engine import BenchFailed, DirectEngine, Result, Round
from ops.bench.sse_load import Load, run_load
from ops.own_session import own_session

CONCURRENCIES = (1, 32, 128)


def measure(rounds: int, output_tokens: int, stream_interval: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Runs the whole comparison; returns its figures (see `moray bench frontend --help`)."""
    overrides = {
        "experts.expert_parallel": "1",
        "gateway.stream_interval": str(stream_interval),
        "ray.dashboard": "false",
        "gateway.keys_file": "null",  # whatever the environment says: the load carries no key
    }
    settings = load(None, os.environ, overrides).settings
    report("starting the session and, beside it, the engine alone")
    spec = msgspec.json.encode(engine_spec(settings)).decode()
    with own_session(overrides) as session, DirectEngine(spec) as direct:
        url = session.url
        bodies = {c: bodies_of(settings.model.served_name, max(16, 4 * c), output_tokens) for c in CONCURRENCIES}
        prompts = {c: _token_ids(url, bodies[c]) for c in CONCURRENCIES}
        cpu = HopCpu(url)
        through: dict[int, list[Load]] = {c: [] for c in CONCURRENCIES}
        alone: dict[int, list[Result]] = {c: [] for c in CONCURRENCIES}
        hops: list[dict[str, float]] = []
        for number in range(-1, rounds):  # the first one warms up both
            for c in CONCURRENCIES:
                raw = direct.run(Round(prompts[c], [body["max_tokens"] for body in bodies[c]], c))
                before = cpu.read()
                run = uvloop.run(run_load(url, bodies[c], c))
                after = cpu.read()
                if run.errors or run.tokens != raw.tokens:
                    raise BenchFailed(f"{run.tokens} of {raw.tokens} tokens came; first error: {run.errors[:1]}")
                if number < 0:
                    continue
                through[c].append(run)
                alone[c].append(raw)
                if c == 32:
                    hops.append({hop: 1e6 * (after[hop] - before[hop]) / run.tokens for hop in after})
                report(
                    f"round {number + 1}/{rounds}, concurrency {c}: "
                    f"{run.tokens / run.seconds:,.0f} of {raw.tokens / raw.seconds:,.0f} tok/s"
                )
        return {"stream_interval": stream_interval} | _figures(through, alone, hops, output_tokens)


def _figures(
    through: dict[int, list[Load]], alone: dict[int, list[Result]], hops: list[dict[str, float]], output_tokens: int
) -> dict[str, Any]:
    """Medians over rounds; a ratio is taken within a round, its spread is (least, greatest)."""
    out: dict[str, Any] = {"rounds": len(hops), "output_tokens": output_tokens, "cpus": os.cpu_count()}
    for c in CONCURRENCIES:
        ratios = [(t.tokens / t.seconds) / (a.tokens / a.seconds) for t, a in zip(through[c], alone[c], strict=True)]
        out[f"throughput_ratio_{c}"] = round(statistics.median(ratios), 3)
        out[f"throughput_ratio_{c}_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
        out[f"tok_s_{c}"] = round(statistics.median(t.tokens / t.seconds for t in through[c]))
        out[f"direct_tok_s_{c}"] = round(statistics.median(a.tokens / a.seconds for a in alone[c]))
        ttft = [s.ttft for t in through[c] for s in t.streams]
        out[f"ttft_p50_ms_{c}"] = round(1e3 * statistics.median(ttft), 1)
    added = [
        1e3 * (statistics.median(s.ttft for s in t.streams) - statistics.median(a.ttft_s))
        for t, a in zip(through[1], alone[1], strict=True)
    ]
    out["added_ttft_p50_ms_1"] = round(statistics.median(added), 1)
    out["added_ttft_p50_ms_1_spread"] = [round(min(added), 1), round(max(added), 1)]
    out["direct_ttft_p50_ms_1"] = round(1e3 * statistics.median(x for a in alone[1] for x in a.ttft_s), 1)
    out["cpu_us_per_token_32"] = {hop: round(statistics.median(h[hop] for h in hops), 1) for hop in hops[0]}
    out["direct_engine_cpu_us_per_token_32"] = round(statistics.median(1e6 * a.cpu_s / a.tokens for a in alone[32]), 1)
    return out


def bodies_of(model: str, count: int, output_tokens: int) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": f"What is {100 + 7 * i % 800}+{100 + 3 * i % 900}?"}],
            # From half to one and a half: streams of one length would begin and end in waves.
            "max_tokens": output_tokens // 2 + i * 37 % (output_tokens + 1),
            "ignore_eos": True,
            "temperature": 0,
        }
        for i in range(count)
    ]


def _token_ids(url: str, bodies: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The very prompts that the gateway will make of these bodies."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        return [
            client.post("/tokenize", json={"model": b["model"], "messages": b["messages"]})
            .raise_for_status()
            .json()["tokens"]
            for b in bodies
        ]


class HopCpu:
    """CPU seconds of each hop since it started, of all its processes, read from /proc."""

    def __init__(self, url: str) -> None:
        status = httpx.get(f"{url}/moray/status", timeout=30, trust_env=False).raise_for_status().json()
        self._gateways = _alike(psutil.Process(status["gateway"]["pid"]))
        self._router = psutil.Process(status["router"]["pid"])
        self._replica = psutil.Process(status["replicas"][0]["engine"]["pid"])
        self._session = self._gateways[0].environ().get("MORAY_SESSION", "")

    def read(self) -> dict[str, float]:
        engine = _thread_seconds(self._replica.pid, "engine")
        return {
            "client": time.process_time(),
            "proxy": sum(_seconds(p) for p in self._proxies()),
            "gateway": sum(_seconds(gateway) for gateway in self._gateways),
            "router": _seconds(self._router),
            "replica_shell": _seconds(self._replica) - engine,
            "engine": engine,
        }

    def _proxies(self) -> list[psutil.Process]:
        return [
            p
            for p in psutil.process_iter(["name"])
            if p.info["name"] == "haproxy" and _environment(p).get("MORAY_SESSION") == self._session
        ]


def _alike(process: psutil.Process) -> list[psutil.Process]:
    """It, and those that the same parent has started for the same: Ray gives them one title."""
    raylet, title = process.parent(), process.cmdline()[:1]
    return [process] if raylet is None else [p for p in raylet.children() if p.cmdline()[:1] == title]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _thread_seconds(pid: int, name: str) -> float:
    """CPU seconds of the process's threads of this name."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        stat = (task / "stat").read_text()
        if stat[stat.index("(") + 1 : stat.rindex(")")] == name:
            fields = stat[stat.rindex(")") + 2 :].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total

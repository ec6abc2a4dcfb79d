"""The three sides, each started, warmed and measured by the same workloads: the raw engine, vLLM's server, Moray.

A side has the GPU to itself, for one engine of the 32B tier fills it: they come one after the other, in one run.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from ops.bench.direct_engine import BenchFailed
from ops.bench.frontend import HopCpu
from ops.bench.gpu.engines import Engine
from ops.bench.gpu.http_load import HttpLoad
from ops.bench.gpu.raw_engine import Ask, RawEngine, Took
from ops.bench.gpu.record import Notes
from ops.bench.gpu.scale import MODEL, Scale
from ops.bench.gpu.stock_server import StockServer
from ops.bench.gpu.watching import Watch, wait_until_free
from ops.bench.gpu.workload import Prompts, Workload
from ops.own_session import free_port, own_session
from replicas.gpus import Gpus

_FREE_LIMIT_S = 40.0
_LOG_END = 1 << 20  # bytes
_LOADED = re.compile(r"Engine core ready after ([0-9.]+) s")  # replicas/replica.py


class Bench:
    """What all sides of a run share."""

    def __init__(self, notes: Notes, scale: Scale, engine: Engine) -> None:
        self.notes, self.scale, self.engine = notes, scale, engine
        self.prompts = Prompts(engine.directory, MODEL)
        self.gpus = Gpus(scale.name == "full")
        self.main = (scale.work(512, 512, 128), scale.work(1024, 256, 128))  # what the ratios are of
        self.latency = scale.work(24, 512, 16, 1)

    def ask(self, work: Workload, seed: int, together: int = 0, output: int | None = None) -> Ask:
        """The workload for a raw engine."""
        return Ask(self.prompts.token_ids(work, seed), [output or work.output] * work.requests, together)

    def raw_engine(self) -> RawEngine:
        return RawEngine(self.engine.llm(), self.notes.log("raw"), self.scale.start_timeout_s)

    def wait_until_free(self) -> None:
        if not wait_until_free(self.gpus, _FREE_LIMIT_S):
            self.notes.add(what="note", text="the GPU's memory was still in use when the next engine started")


Measured = Callable[[Workload, int], Mapping[str, Any]]  # (workload, seed) -> figures


def rounds(bench: Bench, side: str, measure: Measured, ends: float, most: int) -> None:
    """Both main workloads in `most` turns: the first one always, others while they fit before `ends` (monotonic)."""
    longest = 0.0
    for turn in range(most):
        began = time.monotonic()
        if turn and began + longest > ends:
            bench.notes.add(what="note", text=f"{side}: no time for turn {turn + 1} of {most}")
            return
        for work in bench.main:
            bench.notes.add(what="run", side=side, workload=work.name, turn=turn, **measure(work, 100 + turn))
        longest = max(longest, time.monotonic() - began)


# -- the raw engine ---------------------------------------------------------------------------------------------------


def measure_raw(bench: Bench, raw: RawEngine) -> Measured:
    def measure(work: Workload, seed: int) -> Mapping[str, Any]:
        with Watch(bench.gpus) as watch:
            took = raw.run(bench.ask(work, seed))
        return told(took, work) | watch.seen

    return measure


def told(took: Took, work: Workload) -> dict[str, Any]:
    """BenchFailed if not every token came."""
    if took.tokens != work.requests * work.output:
        raise BenchFailed(f"the raw engine made {took.tokens:,} tokens of {work.requests * work.output:,}")
    return {
        "seconds": round(took.seconds, 3),
        "requests": work.requests,
        "tokens": took.tokens,
        "req_s": round(work.requests / took.seconds, 2),
        "tok_s": round(took.tokens / took.seconds, 1),
    }


def warm_raw(bench: Bench, raw: RawEngine) -> None:
    for work in bench.main:
        raw.run(bench.ask(work, 1, output=8))


def raw_latency(bench: Bench, raw: RawEngine, side: str = "raw") -> None:
    """The first token alone is the whole answer here: `LLM` does not stream."""
    took = raw.run(bench.ask(bench.latency, 2, together=1, output=1))
    each = sorted(took.batches_s[len(took.batches_s) // 4 :])  # the first ones warm it
    p50 = round(1e3 * each[len(each) // 2], 2)
    bench.notes.add(what="latency", side=side, workload=bench.latency.name, ttft_p50_ms=p50, ttft_min_ms=1e3 * each[0])


def raw_side(bench: Bench, ends: float, turns: int, further: Sequence[Callable[[Bench, RawEngine], None]] = ()) -> None:
    """`further` is measured on the same engine afterwards."""
    bench.wait_until_free()
    with bench.raw_engine() as raw:
        bench.notes.add(what="start", side="raw", load_s=round(raw.load_s, 1))
        warm_raw(bench, raw)
        raw_latency(bench, raw)
        rounds(bench, "raw", measure_raw(bench, raw), ends, turns)
        bench.notes.measure(further, bench, raw, ends=ends)


# -- through HTTP -----------------------------------------------------------------------------------------------------


def measure_http(bench: Bench, url: str, cpu: Callable[[], Mapping[str, float]] | None = None) -> Measured:
    load = HttpLoad(bench.scale.load_processes)

    def measure(work: Workload, seed: int) -> Mapping[str, Any]:
        bodies = bench.prompts.bodies(work, seed)
        with Watch(bench.gpus, cpu) as watch:
            run = load.run(url, bodies, work.concurrency)
        return run.summary() | watch.seen

    return measure


def http_side(bench: Bench, side: str, url: str, ends: float, turns: int, cpu: Any = None) -> None:
    check_prompts(bench, url)
    measure = measure_http(bench, url, cpu)
    for work in bench.main:
        measure(work._replace(output=8), 1)
    measure(bench.latency._replace(requests=max(1, bench.latency.requests // 4)), 2)
    bench.notes.add(what="latency", side=side, workload=bench.latency.name, **measure(bench.latency, 3))
    rounds(bench, side, measure, ends, turns)


def check_prompts(bench: Bench, url: str) -> None:
    """That the server makes of a body the very prompt that the raw engine is given. BenchFailed if not."""
    work = bench.main[0]._replace(requests=1)
    body = bench.prompts.bodies(work, 0)[0]
    asked = {"model": body["model"], "messages": body["messages"], "add_generation_prompt": True}
    answer = httpx.post(f"{url}/tokenize", json=asked, timeout=60, trust_env=False)
    if answer.status_code != 200 or answer.json()["tokens"] != bench.prompts.token_ids(work, 0)[0]:
        raise BenchFailed(f"the server makes another prompt of the text: {answer.status_code} {answer.text[:200]}")


def stock_side(bench: Bench, ends: float, turns: int) -> None:
    bench.wait_until_free()
    port = free_port()
    log = bench.notes.log("vllm-serve")
    with StockServer(bench.engine.flags(port), port, log, bench.scale.start_timeout_s) as server:
        bench.notes.add(what="start", side="vllm_serve", load_s=round(server.load_s, 1))
        http_side(bench, "vllm_serve", server.url, ends, turns)


def moray_side(
    bench: Bench, ends: float, turns: int, further: Sequence[Callable[[Bench, str, str], None]] = ()
) -> None:
    """`further` is measured on the same session afterwards: it is given this side's name and its URL."""
    bench.wait_until_free()
    side, settings = "moray", {"replicas.start_timeout_s": str(bench.scale.start_timeout_s)}
    began = time.time()
    try:
        with own_session(bench.engine.settings(settings)) as session:
            status = httpx.get(f"{session.url}/moray/status", timeout=30, trust_env=False).raise_for_status().json()
            bench.notes.add(
                what="start",
                side=side,
                session_s=round(time.time() - began, 1),
                capacity=status["replicas"][0]["capacity"],
            )
            http_side(bench, side, session.url, ends, turns, HopCpu(session.url).read)
            bench.notes.measure(further, bench, side, session.url, ends=ends)
    finally:
        bench.notes.add(what="loaded", side=side, load_s=_core_load_s(began))  # Serve's logs are written late
        with suppress(OSError):
            _keep_ray_logs(bench.notes.log(f"{side}-ray").with_suffix(""), began)


def _ray_logs(since: float) -> Iterator[Path]:
    """Of Ray's sessions, those that were written to `since` (Unix time)."""
    for log in Path(tempfile.gettempdir(), "ray").glob("session_2*/logs/**/*"):
        if log.is_file() and log.stat().st_mtime >= since and log.stat().st_size:
            yield log


def _core_load_s(since: float) -> float | None:
    """What the replica says that its core took to load. None: it has not said it where we look."""
    for log in _ray_logs(since):
        if log.name.startswith("replica_") and (said := _LOADED.search(log.read_text(errors="replace"))):
            return float(said[1])
    return None


def _keep_ray_logs(into: Path, since: float) -> None:
    """Of long ones the end."""
    into.mkdir(parents=True, exist_ok=True)
    for log in _ray_logs(since):
        with log.open("rb") as said, (into / log.name).open("wb") as copy:
            said.seek(max(0, log.stat().st_size - _LOG_END))
            shutil.copyfileobj(said, copy)

"""A load generator in several processes, so that it is not what a fast server waits for.

`python -m ops.bench.gpu.http_load` is one of them: it reads a `Share` from its input, says that it is ready, begins
when it is told to, and answers with a `Part`. `HttpLoad` runs all of them and puts their parts together.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop

from ops.bench.direct_engine import BenchFailed
from ops.bench.sse_load import Load, run_load

LIMIT_S = 180.0  # of one run; what has not ended by then does not end


class Share(msgspec.Struct, frozen=True):
    """What one process sends, `concurrency` at a time."""

    url: str
    bodies: list[dict[str, Any]]
    concurrency: int


class Part(msgspec.Struct, frozen=True):
    """What one process measured: of each request started, first token, ended (one monotonic clock), tokens."""

    streams: list[tuple[float, float, float, int]]
    errors: list[str]
    cpu_share: float  # of one CPU that this process kept busy meanwhile


class Run(msgspec.Struct, frozen=True):
    """One workload through HTTP."""

    seconds: float  # from the first request's sending to the last one's end
    requests: int
    tokens: int
    ttft_s: list[float]
    tpot_s: list[float]
    errors: list[str]
    client_cpu_share: float  # of the busiest process: at 1.0 it would be what the server waits for

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def summary(self) -> dict[str, Any]:
        """What is written down of it."""
        told: dict[str, Any] = {
            "seconds": round(self.seconds, 3),
            "requests": self.requests,
            "tokens": self.tokens,
            "req_s": round(self.requests_per_s, 2),
            "tok_s": round(self.tokens_per_s, 1),
            "client_cpu_share": round(self.client_cpu_share, 3),
            "errors": len(self.errors),
        }
        for name, values in (("ttft", self.ttft_s), ("tpot", self.tpot_s)):
            if values:
                told[f"{name}_p50_ms"] = round(1e3 * statistics.median(values), 2)
                told[f"{name}_p95_ms"] = round(1e3 * sorted(values)[int(0.95 * (len(values) - 1))], 2)
        return told | ({"first_error": self.errors[0][:500]} if self.errors else {})


class HttpLoad:
    """`processes` of them, started anew for each run: what one run leaves behind is no burden on the next."""

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def run(self, url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> Run:
        """Sends every body, `concurrency` at a time. BenchFailed: no end after LIMIT_S, or a process of ours broke."""
        count = min(self._processes, concurrency)
        shares = [
            Share(url, list(bodies[i::count]), concurrency // count + (i < concurrency % count)) for i in range(count)
        ]
        command = [sys.executable, "-m", "ops.bench.gpu.http_load"]
        running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in shares]
        limit = threading.Timer(LIMIT_S, _kill, (running,))
        limit.start()
        try:
            for process, share in zip(running, shares, strict=True):
                _say(process, msgspec.json.encode(share))
            for process in running:
                _hear(process)
            begun = time.monotonic()
            for process in running:
                _say(process, b"go")
            parts = [msgspec.json.decode(_hear(process), type=Part) for process in running]
        finally:
            limit.cancel()
            _kill(running)
            for process in running:
                process.communicate()
        return put_together(parts, begun)


def put_together(parts: Sequence[Part], begun: float) -> Run:
    """One run of what its processes measured; `begun` stands in where no request was sent."""
    streams = [stream for part in parts for stream in part.streams]
    first = min((started for started, *_ in streams), default=begun)
    last = max((ended for _, _, ended, _ in streams), default=begun)
    return Run(
        seconds=max(last - first, 1e-9),
        requests=len(streams),
        tokens=sum(tokens for *_, tokens in streams),
        ttft_s=[first_token - started for started, first_token, _, _ in streams],
        tpot_s=[(ended - first_token) / (tokens - 1) for _, first_token, ended, tokens in streams if tokens > 1],
        errors=[error for part in parts for error in part.errors],
        client_cpu_share=max((part.cpu_share for part in parts), default=0.0),
    )


def part_of(load: Load, cpu_s: float) -> Part:
    """A failed request counts as an error only: what it measured until then is no figure."""
    done = [s for s in load.streams if not s.error]
    return Part([(s.started, s.first_token, s.ended, s.tokens) for s in done], load.errors, cpu_s / load.seconds)


def _kill(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.kill()


def _say(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line + b"\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise BenchFailed("the load generator ended before its requests: they took too long, or its error is above")
    return line


def main() -> None:
    share = msgspec.json.decode(sys.stdin.buffer.readline(), type=Share)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.readline()
    cpu = time.process_time()
    load = uvloop.run(run_load(share.url, share.bodies, share.concurrency))
    part = part_of(load, time.process_time() - cpu)
    sys.stdout.write(msgspec.json.encode(part).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

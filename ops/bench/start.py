"""`moray bench start`: how long a session takes to start, and what of it each stage takes.

Sessions start and end one after the other, as `moray up --detach` and `moray down` do it. The first of them fills what
is kept between starts (compiled kernels, memory plans, Python's bytecode, the kernel's page cache), so it is told
apart.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ops.bench.direct_engine import BenchFailed
from ops.own_session import own_session
from ops.session import STATE_VARIABLE

_STAGE = re.compile(r"^\[ *([0-9.]+) s\] ([a-z ]+)")  # as ops/progress.py writes it
_ENDED = "done"


class Start(NamedTuple):
    """Seconds: from the command to a session that is ready, of each stage, of the first answer then, and of its end."""

    ready_s: float
    stages_s: Mapping[str, float]
    answer_s: float
    down_s: float


def measure(starts: int, settings: Mapping[str, str], report: Callable[[str], None]) -> dict[str, Any]:
    """`settings` by their dotted names. Raises NotStarted."""
    done: list[Start] = []
    for number in range(starts):
        done.append(start := one(settings))
        report(f"start {number + 1}: ready after {start.ready_s:.1f} s, {start.stages_s}")
    return figures(done)


def one(settings: Mapping[str, str]) -> Start:
    began = time.monotonic()
    with own_session(settings) as session:
        ready = time.monotonic()
        log = Path(session.env[STATE_VARIABLE], "up.log").read_text(errors="replace")
        model = httpx.get(f"{session.url}/v1/models", trust_env=False).raise_for_status().json()["data"][0]["id"]
        body = {"model": model, "prompt": "1+1", "max_tokens": 1}
        httpx.post(f"{session.url}/v1/completions", json=body, timeout=120, trust_env=False).raise_for_status()
        answered = time.monotonic()
    return Start(ready - began, stages(log), answered - ready, time.monotonic() - answered)


def stages(log: str) -> dict[str, float]:
    """Seconds of each stage that the log tells of, in order. BenchFailed: it does not tell of the end."""
    begins: dict[str, float] = {}
    for line in log.splitlines():
        if told := _STAGE.match(line):
            begins.setdefault(told[2], float(told[1]))
    if _ENDED not in begins:
        raise BenchFailed(f"the session's log does not tell of its start's stages:\n{log[-2000:]}")
    return {name: round(begins[after] - begins[name], 1) for name, after in pairwise(begins)}


def figures(done: list[Start]) -> dict[str, Any]:
    """Medians and ranges. Of several starts, the first is told by itself; `command` is what comes before all stages."""
    later = done[1:] or done
    ready = [start.ready_s for start in later]
    parts = [{"command": start.ready_s - sum(start.stages_s.values())} | dict(start.stages_s) for start in later]
    return {
        "first_ready_s": round(done[0].ready_s, 1),
        "ready_s": round(statistics.median(ready), 1),
        "ready_s_range": [round(min(ready), 1), round(max(ready), 1)],
        "stages_s": {name: round(statistics.median(part.get(name, 0.0) for part in parts), 1) for name in parts[0]},
        "first_answer_ms": round(1e3 * statistics.median(start.answer_s for start in later)),
        "down_s": round(statistics.median(start.down_s for start in later), 1),
        "starts": len(done),
    }

"""Faults on the real stack whose observations are kept in tests/ops/anomaly/recorded, and how they are recorded.

`python tests/ops/recorded_faults.py [NAME…]` records them anew (2 CPUs: 15 minutes); run it in the repository.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx

from ops.own_session import OwnSession, own_session

RECORDED = Path(__file__).parent / "anomaly" / "recorded"


class Fault(NamedTuple):
    settings: dict[str, str]
    raised: frozenset[str]  # alarms that it has to raise
    resolved: frozenset[str]  # those that end within the recording
    happen: Callable[[OwnSession], None]


def drill(*arguments: str) -> Callable[[OwnSession], None]:
    def happen(session: OwnSession) -> None:
        done = session.moray("drill", *arguments, "--yes", "--port", str(session.port), limit_s=400)
        sys.stderr.write(done.stdout[-2500:] + done.stderr[-500:])

    return happen


def thrice(session: OwnSession) -> None:
    for _ in range(3):
        drill("kill-replica", "--linger", "1")(session)


def overload(session: OwnSession, clients: int = 60, seconds: float = 320.0, calm_s: float = 40.0) -> None:
    """Far more clients than the batch holds, then one at a time."""

    async def ask(client: httpx.AsyncClient, until: float, i: int) -> None:
        while time.monotonic() < until:
            body = {
                "model": "tiny-r1",
                "prompt": f"What is {100 + i}+{200 + i}?",
                "max_tokens": 120,
                "ignore_eos": True,
            }
            await client.post("/v1/completions", json=body)

    async def all_of_it() -> None:
        async with httpx.AsyncClient(
            base_url=session.url, timeout=None, limits=httpx.Limits(max_connections=None)
        ) as client:
            until = time.monotonic() + seconds
            await asyncio.gather(*(ask(client, until, i) for i in range(clients)))
            await ask(client, time.monotonic() + calm_s, 0)

    asyncio.run(all_of_it())


TWO = {"replicas.count": "2", "experts.expert_parallel": "1"}
ONE = {"replicas.count": "1", "experts.expert_parallel": "1"}
FAULTS = {
    "frozen": Fault(
        TWO | {"replicas.hang_timeout_s": "9"},
        frozenset({"up-but-not-serving"}),
        frozenset({"up-but-not-serving"}),
        drill("freeze-replica", "--linger", "30"),
    ),
    "slow": Fault(
        TWO | {"alarms.tpot_s": "0.0075", "alarms.restarts_per_hour": "0"},  # its streams take 7 to 19 ms
        frozenset({"replica-latency"}),
        frozenset({"replica-latency"}),
        drill("slow-replica", "--for", "40", "--share", "0.9", "--linger", "75"),
    ),
    "flapping": Fault(TWO, frozenset({"replica-flapping"}), frozenset(), thrice),
    "none_left": Fault(
        ONE | {"router.no_replica_wait_s": "6", "alarms.no_grant_s": "3"},
        frozenset({"stuck-queue", "error-burst"}),
        frozenset({"stuck-queue"}),
        drill("kill-replica", "--even-the-last", "--linger", "20"),
    ),
    "overload": Fault(
        ONE | {"alarms.ttft_s": "0.2", "engine.max_num_seqs": "8"},
        frozenset({"model-latency", "slo-burn-fast"}),
        frozenset({"model-latency"}),
        overload,
    ),
}


def record(name: str) -> None:
    fault = FAULTS[name]
    with tempfile.TemporaryDirectory() as folder:
        with own_session(fault.settings | {"ray.dashboard": "false", "alarms.record_path": folder}) as session:
            time.sleep(5.0)
            fault.happen(session)
        lines = (Path(folder) / "tiny-r1.jsonl").read_bytes()
    RECORDED.mkdir(exist_ok=True)
    with (
        (RECORDED / f"{name}.jsonl.gz").open("wb") as out,
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed,
    ):
        packed.write(lines)
    sys.stderr.write(f"{name}: {len(lines):,} bytes\n")


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    for chosen in sys.argv[1:] or FAULTS:
        record(chosen)

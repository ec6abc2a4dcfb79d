"""Faults on the real stack whose observations are kept in tests/ops/anomaly/recorded, and how they are recorded.

`python tests/ops/recorded_faults.py [NAME…]` records them anew (2 CPUs: an hour); run it in the repository.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ops.anomaly.baseline import HOUR_S, WINDOW_S
from ops.anomaly.replicas import IMBALANCE
from ops.drill.strikes import Brake, Hold
from ops.own_session import OwnSession, own_session
from ops.processes import Process
from ops.victims import engine_here, router_here

RECORDED = Path(__file__).parent / "anomaly" / "recorded"


class Fault(NamedTuple):
    settings: dict[str, str]
    raised: frozenset[str]  # all that it has to raise, and nothing else
    resolved: frozenset[str]  # all that end within the recording
    happen: Callable[[OwnSession, Path], None]  # the folder is for files of its own
    # What takes days was recorded in minutes: a replay takes the recording's time times this, and the detectors as they
    # are. Latencies and counts are what the stack gave.
    stretch: float = 1.0


def drill(*arguments: str) -> Callable[[OwnSession, Path], None]:
    def happen(session: OwnSession, folder: Path) -> None:
        done = session.moray("drill", *arguments, "--yes", "--port", str(session.port), limit_s=400)
        sys.stderr.write(done.stdout[-2500:] + done.stderr[-500:])

    return happen


def thrice(session: OwnSession, folder: Path) -> None:
    for _ in range(3):
        drill("kill-replica", "--linger", "1")(session, folder)


def overload(
    session: OwnSession, folder: Path, clients: int = 60, seconds: float = 320.0, calm_s: float = 40.0
) -> None:
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


@contextmanager
def paced(session: OwnSession, clients: int, each_s: float, tokens: int, only: tuple[int, ...] = ()) -> Iterator[None]:
    """Completions beside what happens. Each client begins one every `each_s`, or at once when the last took longer.

    only: token ids. Each client reads and writes nothing but one of them; none: sums.
    """
    over = threading.Event()

    def ask(client: int) -> None:
        due = time.monotonic() + each_s * client / clients
        with httpx.Client(base_url=session.url, timeout=60) as http:
            for i in itertools.count():
                if over.wait(max(due - time.monotonic(), 0.0)):
                    return
                due = max(due + each_s, time.monotonic())
                body = {"model": "tiny-r1", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
                if only:
                    token = only[client % len(only)]
                    body |= {"prompt": [token] * 64, "allowed_token_ids": [token]}
                else:
                    body["prompt"] = f"What is {100 + i % 800}+{900 - i % 700}?"
                http.post("/v1/completions", json=body).raise_for_status()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def braked(process: Process | None, stopped_s: float, running_s: float, seconds: float) -> None:
    """Stops and continues it in turns, for so long."""
    assert process is not None
    brake = Brake(process, Hold(0.0, stopped_s, running_s))
    time.sleep(seconds)
    brake.let_go()


def status(session: OwnSession) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{session.url}/moray/status", timeout=20).raise_for_status().json()
    return told


def drifts(session: OwnSession, folder: Path) -> None:
    """Two days of a baseline; then a router that gets little of its CPU, and when that is over such an engine.

    The router is on the way of a first token and on none's after it; the engine is on both's.
    """
    hour_s = HOUR_S / DRIFT_STRETCH
    with paced(session, clients=1, each_s=hour_s / 104, tokens=12):
        time.sleep((2 * 24 + 1 + 24 * WINDOW_S / HOUR_S) * hour_s)
        now = status(session)
        [replica] = now["replicas"]
        for process, stopped_s, running_s in ((router_here(now), 0.06, 0.01), (engine_here(replica), 0.002, 0.004)):
            braked(process, stopped_s, running_s, 1.5 * hour_s)
            time.sleep(1.5 * hour_s)


def stalls(session: OwnSession, folder: Path) -> None:
    """An engine that stands still for half a second every eight: one request in forty is late, for hours.

    No more clients than the latency alarms want late requests in a row, or those would be told.
    """
    six_hours_s = 6 * HOUR_S / BURN_STRETCH
    [replica] = status(session)["replicas"]
    with paced(session, clients=3, each_s=0.23, tokens=8):
        time.sleep(six_hours_s / 6)
        braked(engine_here(replica), 0.5, 7.5, 1.5 * six_hours_s)
        time.sleep(1.25 * six_hours_s)


def uneven(session: OwnSession, folder: Path) -> None:
    """Traffic of one token, whose experts are all but one on the same shard; then of two that need one shard each."""
    for tokens in (217,), (217, 104):
        with paced(session, clients=4, each_s=1.0, tokens=100, only=tokens):
            time.sleep(IMBALANCE.raise_after_s + 90.0)  # the load is that of the last minute


DRIFT_STRETCH, BURN_STRETCH = 600.0, 240.0
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
        frozenset({"stuck-queue", "error-burst", "replica-latency", "model-latency"}),
        frozenset({"stuck-queue", "replica-latency"}),
        drill("kill-replica", "--even-the-last", "--linger", "20"),
    ),
    "overload": Fault(
        ONE | {"alarms.ttft_s": "0.2", "engine.max_num_seqs": "8"},
        frozenset({"replica-latency", "model-latency", "slo-burn-fast"}),
        frozenset({"replica-latency", "model-latency"}),
        overload,
    ),
    "drifts": Fault(
        ONE,
        frozenset({"ttft-drift", "tpot-drift"}),
        frozenset({"ttft-drift", "tpot-drift"}),
        drifts,
        stretch=DRIFT_STRETCH,
    ),
    "stalls": Fault(
        ONE | {"alarms.ttft_s": "0.2"},
        frozenset({"slo-burn-slow"}),
        frozenset({"slo-burn-slow"}),
        stalls,
        stretch=BURN_STRETCH,
    ),
    "uneven": Fault(
        ONE | {"experts.expert_parallel": "2"},
        frozenset({"expert-imbalance"}),
        frozenset({"expert-imbalance"}),
        uneven,
    ),
}


def record(name: str) -> None:
    fault = FAULTS[name]
    with tempfile.TemporaryDirectory() as folder:
        settings = fault.settings | {"ray.dashboard": "false", "alarms.record_path": folder}
        with own_session(settings) as session:
            time.sleep(5.0)
            fault.happen(session, Path(folder))
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

"""The number of replicas follows the load on the real stack, and no request fails for it; to none and back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from chats import Answer, answer, stream

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# Hours in seconds: the load is averaged over seconds, and a replica that is in excess for some goes. Batches of eight,
# so that few clients are more than one replica's worth.
QUICK = {
    "experts.expert_parallel": "1",
    "gateway.count": "2",  # what is decided is decided on what both tell
    "engine.max_num_seqs": "8",
    "autoscaling.min_replicas": "0",
    "autoscaling.max_replicas": "2",
    "autoscaling.idle_to_zero_s": "5",
    "autoscaling.interval_s": "1",
    "autoscaling.fast_s": "3",
    "autoscaling.slow_s": "8",
    "autoscaling.load_s": "15",
    "autoscaling.scale_out_cool_down_s": "2",
    "autoscaling.scale_in_cool_down_s": "2",
    "autoscaling.scale_in_after_s": "3",
}
ASKED = 8  # different requests
BUSY, CALM = 24, 1  # streams at a time; a replica runs eight, and one is far from asking for two


@pytest.fixture(scope="module")
def scaled(new_session: Callable[..., Any]) -> Iterator[Any]:
    """From none, while nobody asks, to two replicas."""
    with new_session(QUICK) as running:
        yield running


class Load:
    """So many clients, each with one request at a time; every answer is kept."""

    def __init__(self, url: str) -> None:
        self.clients = 0
        self.answers: list[tuple[int, Answer]] = []
        self._http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=BUSY))
        self._running: list[asyncio.Task[None]] = []

    def become(self, clients: int) -> None:
        self.clients = clients
        self._running += [asyncio.ensure_future(self._ask(n)) for n in range(len(self._running), clients)]

    async def _ask(self, number: int) -> None:
        asked = number
        while number < self.clients:
            i = asked % ASKED
            self.answers.append((i, await (stream if i % 4 else answer)(self._http, i)))
            asked += 1

    async def end(self) -> None:
        """Raises what any request raised."""
        self.become(0)
        await asyncio.gather(*self._running)
        await self._http.aclose()


async def until(scaled: Any, probe: Callable[[], Any], limit_s: float, load: Load) -> None:
    """Fails with the first failed request at once."""
    deadline = time.monotonic() + limit_s
    while not await asyncio.to_thread(probe):
        for task in load._running:
            if task.done() and not task.cancelled() and task.exception():
                await task
        assert time.monotonic() < deadline, f"not within {limit_s} s: {scaled.status()['autoscaling']}"
        await asyncio.sleep(0.3)


def replicas(scaled: Any) -> int:
    return len(scaled.status()["replicas"])


async def day(scaled: Any, at_noon: Callable[[], None] = lambda: None) -> list[tuple[int, Answer]]:
    """From calm to busy, where two replicas are to work, to calm, where one is to be left. All answers."""
    load = Load(scaled.url)
    load.become(BUSY)
    await until(scaled, lambda: replicas(scaled) == 2, 120, load)
    # What they run is there when one of them is taken.
    await until(scaled, lambda: all(replica["granted"] for replica in scaled.status()["replicas"]), 30, load)
    await asyncio.to_thread(at_noon)
    load.become(CALM)
    await until(scaled, lambda: replicas(scaled) == 1, 120, load)
    await until(scaled, lambda: scaled.status()["autoscaling"]["reason"].startswith("Stay at 1"), 60, load)
    await load.end()
    return load.answers


def test_both_gateways_are_asked_and_scraped(scaled: Any, eventually: Callable[..., Any]) -> None:
    asked: set[int] = set()

    def ask() -> bool:
        asked.add(scaled.status()["gateway"]["pid"])
        return len(asked) == 2

    eventually(ask, 30, "both gateways answer")
    groups = httpx.get(f"{scaled.url}/moray/targets", timeout=30).raise_for_status().json()
    (targets,) = [group["targets"] for group in groups if group["labels"]["job"] == "moray-gateway"]
    assert len(targets) == 2
    for target in targets:
        assert "moray_" in httpx.get(f"http://{target}/metrics", timeout=30).raise_for_status().text


def test_a_request_is_held_while_the_first_replica_loads(scaled: Any, eventually: Callable[..., Any]) -> None:
    async def ask() -> list[Answer]:
        async with httpx.AsyncClient(base_url=scaled.url, timeout=120) as client:
            return await asyncio.gather(*((stream if i % 2 else answer)(client, i) for i in range(4)))

    warm = asyncio.run(ask())
    eventually(lambda: replicas(scaled) == 0, 60, "none is left when nobody asks")
    assert scaled.status()["autoscaling"]["target"] == 0
    time.sleep(3.0)
    assert scaled.status()["autoscaling"]["target"] == 0, "it came back although nobody asked"
    assert asyncio.run(ask()) == warm  # held, loaded, answered
    shown = scaled.moray("status").stdout
    assert "autoscaling" in shown and "target" in shown
    eventually(lambda: replicas(scaled) == 0, 60, "and none again")


@pytest.fixture(scope="module")
def expected(scaled: Any) -> list[Answer]:
    """Each request's answer by one replica, alone."""

    async def one_by_one() -> list[Answer]:
        async with httpx.AsyncClient(base_url=scaled.url, timeout=120) as client:
            return [await (stream if i % 4 else answer)(client, i) for i in range(ASKED)]

    return asyncio.run(one_by_one())


def test_one_two_one_and_no_request_fails(scaled: Any, expected: list[Answer]) -> None:
    noon: dict[str, Any] = {}
    assert replicas(scaled) == 1
    answers = asyncio.run(day(scaled, lambda: noon.update(scaled.status()["autoscaling"])))
    assert (noon["target"], noon["ready"], noon["loading"]) == (2, 2, 0) and noon["reason"]
    assert {i for i, _ in answers} == set(range(ASKED))
    assert [(i, got) for i, got in answers if got != expected[i]] == []
    gateway = scaled.status()["gateway"]
    assert gateway["resumed"] == gateway["quarantined"] == 0, "a replica went before its streams had moved"


def test_the_number_outlives_the_router(scaled: Any, expected: list[Answer]) -> None:
    """A router that begins anew knows no load, no pace: nothing changes for it, and what follows goes on."""

    def kill_the_router() -> None:
        pid = scaled.status()["router"]["pid"]
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while True:
            time.sleep(0.5)
            if status := scaled.status_if_known():
                target = status["autoscaling"]["target"]
                assert target in (None, 2), status["autoscaling"]
                anew = status["router"]["pid"] != pid and len(status["replicas"]) == target
                if anew and time.monotonic() > began + 5.0:
                    return
            assert time.monotonic() < began + 60.0, status

    answers = asyncio.run(day(scaled, kill_the_router))
    assert [(i, got) for i, got in answers if got != expected[i]] == []

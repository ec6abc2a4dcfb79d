"""Streams survive a replica; with none left requests wait, then 503; the router may die; nothing outlives a session."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from chats import Answer, answer, body, stream

from ops import processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MIDWAY_S = 0.4  # forty answers take 1.3 s and more, their first tokens 0.1 s


async def forty(url: str, disturb: Callable[[], None] | None = None, after_s: float = 0.0) -> list[Answer]:
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=50)) as client:
        asks = [asyncio.ensure_future((stream if i % 4 else answer)(client, i)) for i in range(40)]
        if disturb is not None:
            await asyncio.sleep(after_s)
            disturb()
        return await asyncio.gather(*asks)


def replica_pids(session: Any) -> dict[str, int]:
    """Replica id -> pid of its engine core's process."""
    return {replica["id"]: replica["engine"]["pid"] for replica in session.status()["replicas"]}


def busier(session: Any) -> dict[str, Any]:
    """The replica that runs more now: forty small requests may all be on one, if the other's steps took longer."""
    return max(session.status()["replicas"], key=lambda replica: replica["granted"])


def test_killed_replica_loses_no_stream(two_replicas: Any, eventually: Callable[..., Any]) -> None:
    asyncio.run(forty(two_replicas.url))  # warm
    undisturbed = asyncio.run(forty(two_replicas.url))
    assert {a[1:] for a in undisturbed} == {("length", 400)}

    assert len(replica_pids(two_replicas)) == 2
    resumed = two_replicas.status()["gateway"]["resumed"]
    victims: list[int] = []

    def kill_the_busier_one() -> None:
        victims.append(busier(two_replicas)["engine"]["pid"])
        os.kill(victims[0], signal.SIGKILL)

    disturbed = asyncio.run(forty(two_replicas.url, kill_the_busier_one, MIDWAY_S))
    assert two_replicas.status()["gateway"]["resumed"] > resumed, "nothing was running on the replica that died"
    assert disturbed == undisturbed

    eventually(lambda: len(replica_pids(two_replicas)) == 2, 120, "the replica returns")
    assert victims[0] not in replica_pids(two_replicas).values()
    assert asyncio.run(forty(two_replicas.url)) == undisturbed


def test_hung_replica_loses_no_stream_and_is_replaced(two_replicas: Any, eventually: Callable[..., Any]) -> None:
    undisturbed = asyncio.run(forty(two_replicas.url))
    resumed = two_replicas.status()["gateway"]["resumed"]
    victims: list[int] = []

    def stop_the_busier_one() -> None:
        victims.append(busier(two_replicas)["engine"]["pid"])
        os.kill(victims[0], signal.SIGSTOP)

    disturbed = asyncio.run(forty(two_replicas.url, stop_the_busier_one, MIDWAY_S))
    assert two_replicas.status()["gateway"]["resumed"] > resumed, "nothing was running on the replica that hung"
    assert disturbed == undisturbed
    eventually(
        lambda: len(pids := replica_pids(two_replicas)) == 2 and victims[0] not in pids.values(), 120, "it is replaced"
    )


def test_drained_replica_moves_its_streams(two_replicas: Any) -> None:
    undisturbed = asyncio.run(forty(two_replicas.url))
    moved = two_replicas.status()["gateway"]["moved"]
    victims: list[str] = []

    def drain_the_busier_one() -> None:  # by HTTP: the command takes a second to start
        victims.append(busier(two_replicas)["id"])
        ask = {"replica": victims[0], "migrate": True}
        httpx.post(f"{two_replicas.url}/moray/drain", json=ask, timeout=60)

    drain = threading.Thread(target=drain_the_busier_one)
    disturbed = asyncio.run(forty(two_replicas.url, drain.start, MIDWAY_S))
    drain.join()
    victim = victims[0]
    assert two_replicas.status()["gateway"]["moved"] > moved, "it came too late to move anything"
    assert disturbed == undisturbed
    again = two_replicas.moray("drain", victim)
    assert again.returncode == 0 and "0 requests run there" in again.stdout, again.stdout + again.stderr
    [other] = set(replica_pids(two_replicas)) - {victim}
    last = two_replicas.moray("drain", other)
    assert last.returncode == 1 and "the last replica" in last.stderr
    assert two_replicas.moray("drain", victim, "--undo").returncode == 0
    assert {replica["state"] for replica in two_replicas.status()["replicas"]} == {"ready"}


def test_killed_router_is_not_noticed_by_streams(two_replicas: Any, eventually: Callable[..., Any]) -> None:
    undisturbed = asyncio.run(forty(two_replicas.url))
    victim = two_replicas.status()["router"]["pid"]
    disturbed = asyncio.run(forty(two_replicas.url, lambda: os.kill(victim, signal.SIGKILL), 0.5))
    assert disturbed == undisturbed
    status = eventually(
        lambda: (
            (s := two_replicas.status_if_known()) and s["router"]["pid"] != victim and len(s["replicas"]) == 2 and s
        ),
        30,
        "the router is back and knows both replicas",
    )
    eventually(lambda: two_replicas.status()["router"]["granted"] == 0, 5, "nothing is left granted")
    assert status["router"]["queued"] == 0


def test_no_replica_left_is_503_with_retry_after_within_the_bound(
    two_replicas: Any, eventually: Callable[..., Any]
) -> None:
    for pid in replica_pids(two_replicas).values():
        os.kill(pid, signal.SIGKILL)
    # Until both are known to be gone: what is sent to one dying and then to the other has seen two replicas die.
    eventually(lambda: not replica_pids(two_replicas), 10, "both are known to be gone")
    for streamed in (False, True):
        began = time.monotonic()
        reply = httpx.post(f"{two_replicas.url}/v1/chat/completions", json=body(1, stream=streamed), timeout=60)
        assert reply.status_code == 503, reply.text
        assert int(reply.headers["retry-after"]) > 0
        assert "replica" in reply.json()["error"]["message"]
        assert time.monotonic() - began < 10  # router.no_replica_wait_s is 3 here
    eventually(lambda: len(replica_pids(two_replicas)) == 2, 180, "both replicas return")
    reply = httpx.post(f"{two_replicas.url}/v1/chat/completions", json=body(1), timeout=60)
    assert reply.status_code == 200


def test_killed_session_leaves_no_process(two_replicas: Any, eventually: Callable[..., Any]) -> None:
    """Last of all that have this session: SIGKILL of `moray up` itself."""
    running = two_replicas.processes()
    assert len(running) > 8
    os.kill(two_replicas.leader, signal.SIGKILL)
    eventually(lambda: not any(processes.is_alive(p) for p in running), 20, "every process of the session ends")
    assert not two_replicas.processes()
    assert two_replicas.moray("status").returncode != 0

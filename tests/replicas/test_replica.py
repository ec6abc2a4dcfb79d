"""How a replica tells that its core hangs, and how it ends; without Serve around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import ray
from scripted_core import spec

from replicas import replica as module
from replicas.core import CoreLoad
from replicas.core_host import IDLE_LOOK_S
from replicas.engine_host import EngineFailed
from replicas.replica import Replica

HANG_TIMEOUT_S = 0.2


class Host:
    """Notes how its core was ended."""

    failure = None

    def __init__(self) -> None:
        self.ended: list[str] = []

    def stop(self) -> None:
        self.ended.append("stop")

    def kill(self) -> None:
        self.ended.append("kill")


class Bare(Replica):
    def __del__(self) -> None:  # type: ignore[override]  # Python's collector does not await it
        pass


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a replica whose core has one request running; the router is away."""

    async def nowhere(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(module, "find_router", nowhere)

    def make(drain_s: float) -> Any:
        made: Any = Bare.__new__(Bare)
        made._spec = msgspec.structs.replace(spec(), drain_s=drain_s, hang_timeout_s=HANG_TIMEOUT_S)
        made._host, made._changed, made._step_ended = Host(), asyncio.Event(), asyncio.Event()
        made._swap = made._swapping = None
        made._reporting = asyncio.ensure_future(asyncio.sleep(60))
        made._stored, made._removed = [], []
        made._on_load(CoreLoad(1, 0, 0.1))
        return made

    return make


async def test_a_core_that_hangs_is_killed_without_waiting_for_its_requests(serving: Any) -> None:
    one = serving(drain_s=30.0)
    one._heard = time.monotonic() - 1.0
    began = time.monotonic()
    await Replica.__del__(one)
    assert time.monotonic() - began < 1.0 and one._host.ended == ["kill"]


async def test_a_silent_core_is_unhealthy_with_requests_and_without(serving: Any) -> None:
    one = serving(drain_s=0.0)
    one.check_health()
    for load, patience_s in ((CoreLoad(1, 0, 0.1), 0.0), (CoreLoad(0, 0, 0.0), 2 * IDLE_LOOK_S)):
        one._on_load(load)
        one._heard -= patience_s + HANG_TIMEOUT_S / 2
        one.check_health()
        one._heard -= HANG_TIMEOUT_S
        with pytest.raises(EngineFailed, match="said nothing"):
            one.check_health()


class Told:
    """A router that notes what it hears, and has just lost the replica: each report is answered by None, late."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.on_report: Callable[[], None] = lambda: None
        self.join, self.report = SimpleNamespace(remote=self._join), SimpleNamespace(remote=self._report)

    async def _join(self, _: object) -> None:
        self.heard.append("join")

    async def _report(self, _: object) -> None:
        self.heard.append("report")
        self.on_report()


@pytest.mark.parametrize("router_dies", [False, True])
async def test_one_that_hangs_does_not_join_again(serving: Any, monkeypatch: pytest.MonkeyPatch, router_dies) -> None:
    one, router = serving(drain_s=0.0), Told()
    one._info = SimpleNamespace(replica_id="r", epoch=1)
    one._experts, one._metrics = None, SimpleNamespace(tell=lambda _: None)

    async def found(_: str) -> Told:
        return router

    def fall_silent() -> None:
        one._heard = time.monotonic() - HANG_TIMEOUT_S
        if router_dies:
            raise ray.exceptions.RayActorError

    monkeypatch.setattr(module, "find_router", found)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    router.on_report = fall_silent
    reporting = asyncio.ensure_future(one._report())
    await asyncio.sleep(0.4)
    assert router.heard == ["join", "report"], "out of the router's sight it stays"
    router.on_report = lambda: None
    for _ in range(20):  # it goes on
        one._on_load(CoreLoad(1, 0, 0.1))
        await asyncio.sleep(0.01)
    reporting.cancel()
    assert router.heard[2:4] == ["join", "report"]


async def test_what_runs_may_end_before_the_core_is_stopped(serving: Any) -> None:
    one = serving(drain_s=30.0)

    async def end_soon() -> None:
        for _ in range(3):  # further steps: it does not hang
            await asyncio.sleep(HANG_TIMEOUT_S / 2)
            one._on_load(CoreLoad(1, 0, 0.1))
        one._on_load(CoreLoad(0, 0, 0.0))

    ending = asyncio.ensure_future(end_soon())
    await Replica.__del__(one)
    assert ending.done() and one._host.ended == ["stop"]

"""Carries the disturbances out on a session, and waits until it has mended each."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ops.processes import Process, identify, is_alive, send
from ops.soak.chaos import Disturbance, Kind, may_strike
from ops.soak.session import SoakedSession, SoakFailed
from ops.victims import engine_here, router_here

MEND_LIMIT_S = 120.0  # from a blow until the cluster is whole again; a replica's start alone takes 20-40 s on two CPUs
_LOOK_S = 0.2


class NotMended(SoakFailed):
    """The cluster is not whole again in time."""


class Chaos:
    """`struck` counts what was done. Raises NotMended out of `run`."""

    def __init__(
        self, session: SoakedSession, replicas: int, schedule: Iterator[Disturbance], report: Callable[[str], None]
    ) -> None:
        self.struck: Counter[Kind] = Counter()
        self._session = session
        self._replicas = replicas
        self._schedule = schedule
        self._report = report
        self._mending: dict[asyncio.Task[None], str] = {}  # task -> id of the replica that it concerns, or ""

    async def run(self, until: float) -> None:
        """Strikes until the monotonic second `until`, then waits for a whole cluster."""
        try:
            for disturbance in self._schedule:
                if not await self._moment(disturbance, until):
                    break
                await self._strike(disturbance)
            await self._whole()
        finally:
            for task in self._mending:
                task.cancel()
            await asyncio.gather(*self._mending, return_exceptions=True)

    async def _moment(self, disturbance: Disturbance, until: float) -> bool:
        """Waits until the disturbance may strike; False: the time is over."""
        limit = time.monotonic() + MEND_LIMIT_S
        pause_until = time.monotonic() + disturbance.pause_s
        was_quiet = False
        while (now := time.monotonic()) < until:
            may = may_strike(disturbance, len(await self._ready()), self._replicas)
            if not disturbance.overlaps:
                may = may and not self._mending
                if may and not was_quiet:  # the pause is one of the whole cluster
                    pause_until = now + disturbance.pause_s
                was_quiet = may
            if may and now >= pause_until:
                return True
            if now > limit:
                raise NotMended(f"{MEND_LIMIT_S:.0f} s after the last disturbance the cluster is not whole")
            await asyncio.sleep(_LOOK_S)
        return False

    async def _ready(self) -> list[dict[str, Any]]:
        """Replicas that take requests, without those that have been struck and are not known to be lost yet."""
        for task in [task for task in self._mending if task.done()]:
            del self._mending[task]
            task.result()
        status = await self._session.status()
        struck = set(self._mending.values())
        return [r for r in (status or {"replicas": ()})["replicas"] if r["state"] == "ready" and r["id"] not in struck]

    async def _whole(self) -> None:
        async def is_whole() -> bool:
            return len(await self._ready()) == self._replicas and not self._mending

        await _until(is_whole, "the cluster is whole")

    async def _strike(self, disturbance: Disturbance) -> None:
        kind = disturbance.kind
        if kind is Kind.KILL_ROUTER:
            if (status := await self._session.status()) and (router := router_here(status)):
                self._count(kind, f"router {router.pid}")
                send(router, signal.SIGKILL)
                self._mend(self._router_is_back(router), "")
            return
        if not (ready := await self._ready()):
            return
        victim = ready[int(disturbance.victim * len(ready))]
        core = engine_here(victim)
        if core is None:
            return
        what = f"replica {victim['id']}, core {core.pid}"
        if kind is Kind.DRAIN:
            if await self._session.drain(victim["id"]):
                self._count(kind, what)
                self._mend(self._undo(victim["id"], core, disturbance.hold_s), victim["id"])
        elif kind is Kind.KILL_REPLICA:
            if replica := identify(int(victim["pid"])):
                self._count(kind, what)
                send(replica, signal.SIGKILL)
                self._mend(self._is_lost(victim["id"], core), victim["id"])
        elif kind is Kind.KILL_CORE:
            self._count(kind, what)
            send(core, signal.SIGKILL)
            self._mend(self._is_lost(victim["id"], core), victim["id"])
        else:
            self._count(kind, what)
            send(core, signal.SIGSTOP)
            self._mend(self._hangs(victim["id"], core, kind is Kind.STOP_CORE), victim["id"])

    def _count(self, kind: Kind, what: str) -> None:
        self.struck[kind] += 1
        self._report(f"{kind}: {what}")

    def _mend(self, waiting: Any, replica_id: str) -> None:
        self._mending[asyncio.ensure_future(waiting)] = replica_id

    async def _router_is_back(self, killed: Process) -> None:
        async def is_back() -> bool:
            status = await self._session.status()
            return status is not None and status["router"]["pid"] != killed.pid

        await _until(is_back, "the router is back")

    async def _is_lost(self, replica_id: str, core: Process) -> None:
        await _until(lambda: self._is_out(replica_id), f"replica {replica_id} is known to be lost")
        await _until(lambda: _is_dead(core), f"core {core.pid} is dead")

    async def _hangs(self, replica_id: str, core: Process, continues: bool) -> None:
        try:
            await _until(lambda: self._is_out(replica_id), f"replica {replica_id} is known to hang")
            if not continues:
                await _until(lambda: _is_dead(core), f"core {core.pid}, which hangs, is replaced")
        finally:
            send(core, signal.SIGCONT)

    async def _is_out(self, replica_id: str) -> bool:
        status = await self._session.status()
        return status is not None and all(r["id"] != replica_id for r in status["replicas"])

    async def _undo(self, replica_id: str, core: Process, hold_s: float) -> None:
        await asyncio.sleep(hold_s)

        async def is_undone() -> bool:
            # A router that has just started does not know it yet; only one that is dead needs nothing undone.
            return await self._session.drain(replica_id, undo=True) or await _is_dead(core)

        await _until(is_undone, f"replica {replica_id} takes requests again")


async def _is_dead(process: Process) -> bool:
    return not is_alive(process)


async def _until(condition: Callable[[], Any], what: str) -> None:
    """Waits for it. Raises NotMended."""
    limit = time.monotonic() + MEND_LIMIT_S
    while not await condition():
        if time.monotonic() > limit:
            raise NotMended(f"not within {MEND_LIMIT_S:.0f} s: {what}")
        await asyncio.sleep(_LOOK_S)

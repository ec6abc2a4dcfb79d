"""The session under the soak: asked how it stands, looked at through /proc, ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx
import psutil

from ops.errors import UserError
from ops.own_session import OwnSession
from ops.processes import Process, is_alive, members
from ops.soak.leaks import Levels

_ANSWER_LIMIT_S = 15
CORE = "replicas.core_process"  # an engine core has a process of its own, with this in its command line


class SoakFailed(UserError):
    """The soak could not be made, or could not go on."""


class SoakedSession:
    """The session under the soak, asked and looked at."""

    def __init__(self, session: OwnSession) -> None:
        self._session = session
        self.url, self.id = session.url, session.id
        self._client = httpx.AsyncClient(base_url=self.url, timeout=_ANSWER_LIMIT_S, trust_env=False)

    async def status(self) -> dict[str, Any] | None:
        """/moray/status; None while the router does not answer."""
        reply = await self._client.get("/moray/status")
        if reply.status_code == 503:
            return None
        status: dict[str, Any] = reply.raise_for_status().json()
        return status

    async def drain(self, replica: str, undo: bool = False) -> bool:
        """Moves a replica's streams away, or lets it take requests again; False: refused, or the router is away."""
        asked = {"replica": replica, "undo": undo, "migrate": not undo}
        return (await self._client.post("/moray/drain", json=asked)).status_code == 200

    def processes(self) -> set[Process]:
        return members(self.id)

    def down(self) -> set[Process]:
        """Ends the session; returns what outlived it."""
        known = self.processes()
        self._session.moray("down")
        return {process for process in known | self.processes() if is_alive(process)}


def levels(session: SoakedSession, status: Mapping[str, Any]) -> Levels:
    """What its processes hold now."""
    gateway = int(status["gateway"]["pid"])
    by_role = [("gateway", gateway), ("router", int(status["router"]["pid"]))]
    handles: dict[str, int] = {}
    with suppress(psutil.NoSuchProcess):  # lost this moment: not at rest, which the status tells too
        for replica in status["replicas"]:
            core = int(replica["engine"]["pid"])
            by_role += [("core", core), ("replica", int(replica["pid"]))]
        for role, pid in by_role:
            handles[role] = max(handles.get(role, 0), psutil.Process(pid).num_fds())
    kinds = Counter(kind for process in session.processes() if (kind := _kind(process.pid)))
    return Levels(handles, kinds, psutil.Process(gateway).memory_info().rss / (1 << 20))


def _kind(pid: int) -> str:
    """A name that two processes share if they are there for the same; "" if it is gone."""
    try:
        process = psutil.Process(pid)
        command = process.cmdline()
        if CORE in command:
            return CORE
        title = command[0] if command else ""
        # Ray: "ray::Router", and while a method runs "ray::Router.status".
        return title.split(".")[0].strip() if title.startswith("ray::") else process.name()
    except psutil.Error:
        return ""

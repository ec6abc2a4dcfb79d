"""A session of the soak's own: started, asked how it stands, looked at through /proc, ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from ops.errors import UserError
from ops.processes import Process, identify, is_alive, members
from ops.soak.leaks import Levels

_UP_LIMIT_S = 300
_DOWN_LIMIT_S = 120
_ANSWER_LIMIT_S = 15
_CORE = "replicas.core_process"


class SoakFailed(UserError):
    """The soak could not be made, or could not go on."""


class OwnSession:
    """A running `moray up --detach` in a state directory that nobody else looks into."""

    def __init__(self, port: int, env: dict[str, str], id_: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.id = id_
        self._env = env
        self._client = httpx.AsyncClient(base_url=self.url, timeout=_ANSWER_LIMIT_S)

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
        _moray(self._env, "down", limit_s=_DOWN_LIMIT_S)
        return {process for process in known | self.processes() if is_alive(process)}


@contextmanager
def own_session(settings: Mapping[str, str]) -> Iterator[OwnSession]:
    """A session with these settings, on a free port. It is down when the context is left."""
    port = _free_port()
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory(prefix="moray-soak-") as state:
        env = os.environ | {"MORAY_STATE_DIR": state}
        try:
            up = _moray(env, "up", "--detach", "--port", str(port), *sets, limit_s=_UP_LIMIT_S)
            if up.returncode != 0:
                raise SoakFailed(f"the session did not start:\n{up.stdout[-1000:]}{up.stderr[-2000:]}")
            [record] = [json.loads(file.read_text()) for file in Path(state).glob("*.session.json")]
            yield OwnSession(port, env, record["id"])
        finally:
            _moray(env, "down", limit_s=_DOWN_LIMIT_S)  # says that nothing runs, if nothing does


def levels(session: OwnSession, status: Mapping[str, Any]) -> Levels:
    """What its processes hold now."""
    gateway = int(status["gateway"]["pid"])
    by_role = [("gateway", gateway), ("router", int(status["router"]["pid"]))]
    handles: dict[str, int] = {}
    with suppress(psutil.NoSuchProcess):  # lost this moment: not at rest, which the status tells too
        for replica in status["replicas"]:
            core = int(replica["engine"]["pid"])
            by_role += [("core", core), ("replica", psutil.Process(core).ppid())]
        for role, pid in by_role:
            handles[role] = max(handles.get(role, 0), psutil.Process(pid).num_fds())
    kinds = Counter(kind for process in session.processes() if (kind := _kind(process.pid)))
    return Levels(handles, kinds, psutil.Process(gateway).memory_info().rss / (1 << 20))


def serve_replica_of(core: Process) -> Process | None:
    """The Serve replica's process: the core's parent."""
    try:
        return identify(psutil.Process(core.pid).ppid()) if is_alive(core) else None
    except psutil.Error:
        return None


def _kind(pid: int) -> str:
    """A name that two processes share if they are there for the same; "" if it is gone."""
    try:
        process = psutil.Process(pid)
        command = process.cmdline()
        if _CORE in command:
            return _CORE
        title = command[0] if command else ""
        # Ray: "ray::Router", and while a method runs "ray::Router.status".
        return title.split(".")[0].strip() if title.startswith("ray::") else process.name()
    except psutil.Error:
        return ""


def _moray(env: dict[str, str], *arguments: str, limit_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ops.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit_s, check=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

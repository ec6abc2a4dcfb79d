"""Real sessions for the end-to-end tests: `moray up`, real vLLM engines, real Ray, real HAProxy; nothing is mocked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops import processes
from ops.own_session import free_port

START_LIMIT_S = 240


@dataclass
class Session:
    """A running `moray up --detach`."""

    url: str
    port: int
    env: dict[str, str]
    id: str
    leader: int
    page_origin: str  # whose pages may call the API

    def moray(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return _moray(self.env, *arguments, timeout=timeout)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = httpx.get(f"{self.url}/moray/status", timeout=10).raise_for_status().json()
        return status

    def processes(self) -> set[processes.Process]:
        return processes.members(self.id)


def _moray(env: dict[str, str], *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ops.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def start_session(state: Path, *arguments: str) -> Session:
    port = free_port()
    env = os.environ | {"MORAY_STATE_DIR": str(state)}
    page_origin = f"http://127.0.0.1:{free_port()}"
    options = ["--detach", "--port", str(port), "--set", "ray.dashboard=false", *arguments]
    options += ["--set", f'gateway.allowed_origins=["{page_origin}"]']
    up = _moray(env, "up", *options, timeout=START_LIMIT_S)
    assert up.returncode == 0, up.stdout + up.stderr
    [record] = [json.loads(path.read_text()) for path in state.glob("*.json")]
    return Session(f"http://127.0.0.1:{port}", port, env, record["id"], record["pid"], page_origin)


def stop_session(session: Session) -> None:
    session.moray("down")
    left = session.processes()
    for process in left:
        processes.send(process, signal.SIGKILL)
    assert not left, f"processes outlived `moray down`: {left}"


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The default: one replica, its experts on two shards, the engine core in its own process."""
    session = start_session(tmp_path_factory.mktemp("sharded"))
    yield session
    stop_session(session)


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Two unsharded replicas. A hung one is found in 5 s."""
    session = start_session(
        tmp_path_factory.mktemp("two"),
        *("--replicas", "2", "--expert-parallel", "1"),
        *("--set", "router.no_replica_wait_s=3", "--set", "replicas.hang_timeout_s=5"),
    )
    yield session
    stop_session(session)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Waits until `probe()` is true; returns what it gave."""

    def wait(probe: Callable[[], Any], within_s: float, what: str) -> Any:
        deadline = time.monotonic() + within_s
        while True:
            if found := probe():
                return found
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
            time.sleep(0.05)

    return wait

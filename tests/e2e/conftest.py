"""Real sessions for the end-to-end tests: `moray up`, real vLLM engines, real Ray, real HAProxy; nothing is mocked."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest

from ops import processes
from ops.own_session import OwnSession, free_port, own_session


class Session:
    """A session for tests. It must leave no process when it is down."""

    def __init__(self, own: OwnSession, page_origin: str) -> None:
        self.url, self.port, self.leader = own.url, own.port, own.leader
        self.moray = own.moray
        self.page_origin = page_origin  # whose pages may call the API
        self._id = own.id

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = httpx.get(f"{self.url}/moray/status", timeout=10).raise_for_status().json()
        return status

    def processes(self) -> set[processes.Process]:
        return processes.members(self._id)


@contextmanager
def session(settings: Mapping[str, str]) -> Iterator[Session]:
    page_origin = f"http://127.0.0.1:{free_port()}"
    common = {"ray.dashboard": "false", "gateway.allowed_origins": f'["{page_origin}"]'}
    with own_session(common | settings) as own:
        running = Session(own, page_origin)
        yield running
    left = running.processes()
    for process in left:
        processes.send(process, signal.SIGKILL)
    assert not left, f"processes outlived `moray down`: {left}"


@pytest.fixture(scope="session")
def started() -> Callable[[Mapping[str, str]], AbstractContextManager[Session]]:
    """For a session with settings of a test's own."""
    return session


@pytest.fixture(scope="session")
def sharded() -> Iterator[Session]:
    """The default: one replica, its experts on two shards, the engine core in its own process."""
    with session({}) as running:
        yield running


@pytest.fixture(scope="module")
def two_replicas() -> Iterator[Session]:
    """Two unsharded replicas. A hung one is found in 5 s."""
    settings = {
        "replicas.count": "2",
        "experts.expert_parallel": "1",
        "router.no_replica_wait_s": "3",
        "replicas.hang_timeout_s": "5",
    }
    with session(settings) as running:
        yield running


@pytest.fixture(scope="session")
def new_session() -> Callable[[Mapping[str, str]], AbstractContextManager[Session]]:
    """Starts a session with settings of its own."""
    return session


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

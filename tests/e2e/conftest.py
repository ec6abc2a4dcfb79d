"""Real sessions for the end-to-end tests: `moray up`, real vLLM engines, real Ray, real HAProxy; nothing is mocked."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from collector import Collector
from http_server import http_server
from webhook import Webhook

from ops import processes
from ops.own_session import OwnSession, free_port, own_session

HERE = Path(__file__).parent
WHOLE_WITHIN_S = 120.0  # a replica may be loading
SHARED = ("sharded", "two_replicas", "unhealed")  # fixtures whose session several files share


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that share a session one after the other, or it would be started anew."""

    def turn(item: pytest.Item) -> int:
        used = item.fixturenames if isinstance(item, pytest.Function) else ()
        return next((number for number, name in enumerate(SHARED) if name in used), len(SHARED))

    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    for place, item in zip(places, sorted((items[place] for place in places), key=turn), strict=True):
        items[place] = item


class Session:
    """A session for tests. It must leave no process when it is down."""

    def __init__(self, own: OwnSession, page_origin: str) -> None:
        self.url, self.port, self.leader = own.url, own.port, own.leader
        self.moray = own.moray
        self.page_origin = page_origin  # whose pages may call the API
        self._id = own.id
        self._gateway: int | None = None  # its process, as `is_whole` saw it first

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = httpx.get(f"{self.url}/moray/status", timeout=10).raise_for_status().json()
        return status

    def status_if_known(self) -> dict[str, Any] | None:
        """None: the router is away."""
        try:
            return self.status()
        except httpx.HTTPStatusError as error:
            assert error.response.status_code == httpx.codes.SERVICE_UNAVAILABLE
            return None

    def is_whole(self, replicas: int) -> bool:
        """All replicas serve, nothing waits or runs, and the gateway is the first."""
        if (status := self.status_if_known()) is None:
            return False
        states = [replica["state"] for replica in status["replicas"]]
        open_requests = status["gateway"]["open_requests"] + status["router"]["queued"] + status["router"]["granted"]
        self._gateway = self._gateway or status["gateway"]["pid"]
        assert status["gateway"]["pid"] == self._gateway, "a test has cost the gateway its life"
        return states == ["ready"] * replicas and open_requests == 0

    def processes(self) -> set[processes.Process]:
        return processes.members(self._id)


class Endings:
    """Sessions go down, which is mostly waiting, while the next one comes up; what is wrong with that is told then."""

    def __init__(self) -> None:
        self._one_by_one = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def add(self, end: Callable[[], None]) -> None:
        before, self._last = self._last, self._one_by_one.submit(end)
        if before is not None:
            before.result()

    def wait(self) -> None:
        if self._last is not None:
            self._last.result()


ENDINGS = Endings()


@contextmanager
def session(settings: Mapping[str, str]) -> Iterator[Session]:
    page_origin = f"http://127.0.0.1:{free_port()}"
    common = {"ray.dashboard": "false", "gateway.allowed_origins": f'["{page_origin}"]'}
    with ExitStack() as stack:
        running = Session(stack.enter_context(own_session(common | settings)), page_origin)
        down = stack.pop_all().close
    try:
        yield running
    finally:
        ENDINGS.add(lambda: end(running, down, settings))


def end(running: Session, down: Callable[[], None], settings: Mapping[str, str]) -> None:
    down()
    left = running.processes()
    for process in left:
        processes.send(process, signal.SIGKILL)
    assert not left, f"processes outlived `moray down` of the session with {settings}: {left}"


class Shared:
    """The session that tests of several files have in turn: one at a time, for two would starve each other."""

    def __init__(self) -> None:
        self._settings: Mapping[str, str] = {}
        self._session: Session | None = None
        self._stack = ExitStack()

    def get(self, settings: Mapping[str, str], replicas: int) -> Session:
        """The one with these settings, whole; it is started if it does not run."""
        if self._session is None or self._settings != settings:
            self.close()
            self._session, self._settings = self._stack.enter_context(session(settings)), settings
        deadline = time.monotonic() + WHOLE_WITHIN_S
        try:
            while not self._session.is_whole(replicas):
                if time.monotonic() > deadline:
                    pytest.fail(f"{replicas} idle replicas are not there: the test before, or the start, has cost some")
                time.sleep(0.05)
        except BaseException:
            self.close()  # the next test gets another
            raise
        return self._session

    def close(self) -> None:
        self._session = None
        self._stack.close()


@pytest.fixture(scope="session")
def shared() -> Iterator[Shared]:
    made = Shared()
    yield made
    made.close()
    ENDINGS.wait()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Of traces."""
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def sharded(shared: Shared, collector: Collector) -> Session:
    """The default: one replica, its experts on two shards, the engine core in its own process. Traces are collected."""
    return shared.get({"metrics.otlp_endpoint": collector.endpoint}, 1)


@pytest.fixture
def two_replicas(shared: Shared) -> Session:
    """Two unsharded replicas. A hung one is found in 5 s."""
    settings = {
        "replicas.count": "2",
        "experts.expert_parallel": "1",
        "router.no_replica_wait_s": "3",
        "replicas.hang_timeout_s": "5",
    }
    return shared.get(settings, 2)


@pytest.fixture(scope="session")
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    with http_server(made.answer) as made.url:
        yield made


@pytest.fixture(scope="session")
def alertmanager_address() -> str:
    """Where an Alertmanager may be started."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def unhealed(shared: Shared, webhook: Webhook, alertmanager_address: str) -> Session:
    """Two unsharded replicas. The controller alarms 3 s after one stands still, and its gateways wait for 24 s."""
    settings = {
        "replicas.count": "2",
        "experts.expert_parallel": "1",
        "replicas.hang_timeout_s": "24",
        "alarms.restarts_per_hour": "0",
        "alarms.no_token_s": "3",
        "alarms.webhook": webhook.url,
        "alarms.alertmanager": f'["http://{alertmanager_address}"]',
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "2000")
        return shared.get(settings, 2)


@pytest.fixture(scope="session")
def new_session(shared: Shared) -> Callable[[Mapping[str, str]], AbstractContextManager[Session]]:
    """Starts a session with settings of its own. The shared one is down by then."""

    def start(settings: Mapping[str, str]) -> AbstractContextManager[Session]:
        shared.close()
        return session(settings)

    return start


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

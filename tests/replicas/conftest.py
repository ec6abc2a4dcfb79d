"""Both event loops that serve our connections, and core hosts that do not outlive their test."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop
from scripted_core import Hosted

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,  # a core process
    "uvloop": uvloop.new_event_loop,  # Ray Serve: gateways, and replicas with a core in a thread
}


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Each asynchronous test on both, unless its module has `EVENT_LOOPS`."""
    return {name: LOOPS[name] for name in getattr(getattr(item, "module", None), "EVENT_LOOPS", LOOPS)}


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hosted]]:
    """Starts a scripted core's host on the test's kind of event loop; `hosted(step_s=0.01)`, say."""
    started: list[Hosted] = []

    def start(**script: object) -> Hosted:
        monkeypatch.setattr(asyncio, "new_event_loop", type(asyncio.get_running_loop()))
        started.append(Hosted(**script))
        return started[-1]

    yield start
    for host in started:
        host.kill()

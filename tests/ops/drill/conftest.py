"""A gateway that answers what the test wants, on a real socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http_server import Answer, Asked, http_server

STATUS: dict[str, Any] = {
    "replicas": [
        {
            "id": name,
            "state": "ready",
            "epoch": 1,
            "address": "192.0.2.1:1",
            "engine": {"pid": 1},
            "granted": 0,
            "running": 0,
        }
        for name in ("abc", "xyz")
    ],
    "router": {"pid": 1, "queued": 0, "granted": 0},
    "gateway": {"pid": 7, "resumed": 0, "moved": 0, "quarantined": 0},
    "model": {"name": "tiny-r1"},
}


class FakeGateway:
    url: str

    def __init__(self) -> None:
        self.status: Any = STATUS
        self.drain_status = 415  # what an operator is answered who sends nothing
        self.alarms: Any = None  # None: 404
        self.key: str | None = None  # that is asked for
        self.stream: Callable[[int, dict[str, Any]], list[str] | tuple[int, dict[str, str]]] = lambda n, body: []
        self.asked = 0
        self.delay_s = 0.0  # before each event

    def answer(self, asked: Asked) -> Answer:
        if asked.path == "/moray/drain":
            return Answer(self.drain_status, {})
        if asked.method == "POST":
            return self._stream(asked)
        if self.key and asked.key != f"Bearer {self.key}":
            return Answer(401, {"error": {"message": "no key"}})
        if asked.path == "/moray/status":
            return Answer(200 if isinstance(self.status, dict) else int(self.status), self.status)
        return Answer(404, {}) if self.alarms is None or asked.path != "/moray/alarms" else Answer(200, self.alarms)

    def _stream(self, asked: Asked) -> Answer:
        self.asked += 1
        answer = self.stream(self.asked, asked.json)
        if isinstance(answer, tuple):
            return Answer(answer[0], {"error": {"message": "not now"}}, answer[1])

        def events() -> Iterator[bytes]:
            for event in answer:
                time.sleep(self.delay_s)
                yield f"data: {event}\n\n".encode()

        return Answer(200, events(), {"content-type": "text/event-stream"})


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    made = FakeGateway()
    with http_server(made.answer) as made.url:
        yield made

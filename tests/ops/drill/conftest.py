"""A gateway that answers what the test wants, on a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

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
    def __init__(self) -> None:
        self.status: Any = STATUS
        self.drain_status = 415  # what an operator is answered who sends nothing
        self.alarms: Any = None  # None: 404
        self.key: str | None = None  # that is asked for
        self.stream: Callable[[int, dict[str, Any]], list[str] | tuple[int, dict[str, str]]] = lambda n, body: []
        self.asked = 0
        self.delay_s = 0.0  # before each event
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if outer.key and self.headers.get("authorization") != f"Bearer {outer.key}":
                    self._send(401, {"error": {"message": "no key"}})
                elif self.path == "/moray/status":
                    self._send(200 if isinstance(outer.status, dict) else int(outer.status), outer.status)
                elif self.path == "/moray/alarms" and outer.alarms is not None:
                    self._send(200, outer.alarms)
                else:
                    self._send(404, {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.path == "/moray/drain":
                    self._send(outer.drain_status, {})
                    return
                outer.asked += 1
                answer = outer.stream(outer.asked, json.loads(body))
                if isinstance(answer, tuple):
                    self._send(answer[0], {"error": {"message": "not now"}}, answer[1])
                    return
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                for event in answer:
                    time.sleep(outer.delay_s)
                    self.wfile.write(f"data: {event}\n\n".encode())
                    self.wfile.flush()
                self.close_connection = True

            def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    made = FakeGateway()
    serving = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    serving.join()

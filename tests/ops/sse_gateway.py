"""What a gateway is to a load balancer: streams of server-sent events that go on as they are told, and Serve's health.

`serving()` runs one in this event loop; as a program it can be killed: `python sse_gateway.py` says its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn

CHAT = "/v1/chat/completions"
HEALTH = "/-/healthz"


class SseGateway:
    """Each stream gets one event for each `tell()`, and [DONE] by `finish()`: nothing comes before it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.draining = False
        self.mortal = False  # ends its process without an answer where a request asks for it
        self.headers: list[dict[str, str]] = []  # of each request for tokens
        self.bodies: list[int] = []  # bytes of each
        self.open_streams = 0
        self.sent_events = 0  # to all clients
        self.padding = 0  # bytes in each event, beside its number
        self.url = ""
        self._told = 0
        self._finished = False
        self._news = asyncio.Event()

    def tell(self) -> int:
        """One event more; its number."""
        self._told += 1
        self._wake()
        return self._told

    def finish(self) -> None:
        self._finished = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def app(self, scope, receive, send) -> None:
        if scope["path"] == HEALTH:
            return await _answer(send, 503 if self.draining else 200, b"success")
        self.headers.append({key.decode(): value.decode() for key, value in scope["headers"]})
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(len(body))
        if b'"exit"' in body and self.mortal:
            os._exit(1)
        if b'"stream"' not in body:
            return await _answer(send, 200, json.dumps({"gateway": self.name}).encode())
        gone = asyncio.ensure_future(_disconnected(receive))
        self.open_streams += 1
        try:
            await self._stream(send, gone)
        finally:
            self.open_streams -= 1
            gone.cancel()

    async def _stream(self, send, gone: asyncio.Future[None]) -> None:
        head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-gateway", self.name.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        sent = 0
        while not gone.done():
            news = self._news
            while sent < self._told:
                sent += 1
                event = b"data: %d%s\n\n" % (sent, b" " * self.padding)
                await send({"type": "http.response.body", "body": event, "more_body": True})
                self.sent_events += 1
            if self._finished:
                await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
                return
            told = asyncio.ensure_future(news.wait())
            await asyncio.wait((told, gone), return_when=asyncio.FIRST_COMPLETED)
            told.cancel()


async def _disconnected(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send, status: int, body: bytes) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(gateway: SseGateway) -> AsyncIterator[SseGateway]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(
            gateway.app, interface="asgi3", log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        gateway.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield gateway
        finally:
            gateway.finish()
            server.should_exit = True
            await task


@contextlib.contextmanager
def gateway_process(name: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its URL and its process, which may be killed."""
    process = subprocess.Popen(
        [sys.executable, __file__, name, str(os.getpid())],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


async def _run(name: str) -> None:
    gateway = SseGateway(name)
    gateway.mortal = True
    async with serving(gateway):
        print(gateway.url, flush=True)  # noqa: T201
        gateway.tell()
        await asyncio.Event().wait()


if __name__ == "__main__":
    from experts.linux import die_with_parent

    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_run(sys.argv[1]))

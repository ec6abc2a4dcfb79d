"""A lean load generator for streamed chat completions: one keep-alive connection per stream in flight.

Lean because it runs on the cores that it measures: it parses HTTP/1.1 chunks and counts SSE events, no JSON but the
last event's `usage`, which is also the check that nothing was lost.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

_TAIL = 2048  # bytes that hold the usage event and the end of a stream
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass
class Stream:
    """What one request measured; seconds on one monotonic clock."""

    started: float
    first_token: float = 0.0
    tokens: int = 0  # completion tokens by the server's own usage
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.first_token - self.started


@dataclass
class Load:
    """What one run measured."""

    seconds: float
    streams: list[Stream] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.streams)

    @property
    def errors(self) -> list[str]:
        return [s.error for s in self.streams if s.error]


async def run_load(url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> Load:
    """Sends every body (a streamed chat completion with usage), `concurrency` at a time."""
    target = urlsplit(url)
    host, port = target.hostname or "127.0.0.1", target.port or 80
    waiting = list(reversed([_request(host, port, body) for body in bodies]))
    load = Load(0.0)
    loop = asyncio.get_running_loop()
    started = time.monotonic()

    async def worker() -> None:
        while waiting:  # a connection that failed is replaced
            _, client = await loop.create_connection(lambda: _Client(waiting, load.streams), host, port)
            await client.done

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(bodies))):
            group.create_task(worker())
    load.seconds = time.monotonic() - started
    return load


def _request(host: str, port: int, body: dict[str, Any]) -> bytes:
    payload = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


class _Client(asyncio.Protocol):
    """One connection: takes request after request off `waiting`, appends what it saw to `streams`."""

    def __init__(self, waiting: list[bytes], streams: list[Stream]) -> None:
        self._waiting = waiting
        self._streams = streams
        self._stream: Stream | None = None
        self._tail = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def _next(self) -> None:
        if not self._waiting:
            self._transport.close()
            return
        self._stream = Stream(time.monotonic())
        self._streams.append(self._stream)
        self._tail = b""
        self._transport.write(self._waiting.pop())

    def data_received(self, data: bytes) -> None:
        stream = self._stream
        if stream is None:
            return
        if not stream.first_token and (b'"reasoning":' in data or b'"content":"' in data):
            stream.first_token = time.monotonic()
        self._tail = tail = (self._tail + data)[-_TAIL:]
        if not tail.endswith(_LAST_CHUNK):
            if tail.startswith(b"HTTP/1.1 ") and not tail.startswith(b"HTTP/1.1 200"):
                self._fail(tail.decode(errors="replace"))
            return
        at = tail.rfind(b'"completion_tokens":')
        if at < 0 or b"[DONE]" not in tail:
            self._fail(tail.decode(errors="replace"))
            return
        stream.tokens = int(tail[at + 20 :].split(b",", 1)[0].split(b"}", 1)[0])
        self._next()

    def _fail(self, error: str) -> None:
        if self._stream is not None:
            self._stream.error, self._stream = error, None
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None and not self._stream.tokens:
            self._stream.error = f"the stream ended early: {exc}"
        if not self.done.done():
            self.done.set_result(None)

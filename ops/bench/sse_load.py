"""A lean load generator for streamed chat completions: one keep-alive connection per stream in flight.

Lean because it runs on the cores that it measures: it parses HTTP/1.1 chunks and counts SSE events, no JSON but the
last event's `usage`, which is also the check that nothing was lost.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

_TAIL = 2048  # bytes that hold the usage event and the end of a stream
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_IDLE_S = 2.0  # servers close a connection that idles for a few seconds: one that idled longer is not used again


@dataclass
class Stream:
    """What one request measured; seconds on one monotonic clock."""

    started: float  # when it was due: with a client that is late, before it was sent
    first_token: float = 0.0
    ended: float = 0.0  # its last bytes, which come with the last token
    tokens: int = 0  # completion tokens by the server's own usage
    error: str = ""
    late: float = 0.0  # seconds from when it was due to when it was sent

    @property
    def ttft(self) -> float:
        return self.first_token - self.started

    @property
    def tpot(self) -> float:
        """Mean seconds of each token after the first."""
        return (self.ended - self.first_token) / max(self.tokens - 1, 1)

    @property
    def shed(self) -> bool:
        return self.error.startswith("HTTP/1.1 429 ")


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


async def run_load(
    url: str, bodies: Sequence[dict[str, Any]], concurrency: int, headers: Mapping[str, str] | None = None
) -> Load:
    """Closed loop: sends every body (a streamed chat completion with usage), `concurrency` at a time."""
    connections = _Connections(url)
    waiting = list(reversed([connections.request(body, headers) for body in bodies]))
    load = Load(0.0)
    started = time.monotonic()

    async def worker() -> None:
        while waiting:
            request = waiting.pop()
            load.streams.append(stream := Stream(time.monotonic()))
            await connections.exchange(request, stream)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(bodies))):
            group.create_task(worker())
    load.seconds = time.monotonic() - started
    connections.close()
    return load


async def run_open_load(url: str, arrivals: Sequence[tuple[float, dict[str, Any]]], limit_s: float) -> Load:
    """Open loop: sends each body at its time (seconds from now, rising), whatever became of those before it.

    Streams that have not ended `limit_s` after the start are errors.
    """
    connections = _Connections(url)
    requests = [(at, connections.request(body)) for at, body in arrivals]
    load = Load(0.0)
    started = time.monotonic()
    try:
        async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
            for at, request in requests:
                load.streams.append(stream := Stream(started + at))
                if (wait := stream.started - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(connections.exchange(request, stream))
    except TimeoutError:
        for stream in load.streams:
            if not stream.ended and not stream.error:
                stream.error = f"the stream did not end within {limit_s:g} s"
    load.seconds = time.monotonic() - started
    connections.close()
    return load


class _Connections:
    """Keep-alive connections to one server, opened as they are needed."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self._host, self._port = target.hostname or "127.0.0.1", target.port or 80
        self._idle: list[_Client] = []

    def request(self, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
        payload = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        return head.encode() + payload

    async def exchange(self, request: bytes, stream: Stream) -> None:
        """One request and its stream, to the end."""
        client = self._take()
        if client is None:
            try:
                _, client = await asyncio.get_running_loop().create_connection(_Client, self._host, self._port)
            except OSError as error:
                stream.error = f"no connection: {error}"
                return
        try:
            await client.send(request, stream)
        except asyncio.CancelledError:
            client.abandon()
            raise
        if not client.closing:
            self._idle.append(client)

    def _take(self) -> "_Client | None":
        while self._idle:
            client = self._idle.pop()
            if not client.closing and time.monotonic() - client.used < _IDLE_S:
                return client
            client.close()
        return None

    def close(self) -> None:
        for client in self._idle:
            client.close()


class _Client(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self) -> None:
        self._stream: Stream | None = None
        self._tail = b""
        self._done: asyncio.Future[None] | None = None
        self.used = 0.0  # when its last stream ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    def send(self, request: bytes, stream: Stream) -> "asyncio.Future[None]":
        """The future has a result when the stream has ended, one way or the other."""
        self._stream, self._tail = stream, b""
        self._done = asyncio.get_running_loop().create_future()
        stream.late = time.monotonic() - stream.started
        self._transport.write(request)
        return self._done

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
        self._end()

    def _fail(self, error: str) -> None:
        if self._stream is not None:
            self._stream.error = error
        self.close()
        self._end()

    def _end(self) -> None:
        self.used = time.monotonic()
        if self._stream is not None:
            self._stream.ended, self._stream = self.used, None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def close(self) -> None:
        self._transport.close()

    def abandon(self) -> None:
        """Its stream is no longer ours to judge."""
        self._stream = None
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._fail(f"the stream ended early: {exc}")

"""A server that does nothing but stream: what the load generator takes at most, found out where it is used.

`python -m ops.bench.gpu.null_server PORT` answers a chat completion with as many events as tokens are wanted, in the
form and size of vLLM's: round after round, each of its streams gets its next event. `null_servers` starts several.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

import uvloop

from ops.bench.direct_engine import BenchFailed
from ops.own_session import free_port

_START_S = 20.0
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-000000000000000000000000000000","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"null","choices":[{"index":0,"delta":{"content":" bedaqo"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens": *(\d+)')


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _end(tokens: int) -> bytes:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":%d,"total_tokens":0}}\n\n' % tokens
    return _chunk(usage) + _chunk(b"data: [DONE]\n\n") + _chunk(b"")


class _Stream(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self, open_streams: set[_Stream]) -> None:
        self._open = open_streams
        self._received = b""
        self._tokens = self._sent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length, tokens = _LENGTH.search(head), _TOKENS.search(body)
        if length and tokens and len(body) >= int(length[1]):
            self._received, self._tokens, self._sent = b"", int(tokens[1]), 0
            self._transport.write(_HEAD)
            self._open.add(self)

    def step(self) -> None:
        self._sent += 1
        self._transport.write(_chunk(_EVENT))
        if self._sent >= self._tokens:
            self._transport.write(_end(self._tokens))
            self._open.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)


async def _serve(port: int) -> None:
    open_streams: set[_Stream] = set()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: _Stream(open_streams), "127.0.0.1", port, reuse_port=True)
    while True:
        for stream in list(open_streams):
            stream.step()
        await asyncio.sleep(0 if open_streams else 0.001)


@contextmanager
def null_servers(processes: int) -> Iterator[str]:
    """So many of them behind one URL. BenchFailed: they do not answer."""
    port = free_port()
    running = [
        subprocess.Popen([sys.executable, "-m", "ops.bench.gpu.null_server", str(port)]) for _ in range(processes)
    ]
    try:
        limit = time.monotonic() + _START_S
        while not _answers(port):
            if time.monotonic() > limit:
                raise BenchFailed("the null server, which tells what the load generator takes, did not start")
            time.sleep(0.1)
        time.sleep(0.5)  # the others have begun at the same time
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in running:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))

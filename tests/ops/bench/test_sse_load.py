"""The load generator against a server of sockets: what it sends when, and what it makes of each answer."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from ops.bench.sse_load import run_load, run_open_load

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SHED = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\ncontent-length: 2\r\n\r\n{}"
BODY = {"model": "m", "messages": []}


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


class Server:
    """Answers each request as its number says; `step_s` between the events of a stream."""

    def __init__(self, step_s: float = 0.0, shed: int = -1, cut: int = -1) -> None:
        self.step_s, self.shed, self.cut = step_s, shed, cut
        self.requests: list[bytes] = []
        self.connections = 0

    @contextlib.asynccontextmanager
    async def listen(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.requests.append(head)
                number = len(self.requests) - 1
                if number == self.shed:
                    writer.write(SHED)
                    continue
                writer.write(HEAD)
                for token in range(3):
                    await asyncio.sleep(self.step_s)
                    writer.write(chunk(f'data: {{"delta":{{"content":"{token}"}}}}\n\n'))
                    if number == self.cut:
                        writer.close()
                        return
                writer.write(chunk('data: {"usage":{"completion_tokens":3}}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n")
        writer.close()


async def test_closed_loop_keeps_its_connections_and_sends_headers():
    server = Server()
    async with server.listen() as url:
        load = await run_load(url, [BODY] * 12, 3, {"x-slo-ttft-ms": "5"})
    assert (load.tokens, load.errors, len(load.streams)) == (36, [], 12)
    assert server.connections == 3 and all(b"x-slo-ttft-ms: 5\r\n" in head for head in server.requests)


async def test_open_loop_waits_for_nobody():
    server = Server(step_s=0.1)
    async with server.listen() as url:
        began = time.monotonic()
        load = await run_open_load(url, [(0.0, BODY), (0.05, BODY), (0.1, BODY)], 5.0)
    assert load.tokens == 9 and server.connections == 3 and time.monotonic() - began < 1.0
    starts = [stream.started - load.streams[0].started for stream in load.streams]
    assert starts == pytest.approx([0.0, 0.05, 0.1])
    for stream in load.streams:
        assert 0.1 <= stream.ttft < 0.2 and 0.09 <= stream.tpot < 0.15 and 0 <= stream.late < 0.05


async def test_a_connection_serves_one_request_after_the_other():
    server = Server()
    async with server.listen() as url:
        load = await run_open_load(url, [(0.0, BODY), (0.1, BODY)], 5.0)
    assert load.tokens == 6 and server.connections == 1


async def test_shed_and_broken_streams_are_told_apart():
    server = Server(shed=0, cut=1)
    async with server.listen() as url:
        load = await run_open_load(url, [(0.0, BODY), (0.1, BODY), (0.2, BODY)], 5.0)
    shed, cut, well = load.streams
    assert shed.shed and "ended early" in cut.error and not cut.shed and (well.tokens, well.error) == (3, "")


async def test_who_never_ends_is_an_error():
    server = Server(step_s=1.0)
    async with server.listen() as url:
        load = await run_open_load(url, [(0.0, BODY)], 0.2)
    assert "did not end within 0.2 s" in load.streams[0].error and load.seconds < 5.0


async def test_nobody_there_is_an_error():
    load = await run_open_load("http://127.0.0.1:9", [(0.0, BODY)], 5.0)
    assert load.streams[0].error.startswith("no connection")

"""The wire: framing, the token, and what happens to peers that break the rules."""

import asyncio
import socket
import struct
import time
from array import array
from collections.abc import AsyncIterator

import psutil
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from scripted_core import until

from replicas import wire
from replicas.wire import Connection, Kind, Parser, ThreadedConnection, WireError, pack

MESSAGES = st.lists(st.tuples(st.sampled_from(Kind), st.lists(st.binary(max_size=40), max_size=5)), max_size=6)


def packed(kind: Kind, *buffers: bytes) -> bytes:
    return b"".join(pack(kind, buffers))


@given(MESSAGES, st.data())
def test_messages_arrive_however_the_stream_is_cut(messages, data):
    stream = b"".join(packed(kind, *buffers) for kind, buffers in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser = Parser()
    got = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += parser.feed(stream[begin:end])
    assert got == messages


def test_a_message_that_came_is_handed_on_before_the_next_one_is_complete():
    parser = Parser()
    first, second = packed(Kind.FRAME, b"1"), packed(Kind.FRAME, b"2")
    assert list(parser.feed(first + second[:-1])) == [(Kind.FRAME, [b"1"])]
    assert list(parser.feed(second[-1:])) == [(Kind.FRAME, [b"2"])]


def test_arrays_travel_as_their_bytes():
    numbers = memoryview(array("i", range(6)))
    matrix = numbers.cast("B").cast("i", (2, 3))
    assert list(Parser().feed(packed(Kind.FRAME, numbers, matrix, bytearray(b"x")))) == [
        (Kind.FRAME, [numbers.tobytes(), numbers.tobytes(), b"x"])
    ]


def test_a_step_of_a_large_batch_fills_thousands_of_buffers():
    """vLLM gives three buffers to each request that wants its prompt's logprobs."""
    buffers = [bytes([n % 251]) for n in range(3 * 1024)]
    assert list(Parser().feed(packed(Kind.FRAME, *buffers))) == [(Kind.FRAME, buffers)]


BROKEN = {
    "too large": struct.pack("<IBH", wire.MAX_MESSAGE_BYTES + 1, Kind.FRAME, 0),
    "unknown kind": struct.pack("<IBH", 0, len(Kind), 0),
    "more buffers than bytes": struct.pack("<IBH", 4, Kind.FRAME, 2),
    "buffers longer than the message": struct.pack("<IBHI", 5, Kind.FRAME, 1, 2) + b"x",
    "buffers shorter than the message": struct.pack("<IBHI", 6, Kind.FRAME, 1, 1) + b"xy",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_no_peer_sends_is_an_error_after_what_was_right(broken):
    got = []
    with pytest.raises(WireError):
        for message in Parser().feed(packed(Kind.ABORT, b"ok") + broken):
            got.append(message)
    assert got == [(Kind.ABORT, [b"ok"])]


class Replica:
    """The replica's side: a server that notes what is handed on."""

    def __init__(self, connect: type[Connection]) -> None:
        self._connect = connect
        self.connections: list[Connection] = []
        self.got: list[tuple[Kind, list[bytes]]] = []
        self.lost = 0
        self.port = 0
        self.close_at: bytes | None = None

    def accept(self) -> Connection:
        self.connections.append(self._connect(self.on_message, self.on_lost, expect_token="secret"))
        return self.connections[-1]

    def on_message(self, connection: Connection, kind: Kind, buffers: list[bytes]) -> None:
        self.got.append((kind, buffers))
        if self.close_at in buffers:
            connection.close()

    def on_lost(self, connection: Connection) -> None:
        assert connection in self.connections
        self.lost += 1


@pytest.fixture(params=[Connection, ThreadedConnection])
async def replica(request: pytest.FixtureRequest) -> AsyncIterator[Replica]:
    replica = Replica(request.param)
    server = await asyncio.get_running_loop().create_server(replica.accept, "127.0.0.1", 0)
    replica.port = server.sockets[0].getsockname()[1]
    yield replica
    for connection in replica.connections:
        connection.close()
    server.close()


async def dial(replica: Replica, *messages: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    writer.write(b"".join(messages))
    return reader, writer


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the peer closes without having said anything."""
    try:
        return await asyncio.wait_for(reader.read(), 2) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


HELLO = packed(Kind.HELLO, b"secret")
ADD = packed(Kind.ADD, b"request")


async def test_the_token_opens_and_is_not_handed_on(replica):
    reader, writer = await dial(replica, HELLO[:9])
    await asyncio.sleep(0.02)
    writer.write(HELLO[9:] + ADD)
    await until(lambda: replica.got)
    replica.connections[0].send(Kind.FRAME, [b"tokens"])
    assert await reader.readexactly(len(packed(Kind.FRAME, b"tokens"))) == packed(Kind.FRAME, b"tokens")
    assert replica.got == [(Kind.ADD, [b"request"])]
    writer.close()


@pytest.mark.parametrize(
    "first",
    [packed(Kind.HELLO, b"wrong"), packed(Kind.HELLO), packed(Kind.HELLO, b""), packed(Kind.ADD, b"secret"), b""],
    ids=["wrong", "none", "empty", "wrong kind", "no hello"],
)
async def test_without_the_token_nothing_is_handed_on(replica, first):
    reader, writer = await dial(replica, first, ADD, HELLO, ADD)
    assert await closed(reader)
    assert (replica.got, replica.lost) == ([], 1)
    writer.close()


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_a_peer_that_breaks_the_format_is_dropped(replica, broken):
    reader, writer = await dial(replica, HELLO, ADD, broken, ADD)
    assert await closed(reader)
    assert (replica.got, replica.lost) == ([(Kind.ADD, [b"request"])], 1)
    writer.close()


async def test_nothing_is_handed_on_after_closing(replica):
    replica.close_at = b"last"
    reader, writer = await dial(replica, HELLO, ADD, packed(Kind.ADD, b"last"), ADD)
    assert await closed(reader)
    assert [buffers for _, buffers in replica.got] == [[b"request"], [b"last"]]
    writer.close()


async def test_a_peer_that_does_not_read_is_dropped(replica, monkeypatch):
    monkeypatch.setattr(wire, "MAX_UNSENT_BYTES", 1 << 20)
    _, writer = await dial(replica, HELLO, ADD)  # a StreamReader stops reading at 128 KiB
    await until(lambda: replica.got)
    sent = 0
    while not replica.lost:
        replica.connections[0].send(Kind.FRAME, [bytes(1 << 18)])
        sent += 1 << 18
        assert sent < 1 << 26
        await asyncio.sleep(0)
    assert sent > 1 << 20
    writer.close()


async def test_a_slow_but_reading_peer_is_not_dropped(replica, monkeypatch):
    monkeypatch.setattr(wire, "MAX_UNSENT_BYTES", 1 << 20)
    reader, writer = await dial(replica, HELLO, ADD)
    await until(lambda: replica.got)
    message = packed(Kind.FRAME, bytes(1 << 18))
    for _ in range(40):
        replica.connections[0].send(Kind.FRAME, [bytes(1 << 18)])
        assert await reader.readexactly(len(message)) == message
    assert replica.lost == 0
    writer.close()


async def test_sending_on_a_lost_connection_does_nothing(replica):
    reader, writer = await dial(replica, HELLO, ADD)
    await until(lambda: replica.got)
    (connection,) = replica.connections
    connection.close()
    connection.send(Kind.FRAME, [b"closing"])
    assert await closed(reader)
    connection.send(Kind.FRAME, [b"closed"])
    connection.close()
    assert replica.lost == 1
    type(connection)(replica.on_message, replica.on_lost).send(Kind.FRAME, [b"never connected"])
    writer.close()


async def test_every_kind_of_buffer_is_sent(replica):
    reader, writer = await dial(replica, HELLO, ADD)
    await until(lambda: replica.got)
    matrix = memoryview(array("i", range(600))).cast("B").cast("i", (20, 30))
    buffers = [b"", matrix, bytearray(b"x"), memoryview(b"")]
    replica.connections[0].send(Kind.FRAME, buffers)
    message = packed(Kind.FRAME, *buffers)
    assert await reader.readexactly(len(message)) == message
    writer.close()


async def test_a_host_that_vanishes_is_noticed(replica):
    _, writer = await dial(replica, HELLO, ADD)
    await until(lambda: replica.got)
    peer = replica.connections[0]._transport.get_extra_info("socket")
    options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
    assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert [peer.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [4, 2, 3, 10_000]
    writer.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_another_thread_sends_in_order_however_slowly_the_peer_reads(loop):
    """The kernel's buffers fill, the event loop takes over, they drain, and fill again."""
    got: list[bytes] = []
    sizes = [1, 70_000, 5, 3_000_000, 12, 400_000, 1]

    async def main() -> None:
        replica = Replica(ThreadedConnection)
        server = await asyncio.get_running_loop().create_server(replica.accept, "127.0.0.1", 0)
        replica.port = server.sockets[0].getsockname()[1]
        reader, writer = await dial(replica, HELLO, ADD)
        await until(lambda: replica.got)
        (connection,) = replica.connections
        frames = [bytes([n % 251]) * sizes[n % len(sizes)] for n in range(60)]

        def send() -> None:
            for n, frame in enumerate(frames):
                connection.send(Kind.FRAME, [frame])
                if n % 20 == 19:
                    time.sleep(0.05)  # the peer catches up

        sending = asyncio.get_running_loop().run_in_executor(None, send)
        parser = Parser()
        while len(got) < len(frames):
            for _, [frame] in parser.feed(await asyncio.wait_for(reader.read(1 << 16), 10)):
                got.append(frame)
        await sending
        assert got == frames
        connection.send(Kind.FRAME, [b"at once again"])
        assert await asyncio.wait_for(reader.read(1 << 16), 10) == packed(Kind.FRAME, b"at once again")
        descriptors = psutil.Process().num_fds()
        writer.close()
        await until(lambda: psutil.Process().num_fds() == descriptors - 3)  # the client's, the transport's and our own
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())

"""The token path's transport: typed messages of opaque buffers over one TCP connection per gateway and replica.

Why not Ray for this hop: a Ray streaming generator costs the receiver 0.9 ms of CPU and 1.2 ms of latency a frame on
two CPU cores, this connection 0.14 ms and 0.2 ms (`moray bench transport`); and a killed replica closes it at
once, so that its streams resume within milliseconds, before anybody's health check notices. Ray stays the control
plane: it starts, places, watches and restarts the processes, and hands out addresses and tokens.

Format: little-endian header (length of what follows: u32, kind: u8, buffers: u16), the buffers' lengths (u32 each),
the buffers. What is in the buffers is the two ends' affair: vLLM's msgpack puts each larger array (a prompt's logprobs
are three) in a buffer of its own, so that one step of a large batch fills hundreds.
"""

import asyncio
import enum
import hmac
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, cast

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_MESSAGE_BYTES = 256 << 20  # an honest peer's largest prompt with logprobs is far below
MAX_UNSENT_BYTES = 64 << 20  # a gateway that stopped reading is dropped before it costs the replica its memory

# A host that vanishes (power, network) says nothing: without these its streams would hang for the kernel's 15 minutes.
SILENT_PEER_S = 10  # seconds in which a peer's kernel must acknowledge what was sent
PROBE_IDLE_S, PROBE_INTERVAL_S, PROBES = 4, 2, 3  # an idle peer is asked for a sign of life: 4 + 3 * 2 = 10 s

_HEADER = struct.Struct("<IBH")
_LENGTH = struct.Struct("<I")


class Kind(enum.IntEnum):
    """What a message is; in brackets who sends it and its buffers."""

    HELLO = 0  # gateway: [token]
    ADD = 1  # gateway: [request, ...] of one request
    ABORT = 2  # gateway: [msgpack list of request ids]
    FRAME = 3  # replica: [outputs, ...] of one engine step
    REJECTED = 4  # replica: [msgpack (request id, reason)], the core refused to take it
    OUTBOX = 5  # gateway, to the router: [msgpack Outbox or Resync]
    INBOX = 6  # router: [msgpack Inbox]
    RESUME = 7  # gateway: [msgpack list of the output token ids that it has, request, ...] of one request
    GIVE_BACK = 8  # gateway: [msgpack list of request ids], to be stopped: it takes them elsewhere
    GIVEN_BACK = 9  # replica: [the same list]; no frame has anything of them from here on
    ALIVE = 10  # replica: [], a step has ended, even if nothing came out of it for this gateway
    LEAVING = 11  # replica: [], it stops by its own will: what yet runs here has no part in its end


class WireError(Exception):
    """The peer broke the format; the connection is closed."""


def pack(kind: Kind, buffers: Sequence[Buffer]) -> list[Buffer]:
    """One message, ready for `writelines`; buffers are not copied."""
    lengths = [len(b) if isinstance(b, bytes) else memoryview(b).nbytes for b in buffers]
    body = len(lengths) * _LENGTH.size + sum(lengths)
    head = _HEADER.pack(body, kind, len(lengths)) + b"".join(_LENGTH.pack(n) for n in lengths)
    return [head, *buffers]


class Parser:
    """Cuts a byte stream into messages, however TCP cut it before."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: Buffer) -> Iterator[tuple[Kind, list[bytes]]]:
        """Yields each message that `data` completes. Raises WireError on a length or kind that no peer sends."""
        self._data += data
        start = 0
        try:
            while len(self._data) - start >= _HEADER.size:
                body, kind, count = _HEADER.unpack_from(self._data, start)
                if body > MAX_MESSAGE_BYTES or kind >= len(Kind) or count * _LENGTH.size > body:
                    raise WireError(f"not a Moray message: kind {kind}, {count} buffers, {body} bytes")
                end = start + _HEADER.size + body
                if len(self._data) < end:
                    break
                yield Kind(kind), self._buffers(start + _HEADER.size, count, end)
                start = end
        finally:
            del self._data[:start]

    def _buffers(self, at: int, count: int, end: int) -> list[bytes]:
        lengths = [_LENGTH.unpack_from(self._data, at + i * _LENGTH.size)[0] for i in range(count)]
        at += count * _LENGTH.size
        if at + sum(lengths) != end:
            raise WireError("a message's buffers do not fill it")
        buffers = []
        for length in lengths:
            buffers.append(bytes(memoryview(self._data)[at : at + length]))
            at += length
        return buffers


class Connection(asyncio.Protocol):
    """One end of a connection; all on its event loop.

    `on_message(connection, kind, buffers)` runs on the event loop for each message, `on_lost(connection)` once.
    """

    def __init__(
        self,
        on_message: "Callable[[Connection, Kind, list[bytes]], None]",
        on_lost: "Callable[[Connection], None]",
        expect_token: str | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._expect_token = expect_token  # set on the replica's side until the gateway has shown it
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        if self._closed:  # between its creation and now
            self._transport.abort()
            return
        _notice_silence(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        try:
            for kind, buffers in self._parser.feed(data):
                if self._expect_token is not None:
                    self._check_hello(kind, buffers)
                else:
                    self._on_message(self, kind, buffers)
                if self._closed:  # by the message just handled: what came after it is not
                    return
        except WireError:
            self.close()

    def _check_hello(self, kind: Kind, buffers: list[bytes]) -> None:
        assert self._expect_token is not None
        if kind is not Kind.HELLO or not buffers or not hmac.compare_digest(buffers[0], self._expect_token.encode()):
            raise WireError("the peer did not show this replica's token")
        self._expect_token = None

    @property
    def is_trusted(self) -> bool:
        """Whether the peer has shown the token, if one is asked for."""
        return self._expect_token is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self)

    def send(self, kind: Kind, buffers: Sequence[Buffer]) -> None:
        """Queues one message; nothing is sent on a connection that is gone (on_lost has told or will tell)."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.writelines(pack(kind, buffers))
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            transport.abort()

    def close(self) -> None:
        self._closed = True
        if self._transport is not None:
            self._transport.abort()


class ThreadedConnection(Connection):
    """A connection that another thread may send on: what the kernel takes at once never comes by the event loop.

    A loop in a second thread would have to be woken for each frame, and then to wait for the GIL: with the embedded
    model a token left its core 0.7 ms later.
    """

    _fd = -1  # the socket; -1: it is closed, or not open yet
    _handed_over = 0  # messages on their way to the loop
    _unsent = False  # the loop has some, or is about to: what is new must not overtake them

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._lock = threading.Lock()  # of these three
        self._loop = asyncio.get_running_loop()
        self._fd = os.dup(transport.get_extra_info("socket").fileno())  # ours, whatever the transport does with its own
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        with self._lock:
            os.close(self._fd)
            self._fd = -1
        super().connection_lost(exc)

    def send(self, kind: Kind, buffers: Sequence[Buffer]) -> None:
        if self._fd < 0:
            return
        parts = pack(kind, buffers)
        with self._lock:
            if self._fd < 0 or self._closed:
                return
            if not self._unsent:
                data = b"".join(parts)
                sent = _sent_at_once(self._fd, data)
                if sent == len(data):
                    return
                self._unsent, parts = True, [memoryview(data)[sent:]]
            self._handed_over += 1
        self._loop.call_soon_threadsafe(self._send_by_loop, parts)

    def _send_by_loop(self, parts: Sequence[Buffer]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(parts)
            if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                self._transport.abort()
        with self._lock:
            self._handed_over -= 1
        self.resume_writing()

    def resume_writing(self) -> None:
        """The transport calls it when all has left."""
        with self._lock:
            if self._handed_over == 0 and self._transport is not None:
                self._unsent = self._transport.get_write_buffer_size() > 0


def _sent_at_once(fd: int, data: bytes) -> int:
    """Bytes that the kernel took."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:  # the connection is gone; the loop will tell
        return len(data)


def _notice_silence(peer: socket.socket) -> None:
    """Has the kernel close the connection when the peer's host has vanished."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_IDLE_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_PEER_S * 1000)

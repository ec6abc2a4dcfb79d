"""Runs one engine core and speaks with its gateways: the same code in a thread of the replica or in its own process.

Two threads. The *engine thread* (the caller's own) owns the core: it takes commands, steps, encodes and sends. The
*I/O thread* runs an event loop that accepts the gateways' connections and queues what they say. The core is never
shared.

The replica is at the other end of a `multiprocessing.Pipe`, whichever thread or process it is in: `Ready`, `CoreLoad`,
`Routed`, `ReloadEnded`, `Answers` and `Failed` go up, `Reload`, `RunProbes` and `Stop` come down. A pipe that closes
means that the replica is gone, and the core goes with it.
"""

import asyncio
import contextlib
import logging
import os
import queue
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple

import msgspec
import numpy as np
import uvloop
from numpy.typing import NDArray

from experts.linux import name_thread
from experts.placement import ShardPlacement
from replicas.core import CoreLoad, EngineCore, Probed, ReloadFailed, RequestRejected
from replicas.messages import Capacity, Probe
from replicas.wire import Buffer, Connection, Kind, ThreadedConnection

logger = logging.getLogger(__name__)

IDLE_LOOK_S = 1.0
LOAD_INTERVAL_S = 0.05  # a report on change, at most 20 times a second: what the router's decisions need
ROUTED_INTERVAL_S = 5.0  # asking the workers stops a step or two: of a busy engine's time, under a hundredth
ALIVE_INTERVAL_S = 0.5  # a long prompt takes many steps that output nothing: gateways must not take us for hung
LEAVING_GRACE_S = 0.05  # seconds in which the last words leave our sockets


class Ready(NamedTuple):
    """The core has loaded and listens."""

    port: int
    token: str
    pid: int
    capacity: Capacity
    shards: tuple[ShardPlacement, ...]
    checksum: str = ""  # of the loaded weights; "": not known


class Routed(NamedTuple):
    """What each expert was given since the core's start: tokens by [MoE layer, expert]."""

    tokens: NDArray[np.int64]
    shards: tuple[ShardPlacement, ...] | None = None  # which hold the experts now, where that changes


class Failed(NamedTuple):
    """The core could not load, or died. `reason` is one sentence, `detail` the traceback for the log."""

    reason: str
    detail: str


class Stop(NamedTuple):
    """The replica wants the core to end."""


class Reload(NamedTuple):
    """The replica wants other weights served, as `EngineCore.reload`. What runs yet is cut off, to resume elsewhere."""

    directory: str
    expected: str = ""  # digest


class ReloadEnded(NamedTuple):
    """The answer: gateways that were connected are no more, and are let in again by another token only."""

    token: str
    checksum: str = ""
    shards: tuple[ShardPlacement, ...] = ()
    failure: str = ""  # why other weights are not served, a sentence
    touched: bool = False  # as in `ReloadFailed`


class RunProbes(NamedTuple):
    """The replica wants to know what the core answers, as `EngineCore.probe`."""

    probes: tuple[Probe, ...]


class Answers(NamedTuple):
    """They are in the order of the probes."""

    probed: list[Probed]


class _Add(NamedTuple):
    client: int
    request: Sequence[Buffer]
    delivered: Sequence[int] = ()


class _Abort(NamedTuple):
    request_ids: Sequence[str]
    tell: int | None = None  # the client that waits to hear of it


class _Gone(NamedTuple):
    """A gateway's connection closed: all its requests are aborted."""

    client: int


_Command = _Add | _Abort | _Gone | Reload | RunProbes | Stop


def host_core(build: Callable[[], EngineCore], pipe: Pipe, listen: str) -> None:
    """Builds the core in this thread and serves until told to stop, the replica goes, or the core dies.

    `listen` is the address that gateways reach this host by; the port is the system's choice, the token a fresh secret.
    """
    name_thread("engine")
    try:
        core = build()
    except BaseException as error:
        _tell(pipe, Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))
        hang_up(pipe)
        return
    host = _CoreHost(core, pipe)
    try:
        port = host.listen(listen)
        _tell(pipe, Ready(port, host.token, os.getpid(), core.capacity, core.placement(), core.checksum))
        host.run()
    except BaseException as error:
        logger.exception("The engine core died.")
        _tell(pipe, Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))
    finally:
        host.close()
        core.shutdown()
        hang_up(pipe)


def _tell(pipe: Pipe, message: Ready | Failed | CoreLoad | Routed | ReloadEnded | Answers) -> None:
    with contextlib.suppress(OSError):  # the replica is gone; run() notices by itself
        pipe.send(message)


def hang_up(pipe: Pipe) -> None:
    """Ends the pipe for both ends: whoever waits for a message, there or here in another thread, gets an EOFError.

    To close it instead would leave a reader in this process waiting, on a descriptor that may soon be somebody else's.
    """
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


class _CoreHost:
    def __init__(self, core: EngineCore, pipe: Pipe) -> None:
        self._core = core
        self._pipe = pipe
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._loop = uvloop.new_event_loop()
        self._io: threading.Thread | None = None
        self._connections: dict[int, Connection] = {}  # the I/O thread's; the engine thread looks up what it sends to
        self.token = secrets.token_hex(16)  # that gateways must show; set by the I/O thread once it runs
        # I/O thread only:
        self._closing = asyncio.Event()
        self._clients: dict[Connection, int] = {}
        self._next_client = 0
        # Engine thread only:
        self._open: dict[int, set[str]] = {}  # client -> requests that have not ended
        self._first_client = 0  # those before it were cut off: what they have asked for is not run any more
        self._last_load = CoreLoad(0, 0, 0.0)
        self._last_report = 0.0
        self._last_alive = 0.0
        self._last_routed = 0.0
        self._has_routed = False  # since the report before
        self._is_leaving = False  # set by the thread that watches the replica

    # -- engine thread ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take commands, step, hand out frames; until stopped."""
        while self._take_commands():
            self._report_load()  # before the step, which may hang: the replica must know that there is something to do
            outputs = self._core.step()
            if outputs:
                for output in outputs:
                    self._open.get(output.client, set()).difference_update(output.finished)
                for client, frame, _ in outputs:
                    self._send(client, Kind.FRAME, frame)
            self._say_alive({output.client for output in outputs})
            self._has_routed = True
            self._report_routed()

    def _take_commands(self) -> bool:
        """Handles what has come; waits while the core has nothing to do. False: stop."""
        while True:
            idle = not self._core.has_work()
            if idle:
                self._report_load(now_idle=True)
            try:
                # An idle core looks up now and then: its workers may have died meanwhile, which is work.
                command = self._commands.get(block=idle, timeout=IDLE_LOOK_S)
            except queue.Empty:
                if idle:
                    _tell(self._pipe, self._last_load)  # nothing new, but one that hangs says nothing
                    self._report_routed(now_idle=True)
                    continue
                return True
            if isinstance(command, Stop):
                return False
            self._handle(command)

    def _handle(self, command: _Add | _Abort | _Gone | Reload | RunProbes) -> None:
        if isinstance(command, Reload):
            self._reload(command)
        elif isinstance(command, RunProbes):
            _tell(self._pipe, Answers(self._core.probe(command.probes)))
        elif isinstance(command, _Add):
            if command.client < self._first_client:
                return
            try:
                request_id = self._core.add(command.client, command.request, command.delivered)
            except RequestRejected as error:
                reply = msgspec.msgpack.encode((error.request_id, str(error)))
                self._send(command.client, Kind.REJECTED, [reply])
            else:
                self._open.setdefault(command.client, set()).add(request_id)
        elif isinstance(command, _Abort):
            self._core.abort(command.request_ids)
            for requests in self._open.values():
                requests.difference_update(command.request_ids)
            if command.tell is not None:
                ids = msgspec.msgpack.encode(command.request_ids)
                self._send(command.tell, Kind.GIVEN_BACK, [ids])
        elif requests := self._open.pop(command.client, set()):
            self._core.abort(sorted(requests))

    def _reload(self, command: Reload) -> None:
        cut_off: queue.SimpleQueue[int] = queue.SimpleQueue()
        asyncio.run_coroutine_threadsafe(self._cut_off(cut_off), self._loop)
        self._first_client = cut_off.get()
        self._core.abort([request_id for requests in self._open.values() for request_id in requests])
        self._open.clear()
        while self._core.has_work():  # steps that were under way, and what an abort leaves to do
            self._core.step()
        try:
            checksum = self._core.reload(command.directory, command.expected)
        except ReloadFailed as error:
            ended = ReloadEnded(self.token, failure=str(error), touched=error.touched)
        else:
            ended = ReloadEnded(self.token, checksum, self._core.placement())
        _tell(self._pipe, ended)

    def _report_load(self, now_idle: bool = False) -> None:
        now = time.monotonic()
        if not now_idle and now - self._last_report < LOAD_INTERVAL_S:
            return
        load = self._core.load()
        if load != self._last_load:
            self._last_load, self._last_report = load._replace(stored=(), removed=()), now
            _tell(self._pipe, load)

    def _report_routed(self, now_idle: bool = False) -> None:
        now = time.monotonic()
        if self._has_routed and (now_idle or now - self._last_routed >= ROUTED_INTERVAL_S):
            self._last_routed, self._has_routed = now, False
            if (tokens := self._core.routed_tokens()) is not None:
                _tell(self._pipe, Routed(tokens, self._core.placement() if self._core.moves_experts else None))

    def _say_alive(self, heard: set[int]) -> None:
        now = time.monotonic()
        if now - self._last_alive >= ALIVE_INTERVAL_S:
            self._last_alive = now
            for client, requests in self._open.items():
                if requests and client not in heard:
                    self._send(client, Kind.ALIVE, [])

    def _send(self, client: int, kind: Kind, buffers: Sequence[Buffer]) -> None:
        if connection := self._connections.get(client):
            connection.send(kind, buffers)

    # -- I/O thread ---------------------------------------------------------------------------------------------------

    def listen(self, address: str) -> int:
        """Opens the port and starts the I/O thread; returns the port."""
        started: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
        self._io = threading.Thread(target=self._serve, args=(address, started), name="core-io", daemon=True)
        self._io.start()
        threading.Thread(target=self._watch_replica, name="core-replica-watch", daemon=True).start()
        port = started.get()
        if isinstance(port, Exception):
            raise port
        return port

    def _serve(self, address: str, started: "queue.SimpleQueue[int | Exception]") -> None:
        name_thread("core-io")
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._accept_until_closed(address, started))

    async def _accept_until_closed(self, address: str, started: "queue.SimpleQueue[int | Exception]") -> None:
        try:
            server = await self._loop.create_server(self._accept, address, 0)
        except Exception as error:
            started.put(error)
            return
        started.put(int(server.sockets[0].getsockname()[1]))
        await self._closing.wait()
        server.close()
        if self._is_leaving:
            await self._say_last_words()
        for connection in list(self._connections.values()):
            connection.close()

    async def _cut_off(self, done: "queue.SimpleQueue[int]") -> None:
        """Closes every connection, so that what is asked for over one is never run with other weights, and lets in
        again only who knows the new token. Tells the number that the next client will have.
        """
        self.token = secrets.token_hex(16)
        await self._say_last_words()
        for connection in list(self._connections.values()):
            connection.close()
        done.put(self._next_client)

    async def _say_last_words(self) -> None:
        """That we end the connections by our own will."""
        trusted = [connection for connection in self._connections.values() if connection.is_trusted]
        for connection in trusted:
            connection.send(Kind.LEAVING, [])
        if trusted:
            await asyncio.sleep(LEAVING_GRACE_S)

    def _accept(self) -> Connection:
        connection = ThreadedConnection(self._on_message, self._on_lost, expect_token=self.token)
        self._clients[connection], self._connections[self._next_client] = self._next_client, connection
        self._next_client += 1
        return connection

    def _on_message(self, connection: Connection, kind: Kind, buffers: list[bytes]) -> None:
        if kind is Kind.ADD:
            self._commands.put(_Add(self._clients[connection], buffers))
        elif kind is Kind.RESUME:
            delivered = msgspec.msgpack.decode(buffers[0], type=list[int])
            self._commands.put(_Add(self._clients[connection], buffers[1:], delivered))
        elif kind in (Kind.ABORT, Kind.GIVE_BACK):
            tell = self._clients[connection] if kind is Kind.GIVE_BACK else None
            self._commands.put(_Abort(msgspec.msgpack.decode(buffers[0], type=list[str]), tell))

    def _on_lost(self, connection: Connection) -> None:
        client = self._clients.pop(connection)
        del self._connections[client]
        self._commands.put(_Gone(client))

    # -- the replica --------------------------------------------------------------------------------------------------

    def _watch_replica(self) -> None:
        """Hands on what the replica wants, and ends the core when it says so or is gone."""
        with contextlib.suppress(EOFError, OSError):
            while not isinstance(command := self._pipe.recv(), Stop):
                self._commands.put(command)
            self._is_leaving = True
        self._commands.put(Stop())

    def close(self) -> None:
        """Closes every connection: gateways resume elsewhere what was still running here."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it never listened
            self._loop.call_soon_threadsafe(self._closing.set)
        if self._io is not None:
            self._io.join(timeout=1)

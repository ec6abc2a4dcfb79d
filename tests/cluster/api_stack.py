"""vLLM's OpenAI app over ClusterCore and one real core, without Ray and without a port."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

import httpx
from local_router import LocalRouter

from cluster.app import engine_spec, gateway_spec
from cluster.config import load
from replicas.core_host import Ready, Stop, host_core
from replicas.engine_host import build_core, core_environment
from replicas.messages import ReplicaInfo

OVERRIDES = {
    "experts.expert_parallel": 1,
    "engine.host": "thread",
    # Other tests have loaded torch by now, with a thread for each CPU; on one CPU they would wait for each other.
    "engine.own_cpu": False,
    "model.tool_call_parser": "hermes",
    "metrics.enabled": False,  # a process has one registry, and pytest's may have several stacks in turn
}


S = TypeVar("S", bound="Stack")


class Stack:
    """A gateway's app, its router and its one replica."""

    def __init__(self, version: str = "", no_replica_wait_s: float = 10.0) -> None:
        """`version`: of the model, that the replica says it has."""
        self._version, self._no_replica_wait_s = version, no_replica_wait_s
        settings = load(None, {}, OVERRIDES).settings
        self._spec, self._gateway = engine_spec(settings), gateway_spec(settings)
        os.environ.update(core_environment(self._spec))
        self._pipe, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(
            target=host_core, args=(partial(build_core, self._spec), theirs, "127.0.0.1"), daemon=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.client: httpx.AsyncClient
        self.app: Any
        self.core: Any

    def _read(self) -> None:
        """As a replica does: a pipe that nobody reads fills with load reports, and the engine stands still."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._pipe.recv()

    async def start(self) -> None:
        from cluster.gateway import build_app

        self._thread.start()
        ready = await asyncio.to_thread(self._pipe.recv)
        assert isinstance(ready, Ready), ready
        self._reader.start()
        info = ReplicaInfo(
            replica_id="r",
            epoch=1,
            host="127.0.0.1",
            port=ready.port,
            token=ready.token,
            model="tiny-r1",
            version=self._version,
            engine_pid=ready.pid,
            engine_host="thread",
            device="cpu",
            capacity=ready.capacity,
            shards=ready.shards,
        )
        self.router = LocalRouter(self._no_replica_wait_s)
        self.router.alive.append(info)
        app: Any = await build_app(self._gateway, self.router)  # type: ignore[arg-type]
        self.app = app._app
        self.core = self.app.state.engine_client.engine_core
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://moray", timeout=60)

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        reply = await self.client.post(path, json={"model": "tiny-r1", **body})
        assert reply.status_code == 200, reply.text
        return reply

    async def at(self, tokens: int, act: Callable[[], None]) -> None:
        """Calls `act` with the very frame by which some request has so many tokens.

        Who looks now and then may look too late: on a busy machine a whole answer comes in one turn of the loop.
        """
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        take = self.core._on_frame

        def on_frame(peer: Any, buffers: list[bytes]) -> None:
            take(peer, buffers)
            if not reached.done() and any(len(live.delivered) >= tokens for live in self.core._live.values()):
                act()
                reached.set_result(None)

        self.core._on_frame = on_frame
        try:
            async with asyncio.timeout(20):
                await reached
        finally:
            del self.core._on_frame

    def cut(self) -> None:
        """Loses the replica."""
        for peer in list(self.core._peers.values()):
            peer.connection.close()

    async def cut_at(self, tokens: int) -> None:
        """The same once some request has so many tokens."""
        await self.at(tokens, self.cut)

    async def close(self) -> None:
        await self.client.aclose()
        self.core.shutdown()
        self.router._ticking.cancel()
        self._pipe.send(Stop())
        await asyncio.to_thread(self._thread.join, 10)
        await asyncio.to_thread(self._reader.join, 10)


@contextlib.asynccontextmanager
async def running(make: Callable[[], S]) -> AsyncIterator[S]:
    """A stack that is started, and closed in the end; the environment, which its engine changes, is as before then."""
    before = dict(os.environ)
    made = make()
    await made.start()
    yield made
    await made.close()
    os.environ.clear()
    os.environ.update(before)

"""A router for one gateway in this process, without Ray: the real `RouterState`, and its replicas' reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from cluster.batching import ContinuousBatcher, Policy
from cluster.draining import DrainRequest
from cluster.router_link import RouterGone
from cluster.router_state import RouterState
from cluster.scaling_window import ScalingWindow
from replicas.assignment import Assignment
from replicas.messages import Inbox, LoadReport, Outbox, ReplicaInfo, Resync


class LocalRouter:
    """The router actor and its replicas' reports, without Ray."""

    def __init__(self, no_replica_wait_s: float, max_queue: int = 1000) -> None:
        self.max_queue = max_queue
        self.no_replica_wait_s = no_replica_wait_s
        self.state = RouterState(ContinuousBatcher(Policy(no_replica_wait_s)), max_queue)
        self.alive: list[ReplicaInfo] = []
        self.gone = False
        self.resyncs = 0
        self.revision = 0  # of what was assigned last
        self._on_inbox: Callable[[Inbox], None] | None = None  # the gateway's connection, while it stands
        self._version = -1  # of the roster that the gateway was told
        self._ticking = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(0.01)

    def beat(self) -> None:
        if self.gone:
            return
        for info in self.alive:
            load = LoadReport(replica_id=info.replica_id, epoch=info.epoch, running=0, waiting=0, kv_used=0.0)
            if not self.state.report(load, time.monotonic()):
                self.state.join(info, time.monotonic())
        self._decide()

    def die(self) -> None:
        """Its connection breaks; what it knew is as it was until `restart`."""
        self.gone = True
        self._on_inbox = None
        self._on_gone()

    def restart(self) -> None:
        self.state = RouterState(ContinuousBatcher(Policy(self.no_replica_wait_s)), self.max_queue)
        self.gone = False

    async def connect(self, on_inbox: Callable[[Inbox], None], on_gone: Callable[[], None]) -> None:
        await asyncio.sleep(0)
        if self.gone:
            raise RouterGone("dead")
        self._on_inbox, self._on_gone, self._version = on_inbox, on_gone, -1

    def tell(self, message: Outbox | Resync) -> None:
        """As over a connection: copied, and handled in a later turn of the loop."""
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Outbox | Resync)
        asyncio.get_running_loop().call_soon(self._handle, sent)

    def _handle(self, message: Outbox | Resync) -> None:
        if self.gone:
            return
        self.resyncs += isinstance(message, Resync)
        self.state.take("g", message, time.monotonic())
        self._decide()

    def _decide(self) -> None:
        self.state.decide(time.monotonic())
        if self._on_inbox is not None:
            inbox, self._version = self.state.collect("g", self._version)
            if inbox is not None:
                self._on_inbox(msgspec.msgpack.decode(msgspec.msgpack.encode(inbox), type=Inbox))

    def assign(self, assignment: Assignment) -> None:
        """What is to be served from now on."""
        self.revision += 1
        self.state.assign(msgspec.structs.replace(assignment, revision=self.revision))
        self._decide()

    def scale(self) -> None:
        """From now on it watches the load for the autoscaling. To be called before anything joins."""
        window = ScalingWindow(None, time.monotonic())
        self.state = RouterState(ContinuousBatcher(Policy(self.no_replica_wait_s)), self.max_queue, window)

    def drain(self, replica: str, **how: bool) -> None:
        assert self.state.drain(DrainRequest(replica=replica, **how), time.monotonic()) == replica

    @property
    def placed(self) -> int:
        return int(self.state.status()["router"]["granted"])

    @property
    def queued(self) -> int:
        return int(self.state.status()["router"]["queued"])

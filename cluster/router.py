"""The router: one Ray actor per served model. I/O only; every decision is its batcher's.

It is never in the token path. When it dies, Ray restarts it empty; its gateways' connections break, they connect again
and tell it all they have open, replicas are told that they are unknown (`report() -> None`) and join again, and
running streams notice nothing.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import ray

from cluster.batcher import Batcher
from cluster.batching import Policy
from cluster.draining import DrainRefused, DrainRequest
from cluster.policies import CONTINUOUS, batcher
from cluster.router_metrics import RouterMetrics
from cluster.router_state import RouterState
from cluster.scaling_window import Decided, Report, ScalingWindow
from cluster.swaps import SwapRefused
from cluster.vitals import Vitals
from replicas import assignment
from replicas.assignment import Assignment
from replicas.messages import (
    LoadReport,
    Outbox,
    ReplicaInfo,
    ReportAnswer,
    Resync,
    RouterAddress,
    Swap,
)
from replicas.router_handle import NAMESPACE, actor_name
from replicas.wire import Connection, Kind

logger = logging.getLogger(__name__)

TICK_S = 0.25
TELL_S = 1.0  # metrics: oftener than they are scraped
MAKES_WAY_S = 60.0  # a killed actor's name is free in a second or two; a busy machine starts one in some

_decode_outbox = msgspec.msgpack.Decoder(Outbox | Resync).decode


class RouterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a router must know, as plain values; defaults are the settings'."""

    model: str
    listen: str | None  # address that gateways reach it by; None: that of its Ray node
    policy: str = CONTINUOUS  # one of `cluster.policies.POLICIES`
    max_queue: int = 2048
    no_replica_wait_s: float = 30.0
    tpot_s: float | None = None
    starvation_s: float = 30.0
    autoscaled: bool = False
    cold_start: bool = False  # requests wait for a replica to load

    def batcher(self) -> Batcher:
        limits = Policy(
            no_replica_wait_s=self.no_replica_wait_s,
            tpot_s=self.tpot_s,
            starvation_s=self.starvation_s,
            cold_start=self.cold_start,
        )
        return batcher(self.policy, limits)

    def scaling_window(self, now: float) -> ScalingWindow | None:
        return ScalingWindow(self.tpot_s, now) if self.autoscaled else None


@dataclass
class _Gateway:
    """A gateway's connection."""

    connection: Connection
    id: str
    roster_version: int = -1  # of the roster that it was told last


class Router:
    """The actor around `RouterState`. Replicas call it through Ray; gateways hold a connection each."""

    def __init__(self, spec: RouterSpec) -> None:
        self._spec = spec
        self._state = RouterState(spec.batcher(), spec.max_queue, spec.scaling_window(time.monotonic()))
        self._listen = spec.listen or ray.util.get_node_ip_address()
        self._token = secrets.token_hex(16)
        self._gateways: dict[Connection, _Gateway] = {}
        self._metrics = RouterMetrics(spec.model)
        if (assigned := assignment.read(spec.model)) is not None:
            self._state.assign(assigned)
        self._serving = asyncio.get_event_loop().create_task(self._serve())

    async def _serve(self) -> int:
        """Opens the port for gateways, starts the clock; returns the port."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(self._on_message, self._on_lost, expect_token=self._token), self._listen, 0
        )
        self._ticking = loop.create_task(self._tick())
        return int(server.sockets[0].getsockname()[1])

    async def address(self) -> RouterAddress:
        """Where gateways connect."""
        return RouterAddress(host=self._listen, port=await self._serving, token=self._token)

    async def _tick(self) -> None:
        told_at = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            self._decide()
            if (now := time.monotonic()) - told_at >= TELL_S:
                told_at = now
                self._metrics.tell(self._state.queue(now), self._state.replica_states(), self._state.tally)

    def _decide(self) -> None:
        """Lets the state decide and tells each gateway its part."""
        self._state.decide(time.monotonic())
        for gateway in self._gateways.values():
            inbox, gateway.roster_version = self._state.collect(gateway.id, gateway.roster_version)
            if inbox is not None:
                gateway.connection.send(Kind.INBOX, [msgspec.msgpack.encode(inbox)])

    def _on_message(self, connection: Connection, kind: Kind, buffers: list[bytes]) -> None:
        try:
            message = _decode_outbox(buffers[0])
        except (IndexError, msgspec.MsgspecError):
            logger.exception("A gateway spoke what the router does not understand (%s); hanging up.", kind.name)
            connection.close()
            return
        if isinstance(message, Resync):
            self._gateways[connection] = _Gateway(connection, message.gateway)
        if gateway := self._gateways.get(connection):
            self._state.take(gateway.id, message, time.monotonic())
            self._decide()

    def _on_lost(self, connection: Connection) -> None:
        gateway = self._gateways.pop(connection, None)
        # Unless it is here again already, on a later connection.
        if gateway is not None and all(other.id != gateway.id for other in self._gateways.values()):
            self._state.forget(gateway.id)
            self._decide()

    async def join(self, info: ReplicaInfo) -> None:
        """A replica is ready."""
        self._state.join(info, time.monotonic())
        self._decide()

    async def leave(self, replica_id: str, epoch: int) -> None:
        """A replica takes no more; what it runs goes on, there or elsewhere."""
        self._state.stop(replica_id, epoch, time.monotonic())
        self._decide()

    async def report(self, load: LoadReport) -> ReportAnswer | None:
        """A replica's load. None: it is to join again."""
        known = self._state.report(load, time.monotonic())
        if self._state.queued:  # there may be room now
            self._decide()
        return self._state.answer(load) if known else None

    async def swap(self, replica_id: str, swap: Swap) -> dict[str, str]:
        """{"replica": its id}, or {"refused": why not}. The same command a second time changes nothing."""
        try:
            swapped = self._state.swap(replica_id, swap)
        except SwapRefused as refusal:
            return {"refused": str(refusal)}
        self._decide()
        return {"replica": swapped}

    async def assign(self, assigned: Assignment) -> None:
        """What is to be served, from now on. The controller has written it to Ray's store before."""
        self._state.assign(assigned)
        self._decide()

    async def drain(self, asked: DrainRequest) -> dict[str, str]:
        """{"replica": its id}, or {"refused": why not}."""
        try:
            drained = self._state.drain(asked, time.monotonic())
        except DrainRefused as refusal:
            return {"refused": str(refusal)}
        self._decide()
        return {"replica": drained}

    async def observe_scaling(self) -> Report | None:
        return self._state.observe_scaling(time.monotonic())

    async def serves(self, spec: RouterSpec) -> bool:
        """Whether these are its settings."""
        return spec == self._spec

    async def scaled(self, decided: Decided) -> None:
        self._state.scaled(decided)

    async def experts(self) -> dict[str, Any]:
        return self._state.experts()

    async def metrics_addresses(self) -> dict[str, list[str]]:
        return {"gateways": self._state.metrics_addresses()}

    async def vitals(self) -> Vitals:
        return self._state.vitals()

    async def status(self, brief: bool = False) -> dict[str, Any]:
        status = self._state.status(brief)
        status["router"]["pid"] = os.getpid()
        status["queue"] = self._state.queue_report(time.monotonic())
        return status


def start_router(spec: RouterSpec) -> "ray.actor.ActorHandle":
    """The model's router, started if it is not there. Detached: it outlives whoever asked first.

    One of other settings makes way: gateways and replicas find the new one, and say all they have open. Raises
    TimeoutError if it does not.
    """
    # Made an actor here, not by a decorator: then Ray imports the class where it runs, instead of pickling its code.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=1000)(Router)
    name = actor_name(spec.model)
    router = actor.options(name=name, namespace=NAMESPACE, get_if_exists=True, lifetime="detached")
    until = time.monotonic() + MAKES_WAY_S
    while time.monotonic() < until:
        with contextlib.suppress(ray.exceptions.RayActorError, ValueError):  # Ray has not given its name free yet
            made = router.remote(spec)
            if ray.get(made.serves.remote(spec), timeout=MAKES_WAY_S):
                return made
            ray.kill(made)
        time.sleep(0.05)
    raise TimeoutError(f"the router {name}, of other settings, did not make way in {MAKES_WAY_S:.0f} s")

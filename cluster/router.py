"""The router: one Ray actor per served model. I/O only; every decision is its batcher's.

It is never in the token path. When it dies, Ray restarts it empty; its gateways' connections break, they connect again
and tell it all they have open, replicas are told that they are unknown (`report() -> None`) and join again, and
running streams notice nothing.
"""

import asyncio
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
from cluster.draining import Candidate, DrainRefused, DrainRequest, choose
from cluster.expert_report import expert_report
from cluster.outcomes import Ending
from cluster.policies import CONTINUOUS, batcher
from cluster.queue_report import queue_report
from cluster.quotas import Quotas
from cluster.router_metrics import Queue, RouterMetrics, Tally
from cluster.router_status import of_replica, state_of
from cluster.scaling_window import Decided, Report, ScalingWindow, status
from cluster.vitals import Vitals, vitals
from replicas.messages import (
    Denial,
    ExpertLoad,
    Grant,
    Inbox,
    LoadReport,
    Outbox,
    ReplicaInfo,
    Resync,
    RouterAddress,
    Ticket,
)
from replicas.router_handle import NAMESPACE, actor_name
from replicas.wire import Connection, Kind

logger = logging.getLogger(__name__)

TICK_S = 0.25
TELL_S = 1.0  # metrics: oftener than they are scraped
HEARTBEAT_TIMEOUT_S = 5.0  # silence after which a replica is taken out; of a killed one gateways tell at once

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


class RouterState:
    """What the router knows, without Ray: times are passed in, waiting is done by the actor around it."""

    def __init__(self, batcher: Batcher, max_queue: int, window: ScalingWindow | None = None) -> None:
        self._max_queue = max_queue
        self._window = window  # None: nothing scales
        self._decided: Decided | None = None
        self._batcher = batcher
        self._quotas = Quotas()
        self._roster: dict[str, ReplicaInfo] = {}
        self._roster_version = 0
        self._heard: dict[str, float] = {}  # replica id -> time of its last report
        self._experts: dict[str, ExpertLoad] = {}  # replica id -> what it told last
        self._gateways: dict[str, str] = {}  # id -> "host:port" of its metrics
        self._grants: dict[str, list[Grant]] = {}  # gateway id -> what it is to be told
        self._denials: dict[str, list[Denial]] = {}
        self._moves: dict[str, list[str]] = {}
        self.tally = Tally()

    def join(self, info: ReplicaInfo, now: float) -> None:
        known = self._roster.get(info.replica_id)
        if known is None or known.epoch < info.epoch:
            self._batcher.join(info)
            self._roster[info.replica_id] = info
            self._roster_version += 1
            if self._window is not None:
                self._window.joined(info)
            if info.draining:
                self._batcher.drain(info.replica_id, info.epoch)
        if self._roster[info.replica_id].epoch == info.epoch:
            self._heard[info.replica_id] = now

    def leave(self, replica_id: str, epoch: int, now: float, lost: bool = False) -> None:
        if self._batcher.leave(replica_id, epoch, now):
            self.tally.lost += lost
            del self._roster[replica_id], self._heard[replica_id]
            self._experts.pop(replica_id, None)
            self._roster_version += 1
            if self._window is not None:
                self._window.left(replica_id)

    def stop(self, replica_id: str, epoch: int, now: float) -> None:
        """A replica stops and takes no more. If that is scaling in, what it runs moves at once: others have room."""
        stopped = self._roster.get(replica_id)
        self.leave(replica_id, epoch, now)
        if stopped is None or stopped.epoch != epoch or self._decided is None:
            return
        alike = [r for r in self._batcher.replicas() if not r.draining and r.info.version == stopped.version]
        if len(alike) >= max(self._decided.target, 1):  # else it is replaced, or all of them stop
            self._move(replica_id)

    def _taking(self) -> int:
        """Replicas that take requests."""
        return sum(not replica.draining for replica in self._batcher.replicas())

    def _move(self, replica_id: str) -> None:
        for gateway, request_id in self._batcher.running_on(replica_id):
            self._moves.setdefault(gateway, []).append(request_id)

    def report(self, load: LoadReport, now: float) -> bool:
        known = self._batcher.report(load, now)
        if known:
            self._heard[load.replica_id] = now
            if load.experts is not None:
                self._experts[load.replica_id] = load.experts
            if self._window is not None:
                self._window.reported(load)
        return known

    def drain(self, asked: DrainRequest, now: float) -> str:
        """Has a replica drained, or no longer; returns its id. Raises DrainRefused."""
        replica_id = choose(asked, [Candidate(r.info.replica_id, r.draining) for r in self._batcher.replicas()])
        info = self._roster[replica_id]
        if asked.undo:
            self._batcher.leave(replica_id, info.epoch, now)
            self._batcher.join(info)  # brings what it runs
            return replica_id
        self._batcher.drain(replica_id, info.epoch)
        if asked.migrate:
            self._move(replica_id)
        return replica_id

    def state_of(self, replica_id: str) -> str:
        """As `status` has it; "gone" if it is not known."""
        return next((state_of(r) for r in self._batcher.replicas() if r.info.replica_id == replica_id), "gone")

    @property
    def queued(self) -> int:
        """Tickets that wait."""
        return self._batcher.queued

    def take(self, gateway: str, outbox: Outbox | Resync, now: float) -> None:
        """Applies what a gateway says. The first that it says is a Resync."""
        if isinstance(outbox, Resync):
            self.forget(gateway)
            self._gateways[gateway] = outbox.metrics
            for ticket, grant in outbox.running:
                self._adopt_quota(gateway, ticket, now)
                self._batcher.adopt(gateway, ticket, grant)
            for ticket in outbox.waiting:
                self._adopt_quota(gateway, ticket, now)
                self._batcher.submit(gateway, ticket, now)
            return
        if self._window is not None:
            self._window.ended(outbox.met, outbox.missed, now)
        for lost in outbox.lost:
            self.leave(lost.replica_id, lost.epoch, now, lost=True)
        for request_id in outbox.started:
            self._batcher.started(request_id, now)
        for released in outbox.released:
            self._quotas.release(released)
            self._batcher.release(released)
        for ticket in outbox.tickets:
            prompt_tokens = ticket.prompt_tokens
            if ticket.mirror:
                self._batcher.submit(gateway, ticket, now)
                continue
            if self._batcher.queued >= self._max_queue and not ticket.resumed:
                self._deny(gateway, Denial(request_id=ticket.request_id, ending=Ending.QUEUE_FULL.name))
            elif refused := self._quotas.admit(gateway, ticket, now):
                self._deny(gateway, refused)
                continue
            else:
                prompt_tokens = self._batcher.submit(gateway, ticket, now)
            if self._window is not None and not ticket.resumed:
                self._window.arrived(prompt_tokens, self._batcher.expected_output(ticket))

    def _adopt_quota(self, gateway: str, ticket: Ticket, now: float) -> None:
        if not ticket.mirror:
            self._quotas.adopt(gateway, ticket, now)

    def decide(self, now: float) -> None:
        """Lets the batcher decide; `collect` gives each gateway what is its."""
        for replica_id, info in list(self._roster.items()):
            if now - self._heard[replica_id] > HEARTBEAT_TIMEOUT_S:
                self.leave(replica_id, info.epoch, now, lost=True)
        decision = self._batcher.decide(now)
        for gateway, grant in decision.grants:
            if quota := self._quotas.quota(grant.request_id, now):
                grant = msgspec.structs.replace(grant, quota=quota)
            self._grants.setdefault(gateway, []).append(grant)
        for gateway, denial in decision.denials:
            self._quotas.give_back(denial.request_id)
            self._deny(gateway, denial)
        self.tally.grants += len(decision.grants)
        if self._window is not None:
            self._window.waits(self._batcher.queued, self._batcher.queued_tokens)

    def _deny(self, gateway: str, denial: Denial) -> None:
        if not denial.mirror:
            self.tally.denials[denial.ending] += 1
        self._denials.setdefault(gateway, []).append(denial)

    def forget(self, gateway: str) -> None:
        """All that this gateway has asked for, and what it was given but has not been told."""
        self._gateways.pop(gateway, None)
        self._batcher.forget_owner(gateway)
        self._quotas.forget_owner(gateway)
        self._grants.pop(gateway, None)
        self._denials.pop(gateway, None)
        self._moves.pop(gateway, None)

    def collect(self, gateway: str, roster_version: int) -> tuple[Inbox | None, int]:
        """What there is to tell this gateway, who was told the roster of that version; and the version it then has."""
        changed = roster_version != self._roster_version
        if not (changed or gateway in self._grants or gateway in self._denials or gateway in self._moves):
            return None, roster_version
        inbox = Inbox(
            grants=tuple(self._grants.pop(gateway, ())),
            denials=tuple(self._denials.pop(gateway, ())),
            move=tuple(self._moves.pop(gateway, ())),
            roster=tuple(self._roster.values()) if changed else None,
        )
        return inbox, self._roster_version

    def observe_scaling(self, now: float) -> Report | None:
        """The load since the last call; None: nothing scales."""
        if self._window is None:
            return None
        return self._window.observe(now, self._batcher.replicas(), self._batcher.placed, bool(self._gateways))

    def scaled(self, decided: Decided) -> None:
        """What was decided of it, before Serve acts on it."""
        self._decided = decided

    def experts(self) -> dict[str, Any]:
        """See `expert_report`."""
        return expert_report((self._roster[replica_id], load) for replica_id, load in self._experts.items())

    def queue_report(self, now: float) -> dict[str, Any]:
        return queue_report(self._batcher.waiting(), now)

    def metrics_addresses(self) -> list[str]:
        """ "host:port" of each gateway's metrics."""
        return sorted(address for address in self._gateways.values() if address)

    def queue(self, now: float) -> Queue:
        """What waits."""
        return Queue.of(self._batcher.waiting(), now)

    def replica_states(self) -> list[str]:
        """As in `status`, one for each replica."""
        return [state_of(replica) for replica in self._batcher.replicas()]

    def vitals(self) -> Vitals:
        return vitals(self._batcher, self.tally)

    def status(self, brief: bool = False) -> dict[str, Any]:
        """What the cluster holds, for `moray status` and the console. `brief`: not which experts are where."""
        return {
            "replicas": [of_replica(view, brief) for view in self._batcher.replicas()],
            "gateways": [{"id": id, "metrics": metrics} for id, metrics in sorted(self._gateways.items())],
            "router": {"queued": self._batcher.queued, "granted": self._batcher.placed},
            "tenants": self._quotas.status(),
            "autoscaling": None if self._window is None else status(self._decided, self._taking()),
        }


@dataclass
class _Gateway:
    """A gateway's connection."""

    connection: Connection
    id: str
    roster_version: int = -1  # of the roster that it was told last


class Router:
    """The actor around `RouterState`. Replicas call it through Ray; gateways hold a connection each."""

    def __init__(self, spec: RouterSpec) -> None:
        self._state = RouterState(spec.batcher(), spec.max_queue, spec.scaling_window(time.monotonic()))
        self._listen = spec.listen or ray.util.get_node_ip_address()
        self._token = secrets.token_hex(16)
        self._gateways: dict[Connection, _Gateway] = {}
        self._metrics = RouterMetrics(spec.model)
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

    async def report(self, load: LoadReport) -> str | None:
        """A replica's load; the answer is its state, or None: it is to join again."""
        known = self._state.report(load, time.monotonic())
        if self._state.queued:  # there may be room now
            self._decide()
        return self._state.state_of(load.replica_id) if known else None

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
    """The model's router, started if it is not there. Detached: it outlives whoever asked first."""
    # Made an actor here, not by a decorator: then Ray imports the class where it runs, instead of pickling its code.
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=1000)(Router)
    name = actor_name(spec.model)
    return actor.options(name=name, namespace=NAMESPACE, get_if_exists=True, lifetime="detached").remote(spec)

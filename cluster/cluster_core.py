"""ClusterCore: to vLLM's front end, the whole Ray cluster is this one engine core.

One of the four files that know vLLM's engine. It is an `EngineCoreClient` (vllm/v1/engine/core_client.py): `AsyncLLM`
adds and aborts requests and pulls outputs; where these run, and what happens when that place dies, is decided here.

A request here is *waiting* (its ticket is with the router), or *running* (on a replica), or gone. A replica that is
lost costs it nothing but the tokens in flight: `prompt + delivered tokens` become the prompt of a new ticket, which
goes ahead of the queue, and the stream goes on. The detokeniser, stop strings and logprobs never left the gateway.
"""

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from cluster.outcomes import Ending, Verdict, verdict_of_request
from cluster.router_link import RouterGone, RouterLink
from replicas.messages import Grant, Inbox, Lost, Outbox, Released, ReplicaInfo, Resync, Ticket
from replicas.wire import Connection, Kind

logger = logging.getLogger("ray.serve")

CONNECT_TIMEOUT_S = 5.0
RETRY_ROUTER_S = 0.1


@dataclass
class _Live:
    """A request that this gateway has open."""

    request: EngineCoreRequest
    ticket: Ticket
    verdict: Verdict
    delivered: list[int] = field(default_factory=list)
    delivered_before: int = 0  # tokens that had been delivered when the ticket was made
    grant: Grant | None = None  # None: waiting
    lost_at: float = 0.0  # monotonic seconds; set while a resumed request has no new token yet


@dataclass
class _Peer:
    """A replica as this gateway is connected to it, in one epoch."""

    info: ReplicaInfo
    connection: Connection | None = None  # None: connecting
    unsent: list[_Live] = field(default_factory=list)  # granted before the connection stood


@dataclass
class Resumes:
    """What replica losses have cost this gateway's streams so far."""

    count: int = 0
    longest_gap_s: float = 0.0


class ClusterCore(EngineCoreClient):  # type: ignore[misc]
    """The cluster as vLLM's engine core. Lives on one event loop."""

    engine_ranks_managed = (0,)  # vLLM labels its metrics by it: to the front end we are one engine

    def __init__(self, router: RouterLink, gateway: str) -> None:
        self.resources = _Resources()
        self.resumes = Resumes()
        self._router = router
        self._gateway = gateway  # the id by which the router knows us
        self._live: dict[str, _Live] = {}
        self._peers: dict[tuple[str, int], _Peer] = {}
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        # What the router has not been told yet.
        self._tickets: dict[str, Ticket] = {}
        self._started: list[str] = []
        self._released: list[Released] = []
        self._lost: list[Lost] = []
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._talk())

    # -- what AsyncLLM calls ------------------------------------------------------------------------------------------

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Queues the request with the router and returns; what becomes of it arrives as outputs."""
        prompt = len(request.prompt_token_ids or ())
        max_tokens = request.sampling_params.max_tokens or 1
        ticket = Ticket(request_id=request.request_id, prompt_tokens=prompt, max_tokens=max_tokens)
        self._live[request.request_id] = _Live(request, ticket, verdict_of_request.get() or Verdict())
        self._ask(ticket)

    async def abort_requests_async(self, request_ids: Sequence[str]) -> None:
        """Forgets requests, here, at the router and on their replicas."""
        by_peer: dict[tuple[str, int], list[str]] = {}
        for request_id in request_ids:
            live = self._live.pop(request_id, None)
            if live is None:
                continue
            self._release(live)
            if live.grant is not None:
                by_peer.setdefault(_key(live.grant), []).append(request_id)
        for key, ids in by_peer.items():
            if (peer := self._peers.get(key)) is None:
                continue
            peer.unsent = [live for live in peer.unsent if live.request.request_id not in ids]
            if peer.connection is not None:
                peer.connection.send(Kind.ABORT, [msgspec.msgpack.encode(ids)])

    def shutdown(self, timeout: float | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        for peer in self._peers.values():
            if peer.connection is not None:
                peer.connection.close()

    # AsyncLLM may ask these of any engine; nothing here sleeps or keeps multi-modal caches.
    async def is_sleeping_async(self) -> bool:
        return False

    async def reset_mm_cache_async(self) -> None:
        return None

    # -- what the console and tests look at ---------------------------------------------------------------------------

    @property
    def open_requests(self) -> int:
        return len(self._live)

    # -- router -------------------------------------------------------------------------------------------------------

    def _ask(self, ticket: Ticket) -> None:
        self._tickets[ticket.request_id] = ticket
        self._news.set()

    def _release(self, live: _Live, whole: bool = False) -> None:
        request_id = live.ticket.request_id
        if self._tickets.pop(request_id, None) is None:  # else the router never heard of it
            new = len(live.delivered) - live.delivered_before
            self._released.append(Released(request_id=request_id, output_tokens=new, whole=whole))
            self._news.set()

    async def _talk(self) -> None:
        """Keeps the router told, through any number of its lives. What one turn of the loop gathers goes at once."""
        while True:
            gone = asyncio.Event()

            def on_gone(gone: asyncio.Event = gone) -> None:
                gone.set()
                self._news.set()

            try:
                await self._router.connect(self._take, on_gone)
            except RouterGone as error:
                logger.warning("The router does not answer (%s); trying again.", error)
                await asyncio.sleep(RETRY_ROUTER_S)
                continue
            self._router.tell(self._all_open())
            while not gone.is_set():
                await self._news.wait()
                self._news.clear()
                outbox = self._outbox()
                if outbox != Outbox() and not gone.is_set():
                    self._router.tell(outbox)
            await asyncio.sleep(RETRY_ROUTER_S)

    def _outbox(self) -> Outbox:
        outbox = Outbox(
            tickets=tuple(self._tickets.values()),
            started=tuple(self._started),
            released=tuple(self._released),
            lost=tuple(self._lost),
        )
        self._tickets, self._started, self._released, self._lost = {}, [], [], []
        return outbox

    def _all_open(self) -> Resync:
        self._outbox()  # its news are part of this
        live = self._live.values()
        return Resync(
            gateway=self._gateway,
            waiting=tuple(one.ticket for one in live if one.grant is None),
            running=tuple((one.ticket, one.grant) for one in live if one.grant is not None),
        )

    def _take(self, inbox: Inbox) -> None:
        for info in inbox.roster or ():
            self._meet(info)
        for grant in inbox.grants:
            self._run(grant)
        for denial in inbox.denials:
            if (live := self._live.get(denial.request_id)) and live.grant is None:
                ending = Ending[denial.ending]
                if ending is Ending.NO_REPLICA and live.delivered:
                    ending = Ending.LOST
                self._end(live, ending, denial.detail)

    def _run(self, grant: Grant) -> None:
        live = self._live.get(grant.request_id)
        if live is None or live.grant is not None:
            return  # it was aborted meanwhile: its release is on the way
        peer = self._peers.get(_key(grant))
        if peer is None:  # lost between the router's decision and now
            self._ask_again(live)
            return
        live.grant = grant
        if peer.connection is None:
            peer.unsent.append(live)
        else:
            self._submit(peer.connection, live)

    # -- replicas -----------------------------------------------------------------------------------------------------

    def _meet(self, info: ReplicaInfo) -> None:
        key = _key(info)
        if key not in self._peers:
            self._peers[key] = _Peer(info)
            self._start(self._connect(self._peers[key]))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """None of our tasks ends by an exception but by a mistake of ours: then the gateway must be replaced."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("ClusterCore broke down; this gateway is unhealthy from now on.", exc_info=error)
            self.resources.engine_dead = True

    async def _connect(self, peer: _Peer) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._message_from(peer), lambda _: self._on_lost(peer)),
                    peer.info.host,
                    peer.info.port,
                )
        except (OSError, TimeoutError):
            self._on_lost(peer)
            return
        peer.connection = connection
        connection.send(Kind.HELLO, [peer.info.token.encode()])
        unsent, peer.unsent = peer.unsent, []
        for live in unsent:
            self._submit(connection, live)

    def _submit(self, connection: Connection, live: _Live) -> None:
        request = live.request if not live.delivered else resumed_request(live.request, live.delivered)
        connection.send(Kind.ADD, self._encoder.encode(request))

    def _message_from(self, peer: _Peer) -> Callable[[Connection, Kind, list[bytes]], None]:
        def on_message(_: Connection, kind: Kind, buffers: list[bytes]) -> None:
            if kind is Kind.FRAME:
                self._on_frame(peer, buffers)
            elif kind is Kind.REJECTED:
                request_id, reason = msgspec.msgpack.decode(buffers[0], type=tuple[str, str])
                if live := self._live.get(request_id):
                    self._end(live, Ending.REJECTED, reason)

        return on_message

    def _on_frame(self, peer: _Peer, buffers: list[bytes]) -> None:
        outputs = self._decoder.decode(buffers)
        kept = []
        for output in outputs.outputs:
            live = self._live.get(output.request_id)
            if live is None or live.grant is None or _key(live.grant) != _key(peer.info):
                continue  # aborted, or running elsewhere by now
            if output.new_token_ids and len(live.delivered) == live.delivered_before:
                self._started.append(output.request_id)
                self._news.set()
            live.delivered.extend(output.new_token_ids)
            if live.lost_at:
                self.resumes.longest_gap_s = max(self.resumes.longest_gap_s, time.monotonic() - live.lost_at)
                live.lost_at = 0.0
            if output.finish_reason is not None:
                del self._live[output.request_id]
                self._release(live, whole=True)
            kept.append(output)
        if kept:
            outputs.outputs = kept
            outputs.timestamp = time.monotonic()  # replicas have other clocks
            self._outputs.put_nowait(outputs)

    def _on_lost(self, peer: _Peer) -> None:
        """The replica's connection broke, or never stood: what ran there goes on elsewhere."""
        key = _key(peer.info)
        if self._peers.get(key) is not peer:
            return
        del self._peers[key]
        self._lost.append(Lost(replica_id=peer.info.replica_id, epoch=peer.info.epoch))
        running = [live for live in self._live.values() if live.grant and _key(live.grant) == key]
        if running:
            logger.warning("Replica %s is lost; %d streams resume elsewhere.", peer.info.replica_id, len(running))
        for live in running:
            live.lost_at = time.monotonic()
            self.resumes.count += 1
            self._ask_again(live)
        self._news.set()

    def _ask_again(self, live: _Live) -> None:
        """Tickets `prompt + delivered tokens`, ahead of the queue."""
        live.grant = None
        prompt = len(live.request.prompt_token_ids or ()) + len(live.delivered)
        left = max((live.request.sampling_params.max_tokens or 1) - len(live.delivered), 0)
        if left == 0:  # its last token had come, only the word that it was the last had not
            self._finish(live, FinishReason.LENGTH)
            return
        self._release(live)
        live.delivered_before = len(live.delivered)
        live.ticket = msgspec.structs.replace(live.ticket, prompt_tokens=prompt, max_tokens=left, resumed=True)
        self._ask(live.ticket)

    # -- endings ------------------------------------------------------------------------------------------------------

    def _end(self, live: _Live, ending: Ending, detail: str = "") -> None:
        """Ends a request that the cluster cannot serve; the gateway turns it into the ending's HTTP status."""
        live.verdict.ending, live.verdict.detail = ending, detail
        self._finish(live, FinishReason.ERROR)

    def _finish(self, live: _Live, reason: FinishReason) -> None:
        request_id = live.request.request_id
        del self._live[request_id]
        self._release(live)
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[EngineCoreOutput(request_id, [], finish_reason=reason)]))


def _key(of: Grant | ReplicaInfo) -> tuple[str, int]:
    """One life of a replica."""
    return of.replica_id, of.epoch


class _Resources:
    """AsyncLLM looks here for the engine's death. Replicas die and requests wait: only a mistake of ours is one."""

    engine_dead = False


def resumed_request(request: EngineCoreRequest, delivered: list[int]) -> EngineCoreRequest:
    """The request that goes on where `delivered` ended: delivered tokens become prompt, limits shrink with them."""
    resumed = copy.copy(request)
    resumed.prompt_token_ids = [*(request.prompt_token_ids or ()), *delivered]
    params = request.sampling_params.clone()
    params.max_tokens = (params.max_tokens or 1) - len(delivered)
    params.min_tokens = max(params.min_tokens - len(delivered), 0)
    params.prompt_logprobs = params.prompt_logprob_token_ids = None  # given already, with the first token
    resumed.sampling_params = params
    return resumed

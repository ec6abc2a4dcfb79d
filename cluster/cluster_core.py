"""ClusterCore: to vLLM's front end, the whole Ray cluster is this one engine core.

One of the four files that know vLLM's engine. It is an `EngineCoreClient` (vllm/v1/engine/core_client.py): `AsyncLLM`
adds and aborts requests and pulls outputs; where these run, and what happens when that place dies, is decided here.

A request here is *waiting* (its ticket is with the router), or *running* (on a replica), or gone. A replica that is
lost costs it nothing but the tokens in flight: a new ticket for `prompt + delivered tokens` goes ahead of the queue,
the next replica gets the request and, beside it, what was delivered as its output so far, and the stream goes on. The
detokeniser, stop strings and logprobs never left the gateway. A replica is lost when its connection ends, or when it
has requests of ours and says nothing for `hang_timeout_s`.
"""

import asyncio
import copy
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from cluster.journal import ABORTED, DONE, OF_FINISH, RESTARTED, Journal
from cluster.live import (
    HangWatch,
    Key,
    Live,
    Peer,
    Resources,
    Resumes,
    SeenReplica,
    by_peer,
    first_ticket,
    key_of,
    resync,
    seen_replicas,
)
from cluster.mirror import Mirror
from cluster.outcomes import Ending, RequestContext, context_of_request
from cluster.router_link import RouterLink
from cluster.router_talk import RouterTalk
from replicas.messages import Grant, Inbox, ReplicaInfo
from replicas.wire import Connection, Kind

logger = logging.getLogger("ray.serve")

CONNECT_TIMEOUT_S = 5.0


class ClusterCore(EngineCoreClient):  # type: ignore[misc]
    """The cluster as vLLM's engine core. Lives on one event loop."""

    engine_ranks_managed = (0,)  # vLLM labels its metrics by it: to the front end we are one engine

    def __init__(
        self,
        router: RouterLink,
        gateway: str,
        hang_timeout_s: float = 30.0,
        seed_samples: bool = False,
        prompt_blocks: Callable[[EngineCoreRequest, int], tuple[int, ...]] = lambda request, block_tokens: (),
        journal: Journal | None = None,
        tell_times: bool = False,
    ) -> None:
        """`gateway`: the id by which the router knows us.

        `seed_samples`: whether each sampled request that has no seed gets one, so that it resumes exactly.
        `prompt_blocks` names a prompt's full KV blocks of so many tokens (`vllm_core.prompt_blocks`).
        `journal` is told of each request that ended. `tell_times`: vLLM's metrics want when a request was queued and
        submitted, in this process's time.
        """
        self._seed_samples = seed_samples
        self._prompt_blocks = prompt_blocks
        self._hang_watch = HangWatch(hang_timeout_s)
        self.resources = Resources()
        self.resumes = Resumes()
        self.journal = journal or Journal("")
        self.mirror = Mirror()
        self.journal.listeners.append(self.mirror)
        self.metrics_address = ""  # "host:port" of this gateway's metrics, which the router is told; set before it runs
        self._tell_times = tell_times
        self._talk = RouterTalk(router, lambda: resync(gateway, self.metrics_address, self._live.values()))
        self.attained = self._talk.attained  # told of each request that ended: within the SLO or not
        self._live: dict[str, Live] = {}
        self._peers: dict[Key, Peer] = {}
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._reader: asyncio.Task[Any] | None = None  # AsyncLLM's, which pulls outputs
        self.resources.start(self._talk.run(self._take))
        self.resources.start(self._watch())

    # -- what AsyncLLM calls ------------------------------------------------------------------------------------------

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def get_output_async(self) -> EngineCoreOutputs:
        if self._reader is None:
            self._reader = asyncio.current_task()
        return await self._outputs.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Queues the request with the router and returns; what becomes of it arrives as outputs."""
        context = context_of_request.get() or RequestContext()
        request.priority = context.priority(request.priority)
        if self._seed_samples and request.sampling_params.temperature and request.sampling_params.seed is None:
            request.sampling_params = copy.copy(request.sampling_params)  # samples of one HTTP request share theirs
            request.sampling_params.seed = random.getrandbits(63)
        live = Live(request, first_ticket(request, context, self._blocks(request)), context)
        self._open(live)
        if (copied := self.mirror.copy_of(live)) is not None:
            self._open(copied)

    def _open(self, live: Live) -> None:
        self._live[live.ticket.request_id] = live
        live.context.open_requests += 1
        self._talk.ask(live.ticket)

    def _blocks(self, request: EngineCoreRequest) -> tuple[int, ...]:
        for peer in self._peers.values():  # all have blocks of one size
            return self._prompt_blocks(request, peer.info.capacity.block_tokens)
        return ()

    async def abort_requests_async(self, request_ids: Sequence[str]) -> None:
        """Forgets requests, here, at the router and on their replicas."""
        # Who pulls outputs aborts what a stop string has ended; clients go away in their requests' own tasks.
        self._abort(request_ids, DONE if asyncio.current_task() is self._reader else ABORTED)

    def _abort(self, request_ids: Sequence[str], ending: str) -> None:
        gone = [live for request_id in request_ids if (live := self._live.pop(request_id, None)) is not None]
        for live in gone:
            self._release(live)
            live.write_down(self.journal, ending)
        for peer, ids in by_peer(gone, self._peers):
            peer.unsent = [live for live in peer.unsent if live.request.request_id not in ids]
            if peer.connection is not None:
                peer.connection.send(Kind.ABORT, [msgspec.msgpack.encode(ids)])

    def shutdown(self, timeout: float | None = None) -> None:
        self.resources.cancel()
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
        return len(self._live) - self.mirror.open

    @property
    def versions(self) -> set[str]:
        """The names of the model's versions that are served or about to be; none if there is one without a name."""
        assigned = self.mirror.assignment
        served = {peer.info.version for peer in self._peers.values()}
        return served.union(assigned.directories if assigned else ()) - {""}

    def seen(self) -> list[SeenReplica]:
        return seen_replicas(self._peers.values(), [one for one in self._live.values() if not one.ticket.mirror])

    def take_hung(self) -> list[SeenReplica]:
        """Replicas that were given up as hung since this was asked last."""
        return self._hang_watch.take_found()

    # -- router -------------------------------------------------------------------------------------------------------

    def _release(self, live: Live, whole: bool = False) -> None:
        self._talk.release(live.ticket.request_id, len(live.delivered) - live.delivered_before, whole)

    def _take(self, inbox: Inbox) -> None:
        if inbox.assignment is not None:
            self.mirror.assignment = inbox.assignment
        for info in inbox.roster or ():
            self._meet(info)
        for grant in inbox.grants:
            self._run(grant)
        for denial in inbox.denials:
            if (live := self._live.get(denial.request_id)) and live.grant is None:
                ending = Ending[denial.ending]
                if ending is Ending.NO_REPLICA and live.delivered:
                    ending = Ending.LOST
                live.verdict.retry_after_s, live.verdict.quota = denial.retry_after_s, denial.quota
                self._end(live, ending, denial.detail)
        self._move(inbox.move)

    def _move(self, request_ids: Sequence[str]) -> None:
        """Takes running requests off their replica: once it has said its last of one, that is ticketed anew."""
        granted = [live for request_id in request_ids if (live := self._live.get(request_id)) and live.grant]
        for peer, ids in by_peer(granted, self._peers):
            if peer.connection is not None:
                peer.connection.send(Kind.GIVE_BACK, [msgspec.msgpack.encode(ids)])
                continue
            unsent, peer.unsent = peer.unsent, [live for live in peer.unsent if live.request.request_id not in ids]
            for live in unsent:
                if live.request.request_id in ids:
                    self._ask_again(live)

    def _on_given_back(self, peer: Peer, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            live = self._live.get(request_id)
            if live is not None and live.grant is not None and key_of(live.grant) == key_of(peer.info):
                self.resumes.moved += not live.ticket.mirror
                live.lost_at, live.moving = time.monotonic(), True
                self._ask_again(live)

    def _run(self, grant: Grant) -> None:
        live = self._live.get(grant.request_id)
        if live is None or live.grant is not None:
            return  # it was aborted meanwhile: its release is on the way
        live.verdict.quota = grant.quota
        peer = self._peers.get(key_of(grant))
        # Lost between the router's decision and now; or another sample of its answer has begun on another version.
        if peer is None or live.context.version not in ("", peer.info.version):
            self._ask_again(live)
            return
        live.granted(grant, peer.info, time.monotonic())
        if peer.connection is None:
            peer.unsent.append(live)
        else:
            self._submit(peer.connection, live)

    # -- replicas -----------------------------------------------------------------------------------------------------

    def _meet(self, info: ReplicaInfo) -> None:
        key = key_of(info)
        if key not in self._peers:
            self._peers[key] = Peer(info)
            self.resources.start(self._connect(self._peers[key]))

    async def _connect(self, peer: Peer) -> None:
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

    def _submit(self, connection: Connection, live: Live) -> None:
        live.submitted(time.monotonic())
        encoded = self._encoder.encode(live.request)
        if live.delivered:
            connection.send(Kind.RESUME, [msgspec.msgpack.encode(live.delivered), *encoded])
        else:
            connection.send(Kind.ADD, encoded)

    def _message_from(self, peer: Peer) -> Callable[[Connection, Kind, list[bytes]], None]:
        def on_message(_: Connection, kind: Kind, buffers: list[bytes]) -> None:
            peer.heard(kind)
            if kind is Kind.FRAME:
                self._on_frame(peer, buffers)
            elif kind is Kind.GIVEN_BACK:
                self._on_given_back(peer, msgspec.msgpack.decode(buffers[0], type=list[str]))
            elif kind is Kind.LEAVING:
                peer.leaving = True
            elif kind is Kind.REJECTED:
                request_id, reason = msgspec.msgpack.decode(buffers[0], type=tuple[str, str])
                if live := self._live.get(request_id):
                    self._end(live, Ending.REJECTED, reason)

        return on_message

    def _on_frame(self, peer: Peer, buffers: list[bytes]) -> None:
        outputs = self._decoder.decode(buffers)
        now, kept = time.monotonic(), []
        for output in outputs.outputs:
            peer.tokens += len(output.new_token_ids)
            live = self._live.get(output.request_id)
            if live is None or live.grant is None or key_of(live.grant) != key_of(peer.info):
                continue  # aborted, or running elsewhere by now
            if output.new_token_ids:
                if len(live.delivered) == live.delivered_before:
                    self._on_first_token(live, output, now)
                live.delivered.extend(output.new_token_ids)
                live.last_token_at = now
            if live.lost_at:
                self._on_going_on(live, now)
            if output.finish_reason is not None:
                del self._live[output.request_id]
                self._release(live, whole=True)
                live.write_down(self.journal, OF_FINISH.get(output.finish_reason.name, DONE))
            if not live.ticket.mirror:
                kept.append(output)
        if kept:
            outputs.outputs = kept
            outputs.timestamp = now  # replicas have other clocks
            self._outputs.put_nowait(outputs)

    def _on_first_token(self, live: Live, output: EngineCoreOutput, now: float) -> None:
        """Of the request, or of what a resumed one has on this replica."""
        self._talk.started(output.request_id)
        if live.first_token_at is None:
            live.first_token_at = now
            if output.prefill_stats is not None:
                live.cached_tokens = output.prefill_stats.num_cached_tokens
            if self._tell_times:
                times = (EngineCoreEventType.QUEUED, live.queued_at), (EngineCoreEventType.SCHEDULED, live.sent_at)
                output.events = [EngineCoreEvent(what, at or now) for what, at in times]

    def _on_going_on(self, live: Live, now: float) -> None:
        gap_s = live.goes_on(now)
        self.resumes.longest_gap_s = max(self.resumes.longest_gap_s, gap_s)
        self.journal.resumed("moved" if live.moving else "lost", gap_s)
        live.moving = False

    async def _watch(self) -> None:
        """Gives up replicas that hang. What such a one says later is not heard: its connection is closed."""
        while True:
            await asyncio.sleep(self._hang_watch.look_every_s)
            for peer in list(self._hang_watch.hung(self._peers.values(), self._live.values(), time.monotonic())):
                logger.warning("Replica %s has said nothing for too long.", peer.info.replica_id)
                if peer.connection is not None:
                    peer.connection.close()
                self._on_lost(peer)

    def _on_lost(self, peer: Peer) -> None:
        """The replica's connection broke, or never stood: what ran there goes on elsewhere."""
        key = key_of(peer.info)
        if self._peers.get(key) is not peer:
            return
        del self._peers[key]
        self._talk.lost(*key)
        running = [live for live in self._live.values() if live.grant and key_of(live.grant) == key]
        if running:
            logger.warning("Replica %s is lost; %d streams resume elsewhere.", peer.info.replica_id, len(running))
        for live in running:
            live.lose_replica(peer.leaving, time.monotonic())
            if self._live.get(live.request.request_id) is not live:
                continue  # another sample of its HTTP request was quarantined just now
            if live.quarantined:
                self._quarantine(live)
            else:
                self.resumes.count += not live.ticket.mirror
                self._ask_again(live)

    def _quarantine(self, live: Live) -> None:
        self.resumes.quarantined += 1
        request_id = live.request.external_req_id or live.request.request_id
        logger.error("Request %s was running on %d replicas as they died.", request_id, live.deaths)
        self._end(live, Ending.QUARANTINED, f"Request {request_id}: {Ending.QUARANTINED.sentence}")

    def _ask_again(self, live: Live) -> None:
        """Tickets `prompt + delivered tokens`, ahead of the queue; a copy that nobody reads ends with its replica."""
        live.grant, live.submitted_at = None, 0.0
        if not live.tokens_left:  # its last token had come, only the word that it was the last had not
            self._finish(live, FinishReason.LENGTH, DONE)
        elif live.ticket.mirror:  # its version's fault only if the replica died of itself
            self._finish(live, FinishReason.ERROR, Ending.LOST.name if live.deaths else ABORTED)
        else:
            self._release(live)
            self._talk.ask(live.ticket_anew())

    # -- endings ------------------------------------------------------------------------------------------------------

    def _end(self, live: Live, ending: Ending, detail: str = "") -> None:
        """Ends a request that the cluster cannot serve; the gateway turns it into the ending's HTTP status."""
        live.verdict.ending, live.verdict.detail = ending, detail
        written = RESTARTED if live.context.starts_anew else ending.name
        self._finish(live, FinishReason.ERROR, written)
        # Other samples of the same HTTP request have no answer to be in; the front end may yet wait for their last.
        others = [request_id for request_id, other in self._live.items() if other.verdict is live.verdict]
        self._abort(others, written)
        for request_id in others:
            self._tell_end(request_id, FinishReason.ERROR)

    def _finish(self, live: Live, reason: FinishReason, ending: str) -> None:
        request_id = live.request.request_id
        del self._live[request_id]
        self._release(live)
        live.write_down(self.journal, ending)
        if not live.ticket.mirror:
            self._tell_end(request_id, reason)

    def _tell_end(self, request_id: str, reason: FinishReason) -> None:
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[EngineCoreOutput(request_id, [], finish_reason=reason)]))

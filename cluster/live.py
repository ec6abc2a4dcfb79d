"""What ClusterCore keeps of each open request, and of each replica that it is connected to. Knows no vLLM."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from cluster.journal import Ended, Journal
from cluster.outcomes import RequestContext, Verdict
from replicas.messages import Grant, ReplicaInfo, Resync, Ticket
from replicas.wire import Connection, Kind

logger = logging.getLogger("ray.serve")

DEATHS_TO_QUARANTINE = 2  # once may be chance; what has seen two replicas die may be what killed them

Key = tuple[str, int]  # one life of a replica: its id and epoch


def key_of(of: Grant | ReplicaInfo) -> Key:
    return of.replica_id, of.epoch


def first_ticket(request: Any, context: RequestContext, blocks: tuple[int, ...]) -> Ticket:
    """Of vLLM's EngineCoreRequest; `blocks` as in `Ticket.blocks`."""
    return Ticket(
        request_id=request.request_id,
        prompt_tokens=len(request.prompt_token_ids or ()),
        max_tokens=request.sampling_params.max_tokens or 1,
        tenant=context.tenant,
        priority=request.priority,
        ttft_s=context.ttft_s,
        blocks=blocks,
        version=context.pinned or context.version,
        session=context.session(request.external_req_id or request.request_id),
        first_of_request=context.is_first_ticket(),
    )


@dataclass
class Live:
    """A request that this gateway has open."""

    request: Any  # vLLM's EngineCoreRequest
    ticket: Ticket
    context: RequestContext
    delivered: list[int] = field(default_factory=list)
    delivered_before: int = 0  # tokens that had been delivered when the ticket was made
    grant: Grant | None = None  # None: waiting
    submitted_at: float = 0.0  # monotonic seconds at which its replica was sent it; 0: none was
    deaths: int = 0  # replicas that were lost while it ran there
    lost_at: float = 0.0  # monotonic seconds; set while a resumed request has no new token yet
    moving: bool = False  # what was lost was given back, for its replica drains
    # For its record, in monotonic seconds; None: it has not come to that.
    queued_at: float = field(default_factory=time.monotonic)
    granted_at: float | None = None
    sent_at: float | None = None  # as submitted_at, of the grant that gave it its first token
    first_token_at: float | None = None
    last_token_at: float | None = None
    ran_on: ReplicaInfo | None = None
    cached_tokens: int = 0
    resumes: int = 0
    longest_gap_s: float = 0.0

    def __post_init__(self) -> None:
        # Of a tool call's next turn, its time begins when the turn before it had ended.
        before = self.context.records
        self.arrived_at = before[-1].ended_at if before else self.context.arrived_at

    @property
    def verdict(self) -> Verdict:
        return self.context.verdict

    @property
    def quarantined(self) -> bool:
        return self.deaths >= DEATHS_TO_QUARANTINE

    def lose_replica(self, by_its_own_will: bool, now: float) -> None:
        """Its replica's connection is gone."""
        self.lost_at, self.moving = now, False
        if self.submitted_at and not by_its_own_will:
            self.deaths += 1

    def granted(self, grant: Grant, info: ReplicaInfo, now: float) -> None:
        self.grant, self.ran_on = grant, info
        self.context.version = info.version
        if self.first_token_at is None:
            self.granted_at, self.sent_at = now, None

    def submitted(self, now: float) -> None:
        self.submitted_at = now
        if self.first_token_at is None:
            self.sent_at = now

    @property
    def tokens_left(self) -> int:
        """Output tokens that it may still have."""
        return max((self.request.sampling_params.max_tokens or 1) - len(self.delivered), 0)

    def ticket_anew(self) -> Ticket:
        """Its ticket for `prompt + delivered tokens`, ahead of the queue, on the version that its answer is of."""
        self.resumes += 1
        self.delivered_before = len(self.delivered)
        context = self.context
        if not self.delivered and context.open_requests == 1 and not context.records:
            context.version = ""  # nothing of the answer is there: it may begin anywhere
        self.ticket = msgspec.structs.replace(
            self.ticket,
            prompt_tokens=len(self.request.prompt_token_ids or ()) + len(self.delivered),
            max_tokens=self.tokens_left,
            resumed=True,
            version=context.pinned or context.version,
        )
        return self.ticket

    def goes_on(self, now: float) -> float:
        """It has a token after a loss; how long it had none."""
        gap_s, self.lost_at = now - self.lost_at, 0.0
        self.longest_gap_s = max(self.longest_gap_s, gap_s)
        return gap_s

    def write_down(self, journal: Journal, ending: str) -> None:
        """It has ended."""
        record = Ended(
            request_id=self.ticket.request_id,
            model=journal.model,
            version=self.ran_on.version if self.ran_on else "",
            tenant=self.ticket.tenant.name,
            priority=self.ticket.priority,
            replica=self.ran_on.replica_id if self.ran_on else None,
            prompt_tokens=len(self.request.prompt_token_ids or ()),
            cached_tokens=self.cached_tokens,
            output_tokens=len(self.delivered),
            arrived_at=self.arrived_at,
            queued_at=self.queued_at,
            granted_at=self.granted_at,
            submitted_at=self.sent_at,
            first_token_at=self.first_token_at,
            last_token_at=self.last_token_at,
            ended_at=time.monotonic(),
            ending=ending,
            resumes=self.resumes,
            longest_gap_s=self.longest_gap_s,
            ttft_slo_s=self.context.ttft_slo_s,
            session=self.ticket.session,
            mirror=self.ticket.mirror,
        )
        journal.ended(self.context, record)


@dataclass
class Peer:
    """A replica as this gateway is connected to it, in one epoch."""

    info: ReplicaInfo
    connection: Connection | None = None  # None: connecting
    unsent: list[Live] = field(default_factory=list)  # granted before the connection stood
    heard_at: float = 0.0  # monotonic seconds
    tokens: int = 0  # that came from it
    signs: int = 0  # ALIVE: a step has ended which had no token for us
    leaving: bool = False  # it said that it stops by its own will

    def heard(self, kind: Kind) -> None:
        self.heard_at = time.monotonic()
        self.signs += kind is Kind.ALIVE


class SeenReplica(NamedTuple):
    """A replica as this gateway sees it: who stands still says nothing of it, so what it gives is counted here."""

    replica_id: str
    epoch: int
    version: str
    running: int  # requests that it has of ours
    tokens: int  # that came from it since we are connected
    signs: int  # of life without a token, for prompts that take many steps


def seen_replicas(peers: Iterable[Peer], live: Iterable[Live]) -> list[SeenReplica]:
    running = Counter(key_of(one.grant) for one in live if one.grant is not None and one.submitted_at)
    return [
        SeenReplica(*key_of(peer.info), peer.info.version, running[key_of(peer.info)], peer.tokens, peer.signs)
        for peer in peers
    ]


def by_peer(some: Iterable[Live], peers: Mapping[Key, Peer]) -> list[tuple[Peer, list[str]]]:
    """Request ids by the replica that they are granted to, if it is still known."""
    ids: dict[Key, list[str]] = {}
    for live in some:
        if live.grant is not None:
            ids.setdefault(key_of(live.grant), []).append(live.request.request_id)
    return [(peers[key], those) for key, those in ids.items() if key in peers]


def resync(gateway: str, metrics: str, live: Iterable[Live]) -> Resync:
    """All that a gateway has open."""
    live = list(live)
    return Resync(
        gateway=gateway,
        metrics=metrics,
        waiting=tuple(one.ticket for one in live if one.grant is None),
        running=tuple((one.ticket, one.grant) for one in live if one.grant is not None),
    )


@dataclass
class Resumes:
    """What replica losses have cost this gateway's streams so far."""

    count: int = 0
    moved: int = 0  # off a replica that was to be drained
    quarantined: int = 0
    longest_gap_s: float = 0.0


class HangWatch:
    """Finds replicas that have our requests and say nothing. Pure: times are passed in."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.look_every_s = limit_s / 8
        self._looked_at = 0.0
        self._found: deque[SeenReplica] = deque(maxlen=64)

    def take_found(self) -> list[SeenReplica]:
        """What `hung` found since this was asked last."""
        taken = list(self._found)
        self._found.clear()
        return taken

    def hung(self, peers: Iterable[Peer], live: Iterable[Live], now: float) -> Iterator[Peer]:
        """Peers whose connection stands, silent for the limit although they have had a request of ours for as long."""
        late, self._looked_at = now - self._looked_at > 2 * self.look_every_s, now
        if late:  # it was we who stood still: what they said meanwhile has yet to be read
            return
        since: dict[Key, float] = {}
        for one in (live := list(live)):
            if one.grant is not None and one.submitted_at:
                key = key_of(one.grant)
                since[key] = min(since.get(key, now), one.submitted_at)
        for peer in peers:
            at = since.get(key_of(peer.info))
            if peer.connection is not None and at is not None and now - max(at, peer.heard_at) > self._limit_s:
                self._found += seen_replicas([peer], live)
                yield peer


class Resources:
    """ClusterCore's own tasks, and where AsyncLLM looks for the engine's death. Replicas die and requests wait: only a
    mistake of ours is one.
    """

    def __init__(self) -> None:
        self.engine_dead = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """None of them ends by an exception but by a mistake of ours: then the gateway must be replaced."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("ClusterCore broke down; this gateway is unhealthy from now on.", exc_info=error)
            self.engine_dead = True

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

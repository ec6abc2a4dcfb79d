"""Model versions: each has its replicas, what these have cached, and the tickets that wait for them. Pure.

A ticket that has not started goes where its session belongs (`traffic`), and elsewhere while nobody takes requests
there; one that has started never moves to another version.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from cluster.prefix_index import NONE, Anchors, PrefixIndex
from cluster.replica_room import ReplicaRoom
from cluster.traffic import laid_out
from cluster.waiting import Waiting, WaitingQueue
from replicas.messages import ReplicaInfo, Ticket

DRAIN_WINDOW_S = 10.0


@dataclass
class DrainRate:
    """Prompt tokens granted a second, over the last ten or so."""

    tokens: float = 0.0
    at: float = 0.0

    def add(self, tokens: int, now: float) -> None:
        self.tokens = self.tokens * math.exp(-(now - self.at) / DRAIN_WINDOW_S) + tokens
        self.at = now

    def seconds_for(self, tokens: int) -> float:
        """In how many seconds so many are granted; 0: not known."""
        return tokens * DRAIN_WINDOW_S / self.tokens if self.tokens else 0.0


@dataclass(eq=False)
class Pool:
    """One model version."""

    queue: WaitingQueue
    replicas: dict[str, ReplicaRoom] = field(default_factory=dict)
    taking: int = 0  # replicas that are not drained
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)  # other weights make other KV: nothing is shared
    # Heap of (load score, id) of replicas that may have room; stale ones are dropped when met.
    ready: list[tuple[float, str]] = field(default_factory=list)
    listed: dict[str, float] = field(default_factory=dict)  # id -> the score under which it stands there
    paced: list[tuple[float, str]] = field(default_factory=list)  # heap of (time, id): ready again by their pace then
    parked: dict[str, dict[str, Waiting]] = field(default_factory=dict)  # replica id -> who waits for it alone
    changed: dict[str, None] = field(default_factory=dict)  # replicas, waited for, that may have room now
    last: ReplicaRoom | None = None  # granted to last: what a prefill costs here
    without_since: float | None = 0.0  # when the last replica left or took no more; None: after the last decision
    drain_rate: DrainRate = field(default_factory=DrainRate)

    def list_ready(self, room: ReplicaRoom) -> None:
        """Puts a replica where its load belongs; called whenever that has changed."""
        replica_id, score = room.info.replica_id, room.load_score
        if replica_id in self.parked:
            self.changed[replica_id] = None
        if self.listed.get(replica_id) == score:
            return
        self.listed[replica_id] = score
        heapq.heappush(self.ready, (score, replica_id))
        if len(self.ready) > 64 + 4 * len(self.replicas):  # stale ones below the top
            self.ready = [(score, replica_id) for replica_id, score in self.listed.items()]
            heapq.heapify(self.ready)

    def list_at(self, at: float, replica_id: str) -> None:
        """It is ready again, by its pace, at that time."""
        heapq.heappush(self.paced, (at, replica_id))

    def wake(self, now: float) -> None:
        """Lists those whose time has come."""
        while self.paced and self.paced[0][0] <= now:
            _, replica_id = heapq.heappop(self.paced)
            if (room := self.replicas.get(replica_id)) is not None:
                self.list_ready(room)
                self.changed[replica_id] = None

    def ready_ones(self, now: float, tpot_s: float | None, share: float) -> Iterator[ReplicaRoom]:
        """Replicas with room, least loaded first. Closing the generator puts back what it took from the heap."""
        kept = []
        try:
            while self.ready:
                score, replica_id = heapq.heappop(self.ready)
                room = self.replicas.get(replica_id)
                if room is None or self.listed.get(replica_id) != score:
                    continue
                if room.is_ready(now, tpot_s, share):
                    kept.append((score, replica_id))
                    yield room
                elif share < 1.0:  # it may have room for others
                    kept.append((score, replica_id))
                else:
                    del self.listed[replica_id]  # until something changes there
                    if room.ready_at > now:
                        self.list_at(room.ready_at, replica_id)
        finally:
            for entry in kept:
                heapq.heappush(self.ready, entry)


class Pools:
    """All versions, and where each waiting ticket is."""

    def __init__(self, new_queue: Callable[[], WaitingQueue]) -> None:
        self._new_queue = new_queue
        self._by_version: dict[str, Pool] = {}  # one without replicas may hold tickets that started there
        self._lobby = Pool(new_queue())  # unstarted tickets, while there is no replica for them
        self._version: dict[str, str] = {}  # replica id -> version
        self._waits_in: dict[str, Pool] = {}  # request id -> pool
        self._shares: Mapping[str, float] | None = None
        self._stable = ""
        self._routes: list[tuple[float, Pool]] = []  # intervals of `traffic`, and who serves each

    def __iter__(self) -> Iterator[Pool]:
        yield from self._by_version.values()
        yield self._lobby

    # -- replicas -----------------------------------------------------------------------------------------------------

    def of(self, room: ReplicaRoom) -> Pool:
        return self._by_version[room.info.version]

    def of_version(self, version: str) -> Pool | None:
        return self._by_version.get(version)

    def room(self, replica_id: str) -> ReplicaRoom | None:
        version = self._version.get(replica_id)
        return None if version is None else self._by_version[version].replicas.get(replica_id)

    def known(self, replica_id: str, epoch: int) -> ReplicaRoom | None:
        """The replica, if it lives in that epoch."""
        room = self.room(replica_id)
        return room if room is not None and room.info.epoch == epoch else None

    def join(self, info: ReplicaInfo) -> ReplicaRoom:
        """Takes in a replica that is not there. Once it is known what it runs, `reroute` lets tickets find it."""
        pool = self._pool(info.version)
        room = pool.replicas[info.replica_id] = ReplicaRoom(info)
        pool.taking += 1
        self._version[info.replica_id] = info.version
        capacity = info.capacity
        pool.prefixes.join(info.replica_id, capacity.block_tokens, capacity.kv_tokens // capacity.block_tokens)
        return room

    def leave(self, room: ReplicaRoom, now: float | None) -> None:
        """`now`: None if it is not known."""
        replica_id = room.info.replica_id
        self.unpark(room)
        pool = self._by_version[self._version.pop(replica_id)]
        del pool.replicas[replica_id]
        pool.listed.pop(replica_id, None)
        pool.prefixes.leave(replica_id)
        if not room.draining:
            pool.taking -= 1
            pool.without_since = now
        self._lobby.without_since = now
        self.reroute()

    def drain(self, room: ReplicaRoom) -> None:
        """It takes no more requests."""
        if not room.draining:
            room.draining = True
            self.unpark(room)
            pool = self.of(room)
            pool.taking -= 1
            pool.without_since = None
            self.reroute()

    def unpark(self, room: ReplicaRoom) -> None:
        """Nobody waits for this replica alone any more."""
        pool = self.of(room)
        for waiting in pool.parked.pop(room.info.replica_id, {}).values():
            if waiting.request_id in pool.queue:
                pool.queue.unpark(waiting)

    # -- tickets ------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return len(self._waits_in)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waits_in

    def add(self, pool: Pool, waiting: Waiting) -> None:
        pool.queue.add(waiting)
        self._waits_in[waiting.request_id] = pool

    def remove(self, request_id: str) -> None:
        """Takes a ticket out, granted, denied or withdrawn; one that does not wait is ignored."""
        if (pool := self._waits_in.pop(request_id, None)) is not None:
            pool.queue.remove(request_id)

    # -- versions -----------------------------------------------------------------------------------------------------

    def set_traffic(self, shares: Mapping[str, float] | None, stable: str) -> None:
        """Shares of unstarted requests by version; None: by the number of replicas of each.

        A version that is not named gets none. The order is as in `traffic.laid_out`.
        """
        self._shares, self._stable = shares, stable
        self.reroute()

    def _pool(self, version: str) -> Pool:
        pool = self._by_version.get(version)
        if pool is None:
            pool = self._by_version[version] = Pool(self._new_queue())
        return pool

    @property
    def serving(self) -> bool:
        """Whether any version has a replica that takes requests."""
        return any(pool.taking for pool in self._by_version.values())

    def route(self, ticket: Ticket) -> Pool:
        """A started request's own version; else the one that its session belongs to."""
        if ticket.version:
            return self._pool(ticket.version)
        for end, pool in self._routes:
            if ticket.session < end:
                return pool
        return self._lobby

    def _laid_routes(self) -> list[tuple[float, Pool]]:
        there = {version: pool for version, pool in self._by_version.items() if pool.replicas}
        shares = self._shares
        if shares is None:
            by_name = sorted(there)  # whatever order they joined in: a session keeps its version if the router restarts
            shares = {v: float(there[v].taking) for v in by_name if there[v].taking} or dict.fromkeys(by_name, 1.0)
        intervals = laid_out(shares, self._stable)
        able = [version for _, version in intervals if (pool := there.get(version)) is not None and pool.taking]
        able = able or [version for _, version in intervals if version in there]
        if not able:
            return []
        elsewhere = self._stable if self._stable in able else max(able, key=lambda version: shares[version])
        return [(end, there[version if version in able else elsewhere]) for end, version in intervals]

    def reroute(self) -> None:
        """Tickets that have not started go where they belong now."""
        routes = self._laid_routes()
        if routes != self._routes:
            self._routes = routes
            moving = [
                (to, waiting)
                for pool in self
                for waiting in pool.queue
                if (to := self.route(waiting.ticket)) is not pool
            ]
            for to, waiting in moving:
                self.remove(waiting.request_id)
                self.add(to, self._as_seen_by(to, waiting))
            for to in dict.fromkeys(to for to, _ in moving):
                to.queue.sort_by_arrival()
        for version, pool in list(self._by_version.items()):
            if not pool.replicas and not len(pool.queue):
                del self._by_version[version]

    def _as_seen_by(self, pool: Pool, waiting: Waiting) -> Waiting:
        """The ticket with what this version has cached of its prompt. A new object: queues know theirs by identity."""
        anchors, prefill = self.prefill(pool, waiting.ticket)
        return dataclasses.replace(waiting, anchors=anchors, prefill=prefill, parked_until=0.0)

    @staticmethod
    def prefill(pool: Pool, ticket: Ticket) -> tuple[Anchors, int]:
        """The prompt's anchors there, and how many of its tokens are yet to be computed."""
        if not ticket.blocks or not pool.replicas:
            return NONE, ticket.prompt_tokens
        anchors = pool.prefixes.anchors(ticket)
        return anchors, max(ticket.prompt_tokens - pool.prefixes.longest(anchors).tokens, 1)

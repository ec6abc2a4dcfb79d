"""Model versions: each has its replicas and the tickets that wait for them. Pure.

A ticket that has not started goes to the version that is furthest behind its share of the traffic, and elsewhere if
that version leaves; one that has started never moves to another version.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from cluster.replica_room import ReplicaRoom
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
    # Heap of (load score, id) of replicas that may have room; stale ones are dropped when met.
    ready: list[tuple[float, str]] = field(default_factory=list)
    listed: dict[str, float] = field(default_factory=dict)  # id -> the score under which it stands there
    paced: list[tuple[float, str]] = field(default_factory=list)  # heap of (time, id): ready again by their pace then
    parked: dict[str, dict[str, Waiting]] = field(default_factory=dict)  # replica id -> who waits for it alone
    changed: dict[str, None] = field(default_factory=dict)  # replicas, waited for, that may have room now
    last: ReplicaRoom | None = None  # granted to last: what a prefill costs here
    without_since: float = 0.0  # when the last replica left
    drain_rate: DrainRate = field(default_factory=DrainRate)
    granted: int = 0  # tickets given to it, for its share of the traffic

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
        self._by_version: dict[str, Pool] = {}  # one without replicas may hold tickets
        self._version: dict[str, str] = {}  # replica id -> version
        self._waits_in: dict[str, Pool] = {}  # request id -> pool
        self._traffic: Mapping[str, float] | None = None

    def __iter__(self) -> Iterator[Pool]:
        yield from self._by_version.values()

    # -- replicas -----------------------------------------------------------------------------------------------------

    def of(self, room: ReplicaRoom) -> Pool:
        return self._by_version[room.info.version]

    def room(self, replica_id: str) -> ReplicaRoom | None:
        version = self._version.get(replica_id)
        return None if version is None else self._by_version[version].replicas.get(replica_id)

    def known(self, replica_id: str, epoch: int) -> ReplicaRoom | None:
        """The replica, if it lives in that epoch."""
        room = self.room(replica_id)
        return room if room is not None and room.info.epoch == epoch else None

    def join(self, info: ReplicaInfo) -> ReplicaRoom:
        pool = self._pool(info.version)
        room = pool.replicas[info.replica_id] = ReplicaRoom(info)
        self._version[info.replica_id] = info.version
        return room

    def leave(self, room: ReplicaRoom, now: float) -> None:
        replica_id = room.info.replica_id
        self.unpark(room)
        pool = self._by_version[self._version.pop(replica_id)]
        del pool.replicas[replica_id]
        pool.listed.pop(replica_id, None)
        pool.without_since = now
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

    def set_traffic(self, weights: Mapping[str, float] | None) -> None:
        """Shares of unstarted requests by model version; None: by the number of replicas of each."""
        self._traffic = weights
        self.reroute()

    def _pool(self, version: str) -> Pool:
        pool = self._by_version.get(version)
        if pool is None:
            pool = self._by_version[version] = Pool(self._new_queue())
        return pool

    def _share(self, version: str, pool: Pool) -> float:
        if not pool.replicas:
            return 0.0
        return float(len(pool.replicas)) if self._traffic is None else self._traffic.get(version, 0.0)

    def route(self, ticket: Ticket) -> Pool:
        """The version that is furthest behind its share of the traffic; a started request's own."""
        if ticket.version:
            return self._pool(ticket.version)
        shares = [(share, pool) for v, pool in self._by_version.items() if (share := self._share(v, pool)) > 0.0]
        if not shares:  # nobody is there: wherever it waits, it moves when somebody comes
            return self._pool("")
        return min(shares, key=lambda at: (at[1].granted + len(at[1].queue) + 1) / at[0])[1]

    def reroute(self) -> None:
        """Tickets that wait where nobody serves them any more go where somebody does."""
        for version, pool in list(self._by_version.items()):
            if self._share(version, pool) > 0.0:
                continue
            for waiting in list(pool.queue):
                to = self.route(waiting.ticket)
                if to is not pool:
                    self.remove(waiting.request_id)
                    waiting.parked_until = 0.0
                    self.add(to, waiting)
            if not pool.replicas and not pool.queue:
                del self._by_version[version]

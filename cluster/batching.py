"""ContinuousBatcher: which waiting request goes to which replica now. Pure: no clock, no I/O, no Ray.

Late binding: a ticket is bound to a replica only when that replica's batch has room for it, so that the engines' own
queues stay empty and everything that has not started can still be ordered, moved, or given up.

- Room (`replica_room`): KV for the prompt and its expected growth, the running-sequence limit, and prefill in a pace
  that leaves running streams their time per output token.
- Order (`waiting`): resumed, starving, priority, fairness, shortest prefill.
- Place: where the prompt's beginning is cached, else where the next step is shortest.
- Shed: a ticket whose first token cannot come in time any more is denied at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import msgspec

from cluster.batcher import Decision, ReplicaView, WaitingView
from cluster.outcomes import Ending
from cluster.output_length import OutputLength
from cluster.pools import Pool, Pools
from cluster.prefix_index import NOBODY, Anchors, Match
from cluster.replica_room import LOWER_CLASSES, ReplicaRoom
from cluster.waiting import TokenCounters, Waiting, WaitingQueue
from replicas.messages import Denial, Grant, LoadReport, Released, ReplicaInfo, Ticket

LOOK_AT = 8  # replicas that are tried for a ticket whose KV does not fit the first
PARK_TOKENS = 256  # cached prompt tokens that are worth waiting for
PARK_S = 0.2  # and for how long, where no deadline says
PARK_SHARE = 0.5  # of the time that is left to start elsewhere, where one does: that may have its queue too
MIRROR_WAIT_S = 1.0  # a copy that found no room in this time is dropped
MIRRORS = 256  # copies that may wait, over all versions
BETTER_CLASS_S = 60.0  # a better priority class keeps its reserve for so long after its last request

NOWHERE = Match(0, NOBODY)  # a prompt of which nobody holds a beginning


@dataclass(frozen=True)
class Policy:
    """What the batcher is to hold. Seconds."""

    no_replica_wait_s: float = 30.0
    tpot_s: float | None = None  # time per output token of running streams; None: whatever it becomes
    starvation_s: float = 30.0  # nobody is overtaken for longer
    cold_start: bool = False  # who comes while no replica is there waits for one to load, whatever TTFT it wanted


class _Placed(NamedTuple):
    owner: str
    ticket: Ticket
    replica_id: str
    epoch: int


class ContinuousBatcher:
    """The cluster-wide queue and what each replica holds."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._counters = TokenCounters()
        self._pools = Pools(lambda: WaitingQueue(self._counters, policy.starvation_s))
        self._placed: dict[str, _Placed] = {}  # where its owner has it, which may be a replica that has left
        self._lengths = OutputLength()
        self._last_of_class: dict[int, float] = {}  # priority -> when a request of it came last
        self._mirrors: dict[str, Waiting] = {}  # copies that wait, in order of arrival; in no queue, and no count

    # -- replicas -----------------------------------------------------------------------------------------------------

    def join(self, info: ReplicaInfo) -> None:
        """A replica is ready. A later epoch replaces an earlier one; an earlier one is ignored.

        It brings what it still runs: it may only have been silent, or we restarted and its gateways told us first.
        """
        known = self._pools.room(info.replica_id)
        if known is not None:
            if known.info.epoch >= info.epoch:
                return
            self._pools.leave(known, None)
        room = self._pools.join(info)
        for request_id, placed in self._placed.items():
            if (placed.replica_id, placed.epoch) == (info.replica_id, info.epoch):
                anchors = self._pools.of(room).prefixes.anchors(placed.ticket)
                room.take(request_id, self._kv_tokens(placed.ticket, info), 0, anchors)
        self._pools.of(room).list_ready(room)
        self._pools.reroute()

    def leave(self, replica_id: str, epoch: int, now: float) -> bool:
        """A replica is gone: nothing more is granted to it. False: that life of it was gone already.

        What ran there is its gateways' to release, when they have lost it too.
        """
        room = self._pools.known(replica_id, epoch)
        if room is None:
            return False
        self._pools.leave(room, now)
        return True

    def drain(self, replica_id: str, epoch: int) -> bool:
        """Nothing more is granted to it; what runs there goes on. False: that life of it is not known."""
        if (room := self._pools.known(replica_id, epoch)) is None:
            return False
        self._pools.drain(room)
        return True

    def report(self, load: LoadReport) -> bool:
        """Takes a load report; False if that replica, in that epoch, is not known here."""
        room = self._pools.known(load.replica_id, load.epoch)
        if room is None:
            return False
        room.load = load
        room.fit.learn(load.work)
        pool = self._pools.of(room)
        pool.list_ready(room)
        pool.prefixes.events(load.replica_id, load.stored, load.removed)
        return True

    def set_traffic(self, shares: Mapping[str, float] | None, stable: str = "") -> None:
        """See `Pools.set_traffic`."""
        self._pools.set_traffic(shares, stable)

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(self, owner: str, ticket: Ticket, now: float) -> int:
        if ticket.request_id in self._pools or ticket.request_id in self._placed:
            return 0
        if ticket.mirror:
            self._mirrors.setdefault(ticket.request_id, Waiting(owner, ticket, now, ticket.prompt_tokens))
            return 0
        pool = self._pools.route(ticket)
        if self._policy.cold_start and not pool.replicas:
            ticket = msgspec.structs.replace(ticket, ttft_s=None)
        anchors, prefill = self._pools.prefill(pool, ticket)
        waiting = Waiting(owner, ticket, now, prefill, anchors)
        if ticket.ttft_s is not None and not ticket.resumed:
            soonest = pool.last.first_token_s(waiting.prefill, now) if pool.last else 0.0
            waiting.latest_start = now + ticket.ttft_s - soonest
        self._last_of_class[ticket.priority] = now
        self._pools.add(pool, waiting)
        return waiting.prefill

    def expected_output(self, ticket: Ticket) -> int:
        return self._lengths.expected(ticket.tenant.name, ticket.prompt_tokens, ticket.max_tokens)

    def adopt(self, owner: str, ticket: Ticket, grant: Grant) -> None:
        """Takes over a request that runs already (the router restarted), whether its replica has joined yet or not."""
        self.release(Released(request_id=ticket.request_id))
        self._place(owner, ticket, grant, 0)

    def started(self, request_id: str, now: float) -> None:
        """Its first token has come: its prefill is over."""
        if (placed := self._placed.get(request_id)) and (room := self._pools.known(placed.replica_id, placed.epoch)):
            room.started(request_id, now)
            self._pools.of(room).list_ready(room)

    def release(self, released: Released) -> None:
        """A request ended, was cancelled, or lost its replica: it neither waits nor runs any more."""
        request_id = released.request_id
        self._pools.remove(request_id)
        self._mirrors.pop(request_id, None)
        if (placed := self._placed.pop(request_id, None)) is None:
            return
        ticket = placed.ticket
        if not ticket.mirror:
            self._counters.charge(ticket.tenant.name, ticket.tenant.weight, released.output_tokens)
        if released.whole and not ticket.mirror:
            self._lengths.learn(ticket.tenant.name, ticket.prompt_tokens, released.output_tokens)
        if (room := self._pools.known(placed.replica_id, placed.epoch)) is not None:
            room.release(request_id)
            self._pools.of(room).list_ready(room)

    def forget_owner(self, owner: str) -> None:
        """A gateway is gone: so are its requests."""
        gone = [w.request_id for pool in self._pools for w in pool.queue if w.owner == owner]
        gone += [request_id for request_id, waiting in self._mirrors.items() if waiting.owner == owner]
        gone += [request_id for request_id, placed in self._placed.items() if placed.owner == owner]
        for request_id in gone:
            self.release(Released(request_id=request_id))

    # -- deciding -----------------------------------------------------------------------------------------------------

    def decide(self, now: float) -> Decision:
        """Grants what has room now, in order; denies what cannot be had in time."""
        decision = Decision([], [])
        for pool in self._pools:
            if not pool.taking:
                self._give_up(pool, now, decision)
            if not pool.replicas:
                continue
            for waiting in pool.queue.late(now):
                self._deny(pool, waiting, Ending.TOO_LATE, decision)
            if len(pool.queue):
                pool.wake(now)
                self._grant_parked(pool, now, decision)
                self._grant_in_order(pool, now, decision)
        if self._mirrors:
            self._grant_mirrors(now, decision)
        return decision

    def _give_up(self, pool: Pool, now: float, decision: Decision) -> None:
        """Denies who has waited long enough where nobody takes requests.

        While a replica drains there, an unstarted ticket waits on: it is there because nobody else takes any either.
        """
        if pool.without_since is None:
            pool.without_since = now
        if not len(pool.queue):
            return
        for waiting in list(pool.queue):
            if pool.replicas and not waiting.ticket.version:
                continue
            if now - max(waiting.since, pool.without_since) >= self._policy.no_replica_wait_s:
                gone = waiting.ticket.version and self._pools.serving
                self._deny(pool, waiting, Ending.VERSION_GONE if gone else Ending.NO_REPLICA, decision)

    def _deny(self, pool: Pool, waiting: Waiting, ending: Ending, decision: Decision) -> None:
        self._pools.remove(waiting.request_id)
        retry_after_s = pool.drain_rate.seconds_for(pool.queue.prefill_tokens) if ending is Ending.TOO_LATE else 0.0
        detail = f"Version {waiting.ticket.version}: {ending.sentence}" if ending is Ending.VERSION_GONE else ""
        denial = Denial(request_id=waiting.request_id, ending=ending.name, retry_after_s=retry_after_s, detail=detail)
        decision.denials.append((waiting.owner, denial))

    def _grant_in_order(self, pool: Pool, now: float, decision: Decision) -> None:
        best = min((p for p, at in self._last_of_class.items() if now - at < BETTER_CLASS_S), default=0)
        while (waiting := pool.queue.head(now)) is not None:
            ticket = waiting.ticket
            share = LOWER_CLASSES if ticket.priority > best and not ticket.resumed else 1.0
            match = pool.prefixes.longest(waiting.anchors)
            room = self._pick(pool, waiting, match, now, share)
            if room is None:
                return
            if self._comes_too_late(pool, room, waiting, now):
                self._deny(pool, waiting, Ending.TOO_LATE, decision)
                continue
            if (holder := self._worth_waiting_for(pool, waiting, match, room, now)) is not None:
                pool.parked.setdefault(holder, {})[ticket.request_id] = waiting
                continue
            self._grant(pool, waiting, room, now, decision)

    def _grant_mirrors(self, now: float, decision: Decision) -> None:
        """Copies get what room is left where nobody waits, at once or not at all."""
        for request_id, waiting in list(self._mirrors.items()):
            pool, room = self._pools.of_version(waiting.ticket.version), None
            if pool is not None and not len(pool.queue):
                pool.wake(now)
                room = self._pick(pool, waiting, NOWHERE, now, LOWER_CLASSES)
            if pool is not None and room is not None:
                self._grant(pool, waiting, room, now, decision)
            elif now - waiting.since >= MIRROR_WAIT_S or len(self._mirrors) > MIRRORS:
                denial = Denial(request_id=request_id, ending=Ending.TOO_LATE.name, mirror=True)
                decision.denials.append((waiting.owner, denial))
            else:
                return  # it goes first; the rest have come later
            del self._mirrors[request_id]

    def _pick(self, pool: Pool, waiting: Waiting, match: Match, now: float, share: float) -> ReplicaRoom | None:
        """A replica with room for it now: one that holds its beginning, else the least loaded one."""
        ticket = waiting.ticket
        many_hold_it = len(match.holders) > LOOK_AT
        if not many_hold_it:
            rooms = [room for holder in match.holders if (room := pool.replicas.get(holder)) is not None]
            if fitting := [r for r in rooms if self._fits(r, waiting, now, share)]:
                return min(fitting, key=lambda r: r.load_score)
        least_loaded = None
        ready = pool.ready_ones(now, self._policy.tpot_s, share)
        try:
            for _, room in zip(range(LOOK_AT), ready, strict=False):
                if room.has_kv(self._kv_tokens(ticket, room.info), share, waiting.anchors):
                    if not many_hold_it or room.info.replica_id in match.holders:
                        return room
                    least_loaded = least_loaded or room
        finally:
            ready.close()  # type: ignore[attr-defined]  # a generator
        return least_loaded

    def _comes_too_late(self, pool: Pool, room: ReplicaRoom, waiting: Waiting, now: float) -> bool:
        ticket = waiting.ticket
        if ticket.ttft_s is None or ticket.resumed:
            return False
        return now + room.first_token_s(_prefill(pool, room, waiting), now) > waiting.since + ticket.ttft_s

    def _fits(self, room: ReplicaRoom, waiting: Waiting, now: float, share: float) -> bool:
        return room.is_ready(now, self._policy.tpot_s, share) and room.has_kv(
            self._kv_tokens(waiting.ticket, room.info), share, waiting.anchors
        )

    def _worth_waiting_for(
        self, pool: Pool, waiting: Waiting, match: Match, room: ReplicaRoom, now: float
    ) -> str | None:
        """The busy replica that holds so much of the prompt that it is worth a wait, which then has begun."""
        ticket = waiting.ticket
        if match.tokens < PARK_TOKENS or waiting.parked_until or ticket.resumed:
            return None
        here = pool.prefixes.matched(room.info.replica_id, waiting.anchors)
        if match.tokens - here < PARK_TOKENS or pool.queue.is_starving(waiting, now):
            return None
        some = islice(match.holders, LOOK_AT)
        busy = [r for holder in some if (r := pool.replicas.get(holder)) is not None and not r.draining]
        if not busy:
            return None
        patience = PARK_S
        if ticket.ttft_s is not None:
            fresh_s = room.first_token_s(ticket.prompt_tokens - here, now)
            patience = PARK_SHARE * (waiting.since + ticket.ttft_s - fresh_s - now)
        if patience <= 0.0:
            return None
        pool.queue.park(waiting, now + patience)
        return min(busy, key=lambda r: r.load_score).info.replica_id

    def _grant_parked(self, pool: Pool, now: float, decision: Decision) -> None:
        changed, pool.changed = pool.changed, {}
        for replica_id in changed:
            parked, room = pool.parked.get(replica_id), pool.replicas.get(replica_id)
            if parked is None or room is None:
                continue
            for request_id, waiting in list(parked.items()):
                if request_id not in pool.queue or waiting.parked_until <= now:
                    del parked[request_id]
                elif self._fits(room, waiting, now, 1.0):
                    del parked[request_id]
                    self._grant(pool, waiting, room, now, decision)
                else:
                    if room.ready_at > now:
                        pool.list_at(room.ready_at, replica_id)
                    break
            if not parked:
                del pool.parked[replica_id]

    def _grant(self, pool: Pool, waiting: Waiting, room: ReplicaRoom, now: float, decision: Decision) -> None:
        ticket, info = waiting.ticket, room.info
        self._pools.remove(ticket.request_id)
        grant = Grant(request_id=ticket.request_id, replica_id=info.replica_id, epoch=info.epoch)
        prefill = _prefill(pool, room, waiting)
        room.expect(ticket.request_id, prefill, now)
        self._place(waiting.owner, ticket, grant, prefill, waiting.anchors)
        pool.prefixes.add(info.replica_id, waiting.anchors.blocks)
        room.pace(prefill, now, self._policy.tpot_s)
        if not ticket.mirror:
            self._counters.charge(ticket.tenant.name, ticket.tenant.weight, prefill)
            pool.drain_rate.add(prefill, now)
        pool.last = room
        decision.grants.append((waiting.owner, grant))

    def _place(self, owner: str, ticket: Ticket, grant: Grant, prefill: int, anchors: Anchors | None = None) -> None:
        self._placed[ticket.request_id] = _Placed(owner, ticket, grant.replica_id, grant.epoch)
        if room := self._pools.known(grant.replica_id, grant.epoch):
            pool = self._pools.of(room)
            if anchors is None:
                anchors = pool.prefixes.anchors(ticket)
            room.take(ticket.request_id, self._kv_tokens(ticket, room.info), prefill, anchors)
            pool.list_ready(room)

    def _kv_tokens(self, ticket: Ticket, info: ReplicaInfo) -> int:
        """KV tokens to reserve: the prompt and the expected growth, in whole blocks."""
        growth = self.expected_output(ticket)
        block = info.capacity.block_tokens
        return -(-min(ticket.prompt_tokens + growth, info.capacity.max_model_len) // block) * block

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Tickets that wait."""
        return self._pools.waiting

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of these that are yet to be computed."""
        return sum(pool.queue.prefill_tokens for pool in self._pools)

    @property
    def placed(self) -> int:
        """Requests granted and not yet released."""
        return len(self._placed)

    def waiting(self) -> Iterable[WaitingView]:
        return (WaitingView(waiting.ticket, waiting.since) for pool in self._pools for waiting in pool.queue)

    def replicas(self) -> Iterable[ReplicaView]:
        for pool in self._pools:
            for r in pool.replicas.values():
                yield ReplicaView(r.info, r.load, len(r.in_flight), r.kv_tokens, r.draining)

    def running_on(self, replica_id: str) -> list[tuple[str, str]]:
        """(owner, request id) of what is granted there and not released."""
        return [(placed.owner, r) for r, placed in self._placed.items() if placed.replica_id == replica_id]


def _prefill(pool: Pool, room: ReplicaRoom, waiting: Waiting) -> int:
    """Prompt tokens that the replica would have to compute."""
    cached = pool.prefixes.matched(room.info.replica_id, waiting.anchors) if waiting.anchors.blocks else 0
    return max(waiting.ticket.prompt_tokens - cached, 1)

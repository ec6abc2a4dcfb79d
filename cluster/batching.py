"""ContinuousBatcher: which waiting request goes to which replica now. Pure: no clock, no I/O, no Ray.

Late binding: a ticket is bound to a replica only when that replica's batch has room for it, so that the engines' own
queues stay empty and everything that has not started can still be ordered, moved, or given up.

The policy here is the simplest that is right: first come first served, resumed requests ahead, each to the replica
with the fewest KV tokens in flight. Times are seconds on the caller's clock.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.batcher import Decision, ReplicaView
from cluster.outcomes import Ending
from replicas.messages import Denial, Grant, LoadReport, Released, ReplicaInfo, Ticket

EXPECTED_OUTPUT_TOKENS = 256  # KV a request is expected to grow by, when it may grow further; vLLM preempts past it


@dataclass
class _Replica:
    info: ReplicaInfo
    in_flight: dict[str, int] = field(default_factory=dict)  # request id -> KV tokens reserved
    kv_in_flight: int = 0
    load: LoadReport | None = None
    draining: bool = False

    def has_room(self, kv_tokens: int) -> bool:
        capacity = self.info.capacity
        if self.draining:
            return False
        if not self.in_flight:  # whatever the estimate says, an idle replica can run one request
            return True
        return len(self.in_flight) < capacity.max_num_seqs and self.kv_in_flight + kv_tokens <= capacity.kv_tokens

    def take(self, request_id: str, kv_tokens: int) -> None:
        self.in_flight[request_id] = kv_tokens
        self.kv_in_flight += kv_tokens

    def release(self, request_id: str) -> None:
        self.kv_in_flight -= self.in_flight.pop(request_id, 0)


class _Waiting(NamedTuple):
    owner: str
    ticket: Ticket
    since: float


class _Placed(NamedTuple):
    owner: str
    ticket: Ticket
    replica_id: str
    epoch: int


class ContinuousBatcher:
    """The cluster-wide queue and what each replica holds."""

    def __init__(self, no_replica_wait_s: float) -> None:
        self._no_replica_wait_s = no_replica_wait_s
        self._replicas: dict[str, _Replica] = {}
        # Request id -> ticket, in the order of arrival; a resumed one goes ahead of every fresh one.
        self._resumed: OrderedDict[str, _Waiting] = OrderedDict()
        self._fresh: OrderedDict[str, _Waiting] = OrderedDict()
        # Request id -> where its owner has it, which may be a replica that has left: only the owner knows when it ends.
        self._placed: dict[str, _Placed] = {}
        self._last_replica_at = 0.0  # when the last one left

    # -- replicas -----------------------------------------------------------------------------------------------------

    def join(self, info: ReplicaInfo) -> None:
        """A replica is ready. A later epoch replaces an earlier one; an earlier one is ignored.

        It brings what it still runs: it may only have been silent, or we restarted and its gateways told us first.
        """
        known = self._replicas.get(info.replica_id)
        if known is not None and known.info.epoch >= info.epoch:
            return
        replica = self._replicas[info.replica_id] = _Replica(info)
        for request_id, placed in self._placed.items():
            if (placed.replica_id, placed.epoch) == (info.replica_id, info.epoch):
                replica.take(request_id, self._kv_tokens(placed.ticket, info))

    def leave(self, replica_id: str, epoch: int, now: float) -> bool:
        """A replica is gone: nothing more is granted to it. False: that life of it was gone already.

        What ran there is its gateways' to release, when they have lost it too.
        """
        if self._known(replica_id, epoch) is None:
            return False
        self._last_replica_at = now
        del self._replicas[replica_id]
        return True

    def drain(self, replica_id: str, epoch: int) -> bool:
        """Nothing more is granted to it; what runs there goes on. False: that life of it is not known."""
        if (replica := self._known(replica_id, epoch)) is None:
            return False
        replica.draining = True
        return True

    def report(self, load: LoadReport, now: float) -> bool:
        """Takes a load report; False if that replica, in that epoch, is not known here."""
        replica = self._known(load.replica_id, load.epoch)
        if replica is None:
            return False
        replica.load = load
        return True

    def _known(self, replica_id: str, epoch: int) -> _Replica | None:
        replica = self._replicas.get(replica_id)
        return replica if replica is not None and replica.info.epoch == epoch else None

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(self, owner: str, ticket: Ticket, now: float) -> None:
        """Queues a ticket. One that waits or runs already is not queued twice."""
        queue = self._resumed if ticket.resumed else self._fresh
        if not any(ticket.request_id in held for held in (self._resumed, self._fresh, self._placed)):
            queue[ticket.request_id] = _Waiting(owner, ticket, now)

    def adopt(self, owner: str, ticket: Ticket, grant: Grant) -> None:
        """Takes over a request that runs already (the router restarted), whether its replica has joined yet or not."""
        self.release(Released(request_id=ticket.request_id))
        self._place(owner, ticket, grant)

    def started(self, request_id: str, now: float) -> None:
        """Its first token has come."""

    def release(self, released: Released) -> None:
        """A request ended, was cancelled, or lost its replica: it neither waits nor runs any more."""
        request_id = released.request_id
        self._resumed.pop(request_id, None)
        self._fresh.pop(request_id, None)
        if (placed := self._placed.pop(request_id, None)) and (replica := self._known(placed.replica_id, placed.epoch)):
            replica.release(request_id)

    def forget_owner(self, owner: str) -> None:
        """A gateway is gone: so are its requests."""
        for held in (self._resumed, self._fresh, self._placed):
            for request_id in [r for r, of in held.items() if of.owner == owner]:
                self.release(Released(request_id=request_id))

    def decide(self, now: float) -> Decision:
        """Grants what has room now, in order; gives up on what has waited too long for any replica."""
        decision = Decision([], [])
        if self._replicas:
            while queue := self._resumed or self._fresh:
                request_id, (owner, ticket, _) = next(iter(queue.items()))
                replica = self._pick(ticket)
                if replica is None:
                    break
                del queue[request_id]
                grant = Grant(request_id=request_id, replica_id=replica.info.replica_id, epoch=replica.info.epoch)
                self._place(owner, ticket, grant)
                decision.grants.append((owner, grant))
        else:
            for queue in (self._resumed, self._fresh):
                while queue:
                    request_id, (owner, _, since) = next(iter(queue.items()))
                    if now - max(since, self._last_replica_at) < self._no_replica_wait_s:
                        break
                    del queue[request_id]
                    decision.denials.append((owner, Denial(request_id=request_id, ending=Ending.NO_REPLICA.name)))
        return decision

    def _place(self, owner: str, ticket: Ticket, grant: Grant) -> None:
        self._placed[ticket.request_id] = _Placed(owner, ticket, grant.replica_id, grant.epoch)
        if replica := self._known(grant.replica_id, grant.epoch):
            replica.take(ticket.request_id, self._kv_tokens(ticket, replica.info))

    def _pick(self, ticket: Ticket) -> _Replica | None:
        roomy = (r for r in self._replicas.values() if r.has_room(self._kv_tokens(ticket, r.info)))
        return min(roomy, key=lambda r: (r.kv_in_flight, r.info.replica_id), default=None)

    @staticmethod
    def _kv_tokens(ticket: Ticket, info: ReplicaInfo) -> int:
        """KV tokens to reserve: the prompt and the expected growth, in whole blocks."""
        tokens = ticket.prompt_tokens + min(ticket.max_tokens, EXPECTED_OUTPUT_TOKENS)
        block = info.capacity.block_tokens
        return -(-min(tokens, info.capacity.max_model_len) // block) * block

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Tickets that wait."""
        return len(self._resumed) + len(self._fresh)

    @property
    def placed(self) -> int:
        """Requests granted and not yet released."""
        return len(self._placed)

    def replicas(self) -> Iterable[ReplicaView]:
        for r in self._replicas.values():
            yield ReplicaView(r.info, r.load, len(r.in_flight), r.kv_in_flight, r.draining)

    def running_on(self, replica_id: str) -> list[tuple[str, str]]:
        """(owner, request id) of what is granted there and not released."""
        return [(placed.owner, r) for r, placed in self._placed.items() if placed.replica_id == replica_id]

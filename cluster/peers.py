"""What other routers do, as `Batcher`s: the setting `router.policy`, and the yardsticks of benches and simulator. Pure.

All bind a request when it arrives: its wait is in the engine's own queue, first come first served, and nothing is
shed. They know what such a router knows: what it has sent and seen end, and the replicas' last load reports.
"""

import random
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.batcher import Batcher, Decision, ReplicaView, WaitingView
from cluster.outcomes import Ending
from cluster.output_length import OutputLength
from replicas.messages import Denial, Grant, LoadReport, Released, ReplicaInfo, Ticket


@dataclass(eq=False)
class Peer:
    """A replica as a peer's router sees it."""

    info: ReplicaInfo
    load: LoadReport | None = None
    draining: bool = False
    in_flight: dict[str, int] = field(default_factory=dict)  # request id -> tokens it counts for
    tokens: int = 0  # sum of these


class _Placed(NamedTuple):
    owner: str
    ticket: Ticket
    replica_id: str
    epoch: int


class BindOnArrival(Batcher):
    """`Batcher` but for the choice of the replica."""

    def __init__(self, no_replica_wait_s: float = 30.0, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self._no_replica_wait_s = no_replica_wait_s
        self._peers: dict[str, Peer] = {}
        self._candidates: list[Peer] = []  # those not draining, in the order in which they joined
        self._waiting: OrderedDict[str, tuple[str, Ticket, float]] = OrderedDict()
        self._placed: dict[str, _Placed] = {}
        self._lengths = OutputLength()  # for autoscaling alone

    @abstractmethod
    def choose(self, ticket: Ticket, among: Sequence[Peer]) -> Peer:
        """Which of the replicas, of which there is one at least."""

    def weigh(self, ticket: Ticket) -> int:
        """Tokens that a request counts for while it is in flight."""
        return ticket.prompt_tokens

    def sent(self, ticket: Ticket, peer: Peer) -> None:
        """A request goes to that replica."""

    def gone(self, replica_id: str) -> None:
        """A replica has left."""

    def ended(self, ticket: Ticket, released: Released) -> None:
        """A request has ended by itself."""

    # -- replicas

    def join(self, info: ReplicaInfo) -> None:
        known = self._peers.get(info.replica_id)
        if known is not None:
            if known.info.epoch >= info.epoch:
                return
            self.gone(info.replica_id)
        peer = self._peers[info.replica_id] = Peer(info)
        for request_id, placed in self._placed.items():
            if (placed.replica_id, placed.epoch) == (info.replica_id, info.epoch):
                self._count(request_id, placed.ticket, peer)
        self._list_candidates()

    def leave(self, replica_id: str, epoch: int, now: float) -> bool:
        if self._known(replica_id, epoch) is None:
            return False
        del self._peers[replica_id]
        self.gone(replica_id)
        self._list_candidates()
        return True

    def drain(self, replica_id: str, epoch: int) -> bool:
        if (peer := self._known(replica_id, epoch)) is None:
            return False
        peer.draining = True
        self._list_candidates()
        return True

    def report(self, load: LoadReport) -> bool:
        if (peer := self._known(load.replica_id, load.epoch)) is None:
            return False
        peer.load = load
        return True

    def set_traffic(self, shares: Mapping[str, float] | None, stable: str = "") -> None:
        """Nothing: these routers share no traffic among versions."""

    def _known(self, replica_id: str, epoch: int) -> Peer | None:
        peer = self._peers.get(replica_id)
        return peer if peer is not None and peer.info.epoch == epoch else None

    def _list_candidates(self) -> None:
        self._candidates = [peer for peer in self._peers.values() if not peer.draining]

    # -- requests

    def submit(self, owner: str, ticket: Ticket, now: float) -> int:
        if ticket.request_id in self._placed or ticket.request_id in self._waiting:
            return 0
        self._waiting[ticket.request_id] = owner, ticket, now
        return ticket.prompt_tokens

    def expected_output(self, ticket: Ticket) -> int:
        return self._lengths.expected(ticket.tenant.name, ticket.prompt_tokens, ticket.max_tokens)

    def adopt(self, owner: str, ticket: Ticket, grant: Grant) -> None:
        self.release(Released(request_id=ticket.request_id))
        self._place(owner, ticket, grant)

    def started(self, request_id: str, now: float) -> None:
        """Nothing: these routers do not tell a prompt under way from a running stream."""

    def release(self, released: Released) -> None:
        self._waiting.pop(released.request_id, None)
        if (placed := self._placed.pop(released.request_id, None)) is None:
            return
        if released.whole:
            ticket = placed.ticket
            self._lengths.learn(ticket.tenant.name, ticket.prompt_tokens, released.output_tokens)
            self.ended(ticket, released)
        if (peer := self._known(placed.replica_id, placed.epoch)) is not None:
            peer.tokens -= peer.in_flight.pop(released.request_id, 0)

    def forget_owner(self, owner: str) -> None:
        gone = [request_id for request_id, (whose, _, _) in self._waiting.items() if whose == owner]
        gone += [request_id for request_id, placed in self._placed.items() if placed.owner == owner]
        for request_id in gone:
            self.release(Released(request_id=request_id))

    def decide(self, now: float) -> Decision:
        decision = Decision([], [])
        for request_id, (owner, ticket, since) in list(self._waiting.items()):
            among = self._candidates
            if ticket.version:  # it has started there
                among = [peer for peer in among if peer.info.version == ticket.version]
            if among:
                peer = self.choose(ticket, among)
                grant = Grant(request_id=request_id, replica_id=peer.info.replica_id, epoch=peer.info.epoch)
                self._place(owner, ticket, grant)
                self.sent(ticket, peer)
                decision.grants.append((owner, grant))
            elif now - since >= self._no_replica_wait_s:
                denial = Denial(request_id=request_id, ending=Ending.NO_REPLICA.name, mirror=ticket.mirror)
                decision.denials.append((owner, denial))
            else:
                continue
            del self._waiting[request_id]
        return decision

    def _place(self, owner: str, ticket: Ticket, grant: Grant) -> None:
        self._placed[ticket.request_id] = _Placed(owner, ticket, grant.replica_id, grant.epoch)
        if (peer := self._known(grant.replica_id, grant.epoch)) is not None:
            self._count(ticket.request_id, ticket, peer)

    def _count(self, request_id: str, ticket: Ticket, peer: Peer) -> None:
        peer.in_flight[request_id] = self.weigh(ticket)
        peer.tokens += peer.in_flight[request_id]

    # -- what there is

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        return sum(ticket.prompt_tokens for _, ticket, _ in self._waiting.values())

    @property
    def placed(self) -> int:
        return len(self._placed)

    def waiting(self) -> Iterable[WaitingView]:
        return (WaitingView(ticket, since) for _, ticket, since in self._waiting.values())

    def replicas(self) -> Iterable[ReplicaView]:
        for p in self._peers.values():
            yield ReplicaView(p.info, p.load, len(p.in_flight), p.tokens, p.draining)

    def running_on(self, replica_id: str) -> list[tuple[str, str]]:
        return [(placed.owner, r) for r, placed in self._placed.items() if placed.replica_id == replica_id]


class RoundRobin(BindOnArrival):
    """Each replica in turn: a Kubernetes Service, HAProxy's and nginx's default."""

    _turn = 0

    def choose(self, ticket: Ticket, among: Sequence[Peer]) -> Peer:
        self._turn += 1
        return among[(self._turn - 1) % len(among)]


class LeastOutstanding(BindOnArrival):
    """The fewest requests sent and not ended (HAProxy's leastconn); ties in turn."""

    _turn = 0

    def choose(self, ticket: Ticket, among: Sequence[Peer]) -> Peer:
        self._turn += 1
        count = len(among)
        least = min(range(count), key=lambda i: (len(among[i].in_flight), (i - self._turn) % count))
        return among[least]


class PowerOfTwo(BindOnArrival):
    """Of two at random the one with fewer requests: Ray Serve's and Envoy's default router."""

    def choose(self, ticket: Ticket, among: Sequence[Peer]) -> Peer:
        if len(among) == 1:
            return among[0]
        one, other = self.rng.sample(among, 2)
        return one if len(one.in_flight) <= len(other.in_flight) else other


class TokenLoad(BindOnArrival):
    """The fewest tokens in flight: prompts, and for each answer the mean length of those that have ended.

    As NVIDIA Dynamo's KV router without overlap counts active blocks; it too must guess how long an answer will get.
    """

    def __init__(self, no_replica_wait_s: float = 30.0, seed: int = 0) -> None:
        super().__init__(no_replica_wait_s, seed)
        self._answers, self._answer_tokens = 0, 0

    def weigh(self, ticket: Ticket) -> int:
        mean = self._answer_tokens // self._answers if self._answers else 0
        return ticket.prompt_tokens + min(mean, ticket.max_tokens)

    def ended(self, ticket: Ticket, released: Released) -> None:
        self._answers += 1
        self._answer_tokens += released.output_tokens

    def choose(self, ticket: Ticket, among: Sequence[Peer]) -> Peer:
        return min(among, key=lambda peer: peer.tokens)


class SentPrefixes:
    """Which replica was sent which prompt blocks: a router's guess at their prefix caches, which it cannot see."""

    def __init__(self) -> None:
        self._holders: dict[int, set[str]] = {}  # block -> replica ids
        self._blocks: dict[str, OrderedDict[int, None]] = {}  # replica id -> blocks, least recently sent first

    def add(self, replica_id: str, blocks: Sequence[int], most: int) -> None:
        """A prompt was sent there; of each replica the `most` recent blocks are remembered."""
        held = self._blocks.setdefault(replica_id, OrderedDict())
        for block in reversed(blocks):  # the chain's beginning is the most recent: it is forgotten last
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                self._holders.setdefault(block, set()).add(replica_id)
        while len(held) > most:
            self._forget(replica_id, held.popitem(last=False)[0])

    def _forget(self, replica_id: str, block: int) -> None:
        holders = self._holders[block]
        holders.discard(replica_id)
        if not holders:
            del self._holders[block]

    def drop(self, replica_id: str) -> None:
        for block in self._blocks.pop(replica_id, ()):
            self._forget(replica_id, block)

    def size(self, replica_id: str) -> int:
        return len(self._blocks.get(replica_id, ()))

    def matches(self, blocks: Sequence[int]) -> dict[str, int]:
        """Leading blocks held, by replica; those that hold none are left out."""
        matched: dict[str, int] = {}
        holding: set[str] | None = None
        for count, block in enumerate(blocks):
            holders = self._holders.get(block)
            if not holders:
                left: set[str] = set()
            else:
                left = holders if holding is None else holding & holders
            if holding is not None and len(left) < len(holding):
                matched.update((replica_id, count) for replica_id in holding - left)
            holding = left
            if not holding:
                break
        matched.update((replica_id, len(blocks)) for replica_id in holding or ())
        return matched


class _PrefixAware(BindOnArrival):
    """Remembers what it sent where."""

    def __init__(self, no_replica_wait_s: float = 30.0, seed: int = 0) -> None:
        super().__init__(no_replica_wait_s, seed)
        self.prefixes = SentPrefixes()

    def sent(self, ticket: Ticket, peer: Peer) -> None:
        capacity = peer.info.capacity
        self.prefixes.add(peer.info.replica_id, ticket.blocks, capacity.kv_tokens // capacity.block_tokens)

    def gone(self, replica_id: str) -> None:
        self.prefixes.drop(replica_id)


class PrefixAffinity(_PrefixAware):
    """SGLang's router, policy `cache_aware`, with its documented thresholds.

    To whom holds most of the prompt, if that is more than `CACHE_THRESHOLD` of it; else to whom was sent the least
    altogether (its smallest tree). When loads have drifted apart by both balance thresholds: to the least loaded.
    github.com/lightseekorg/smg, docs/concepts/routing/cache-aware.md.
    """

    CACHE_THRESHOLD = 0.3
    BALANCE_ABS_THRESHOLD = 64
    BALANCE_REL_THRESHOLD = 1.5

    def __init__(self, no_replica_wait_s: float = 30.0, seed: int = 0) -> None:
        super().__init__(no_replica_wait_s, seed)
        self._unshared: dict[str, int] = {}  # replica id -> blocks of prompts that came without hashes

    def choose(self, ticket: Ticket, among: Sequence[Peer]) -> Peer:
        loads = [len(peer.in_flight) for peer in among]
        least, most = min(loads), max(loads)
        if most - least > self.BALANCE_ABS_THRESHOLD and most > least * self.BALANCE_REL_THRESHOLD:
            return among[loads.index(least)]
        if ticket.blocks and (matched := self.prefixes.matches(ticket.blocks)):
            best = max(among, key=lambda peer: matched.get(peer.info.replica_id, 0))
            if matched.get(best.info.replica_id, 0) > self.CACHE_THRESHOLD * len(ticket.blocks):
                return best
        return min(among, key=lambda peer: self._tree_size(peer.info.replica_id))

    def _tree_size(self, replica_id: str) -> int:
        return self.prefixes.size(replica_id) + self._unshared.get(replica_id, 0)

    def sent(self, ticket: Ticket, peer: Peer) -> None:
        super().sent(ticket, peer)
        if not ticket.blocks:
            replica_id, block = peer.info.replica_id, peer.info.capacity.block_tokens
            self._unshared[replica_id] = self._unshared.get(replica_id, 0) + ticket.prompt_tokens // block

    def gone(self, replica_id: str) -> None:
        super().gone(replica_id)
        self._unshared.pop(replica_id, None)


class PrefixAndLoad(_PrefixAware):
    """llm-d's router with its default scorers and weights: the greatest weighted sum, ties at random.

    Prefix: share of the prompt's blocks sent there before. Queue: 1 for the shortest engine queue, 0 for the longest.
    KV: share of the cache that is free. Queue and KV are as the last load report says. Weights 3, 2, 2:
    gateway-api-inference-extension, EndpointPickerConfig's defaults (llm-d.ai, architecture/core/router/epp).
    """

    PREFIX_WEIGHT = 3.0
    QUEUE_WEIGHT = 2.0
    KV_WEIGHT = 2.0

    def choose(self, ticket: Ticket, among: Sequence[Peer]) -> Peer:
        matched = self.prefixes.matches(ticket.blocks) if ticket.blocks else {}
        queues = [peer.load.waiting if peer.load else 0 for peer in among]
        shortest, longest = min(queues), max(queues)
        best: list[Peer] = []
        best_score = -1.0
        for peer, queue in zip(among, queues, strict=True):
            score = self.QUEUE_WEIGHT * ((longest - queue) / (longest - shortest) if longest > shortest else 1.0)
            score += self.KV_WEIGHT * (1.0 - (peer.load.kv_used if peer.load else 0.0))
            if matched:
                score += self.PREFIX_WEIGHT * matched.get(peer.info.replica_id, 0) / len(ticket.blocks)
            if score > best_score:
                best, best_score = [peer], score
            elif score == best_score:
                best.append(peer)
        return best[0] if len(best) == 1 else self.rng.choice(best)


# By the names of the setting `router.policy`: made of seconds to wait when there is no replica, and a seed.
PEERS: dict[str, Callable[[float, int], Batcher]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "power_of_two": PowerOfTwo,
    "token_load": TokenLoad,
    "prefix_affinity": PrefixAffinity,
    "prefix_and_load": PrefixAndLoad,
}

"""What ClusterCore keeps of each open request, and of each replica that it is connected to. Knows no vLLM."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.outcomes import Verdict
from replicas.messages import Grant, ReplicaInfo, Ticket
from replicas.wire import Connection

DEATHS_TO_QUARANTINE = 2  # once may be chance; what has seen two replicas die may be what killed them

Key = tuple[str, int]  # one life of a replica: its id and epoch


def key_of(of: Grant | ReplicaInfo) -> Key:
    return of.replica_id, of.epoch


@dataclass
class Live:
    """A request that this gateway has open."""

    request: Any  # vLLM's EngineCoreRequest
    ticket: Ticket
    verdict: Verdict
    delivered: list[int] = field(default_factory=list)
    delivered_before: int = 0  # tokens that had been delivered when the ticket was made
    grant: Grant | None = None  # None: waiting
    submitted_at: float = 0.0  # monotonic seconds at which its replica was sent it; 0: none was
    deaths: int = 0  # replicas that were lost while it ran there
    lost_at: float = 0.0  # monotonic seconds; set while a resumed request has no new token yet

    @property
    def quarantined(self) -> bool:
        return self.deaths >= DEATHS_TO_QUARANTINE

    def lose_replica(self, by_its_own_will: bool, now: float) -> None:
        """Its replica's connection is gone."""
        self.lost_at = now
        if self.submitted_at and not by_its_own_will:
            self.deaths += 1


@dataclass
class Peer:
    """A replica as this gateway is connected to it, in one epoch."""

    info: ReplicaInfo
    connection: Connection | None = None  # None: connecting
    unsent: list[Live] = field(default_factory=list)  # granted before the connection stood
    heard_at: float = 0.0  # monotonic seconds
    leaving: bool = False  # it said that it stops by its own will


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

    def hung(self, peers: Iterable[Peer], live: Iterable[Live], now: float) -> Iterator[Peer]:
        """Peers whose connection stands, silent for the limit although they have had a request of ours for as long."""
        late, self._looked_at = now - self._looked_at > 2 * self.look_every_s, now
        if late:  # it was we who stood still: what they said meanwhile has yet to be read
            return
        since: dict[Key, float] = {}
        for one in live:
            if one.grant is not None and one.submitted_at:
                key = key_of(one.grant)
                since[key] = min(since.get(key, now), one.submitted_at)
        for peer in peers:
            at = since.get(key_of(peer.info))
            if peer.connection is not None and at is not None and now - max(at, peer.heard_at) > self._limit_s:
                yield peer

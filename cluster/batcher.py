"""What decides which waiting request goes to which replica, as the router, the simulator and the benches drive it.

Pure by contract: no clock (times are seconds on the caller's clock), no I/O, no Ray. `batching.ContinuousBatcher` is
the real one; `peers` holds the policies that others use, for comparison.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from replicas.messages import Denial, Grant, LoadReport, Released, ReplicaInfo, Ticket


class Decision(NamedTuple):
    """What was decided; owner is whoever submitted the ticket (a gateway's id)."""

    grants: list[tuple[str, Grant]]
    denials: list[tuple[str, Denial]]


class ReplicaView(NamedTuple):
    """A replica as the batcher sees it."""

    info: ReplicaInfo
    load: LoadReport | None  # the last report
    in_flight: int  # requests granted and not released
    kv_in_flight: int  # KV tokens reserved for them
    draining: bool


class WaitingView(NamedTuple):
    """A ticket in the queue."""

    ticket: Ticket
    since: float  # when it came


class Batcher(Protocol):
    """The cluster-wide queue and what each replica holds."""

    # -- replicas
    def join(self, info: ReplicaInfo) -> None:
        """A replica is ready. A later epoch replaces an earlier one; an earlier or the same one is ignored."""
        ...

    def leave(self, replica_id: str, epoch: int, now: float) -> bool:
        """A replica is gone: nothing more is granted to it. False: that life of it was gone already."""
        ...

    def drain(self, replica_id: str, epoch: int) -> bool:
        """Nothing more is granted to it; what runs there goes on. False: that life of it is not known."""
        ...

    def report(self, load: LoadReport) -> bool:
        """Takes a load report; False if that replica, in that epoch, is not known here."""
        ...

    def set_traffic(self, shares: Mapping[str, float] | None, stable: str = "") -> None:
        """Shares of unstarted requests by model version; None: by the number of replicas of each.

        `stable`: the version whose sessions make way for a growing share of another. A policy that binds on arrival
        has no versions but those of its replicas, and no shares.
        """
        ...

    # -- requests
    def submit(self, owner: str, ticket: Ticket, now: float) -> int:
        """Queues a ticket; returns the prompt tokens that it will have computed, as far as is known now.

        One that waits or runs already is not queued twice: 0.
        """
        ...

    def expected_output(self, ticket: Ticket) -> int:
        """Output tokens that it is likely to have."""
        ...

    def adopt(self, owner: str, ticket: Ticket, grant: Grant) -> None:
        """Takes over a request that runs already (the router restarted), whether its replica has joined yet or not."""
        ...

    def started(self, request_id: str, now: float) -> None:
        """Its first token has come."""
        ...

    def release(self, released: Released) -> None:
        """A request ended, was cancelled, or lost its replica: it neither waits nor runs any more."""
        ...

    def forget_owner(self, owner: str) -> None:
        """A gateway is gone: so are its requests."""
        ...

    def decide(self, now: float) -> Decision:
        """Grants what has room now, in order; denies what waited in vain."""
        ...

    # -- what there is
    @property
    def queued(self) -> int:
        """Tickets that wait."""
        ...

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of these that are yet to be computed."""
        ...

    @property
    def placed(self) -> int:
        """Requests granted and not yet released."""
        ...

    def waiting(self) -> Iterable[WaitingView]:
        """All that is queued, in no order."""
        ...

    def replicas(self) -> Iterable[ReplicaView]: ...

    def running_on(self, replica_id: str) -> list[tuple[str, str]]:
        """(owner, request id) of what is granted there and not released."""
        ...

"""Copies of requests on another version, while a rollout looks at that: their output is dropped, nobody waits for it.

A copy is an engine request of its own, with a ticket that says so: the router gives it room that nobody else wants, or
none. It is never moved or resumed. Its record in the journal says that it was one (`Ended.mirror`), and no quota, no
figure of a tenant or of the SLO has it.
"""

import msgspec

from cluster.journal import Ended, Listener
from cluster.live import Live
from cluster.outcomes import RequestContext
from cluster.traffic import is_mirrored, laid_out, version_of
from replicas.assignment import Assignment
from replicas.messages import Tenant

MOST_OPEN = 64  # copies that one gateway has at a time; what more there would be is not copied
LOWEST_PRIORITY = (1 << 31) - 1


class Mirror(Listener):
    """Which requests of a gateway are copied. Knows no vLLM; hears from the journal when a copy has ended."""

    def __init__(self) -> None:
        self.assignment: Assignment | None = None  # None: the router has told of none
        self.open = 0  # copies that have not ended

    def ended(self, record: Ended) -> None:
        self.open -= record.mirror

    def copy_of(self, live: Live) -> Live | None:
        """The copy of a request that has just come, if there is to be one."""
        assigned = self.assignment
        if assigned is None or (mirror := assigned.mirror) is None or self.open >= MOST_OPEN:
            return None
        session = live.ticket.session
        if not is_mirrored(session, mirror.share) or mirror.version == self._version_of(live, assigned):
            return None
        request_id = f"mirror-{live.ticket.request_id}"
        request = msgspec.structs.replace(live.request, request_id=request_id, priority=LOWEST_PRIORITY)
        ticket = msgspec.structs.replace(
            live.ticket,
            request_id=request_id,
            tenant=Tenant(),
            priority=LOWEST_PRIORITY,
            ttft_s=None,
            version=mirror.version,
            first_of_request=False,
            mirror=True,
        )
        context = RequestContext()
        context.arrived_at = live.arrived_at  # as the request that it is compared with
        self.open += 1
        return Live(request, ticket, context)

    @staticmethod
    def _version_of(live: Live, assigned: Assignment) -> str | None:
        """Where the request itself is going, as far as the shares say."""
        if live.ticket.version or assigned.traffic is None:
            return live.ticket.version
        return version_of(live.ticket.session, laid_out(assigned.traffic, assigned.stable))

"""The queue of what has not started: who goes next. Pure; times are seconds on the caller's clock.

The order, first to last:

1. resumed requests, first come first served: somebody is reading their streams
2. whoever has waited longer than the starvation bound, first come first served
3. by priority class, lower numbers first; within one
4. the tenant that has had least for its weight (a virtual token counter: Sheng et al., "Fairness in Serving Large
   Language Models", OSDI 2024); of its tickets
5. the shortest prefill: of a step's budget it takes least, so most first tokens come in time
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.prefix_index import NONE, Anchors
from replicas.messages import Ticket


@dataclass(slots=True, eq=False)
class Waiting:
    """A ticket in the queue."""

    owner: str
    ticket: Ticket
    since: float
    prefill: int  # tokens to compute, but for what some replica has cached
    anchors: Anchors = NONE  # of its prompt, where prefixes are cached
    latest_start: float = math.inf  # granted later, its first token cannot come in time
    parked_until: float = 0.0  # until then it waits for a replica that has its prefix, and for no other

    @property
    def request_id(self) -> str:
        return self.ticket.request_id


class TokenCounters:
    """What each tenant has had, in tokens over its weight."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._left = ""  # who left last

    def had(self, tenant: str) -> float:
        return self._had.get(tenant, 0.0)

    def charge(self, tenant: str, weight: float, tokens: int) -> None:
        self._had[tenant] = self.had(tenant) + tokens / weight

    def leaves(self, tenant: str) -> None:
        """It has no tickets in a class any more."""
        self._left = tenant

    def lift(self, tenant: str, least_served: str | None) -> None:
        """A tenant that was away has saved nothing up: it begins where the least served of those present is.

        None is present: where the one that left last is.
        """
        self._had[tenant] = max(self.had(tenant), self.had(self._left if least_served is None else least_served))


@dataclass
class _Class:
    """Tickets of one priority."""

    tenants: dict[str, list[tuple[int, int, Waiting]]] = field(default_factory=dict)  # heaps by (prefill, arrival)
    order: list[tuple[float, str]] = field(default_factory=list)  # heap of (tokens had when it was put here, tenant)


class WaitingQueue:
    """Tickets that wait. Removing is lazy: heaps may hold what has left, `_entries` tells."""

    def __init__(self, counters: TokenCounters, starvation_s: float) -> None:
        self._counters = counters
        self._starvation_s = starvation_s
        self._resumed: OrderedDict[str, Waiting] = OrderedDict()
        self._fresh: OrderedDict[str, Waiting] = OrderedDict()  # in order of arrival
        self._classes: dict[int, _Class] = {}
        self._priorities: list[int] = []  # sorted; of classes that may hold something
        self._deadlines: list[tuple[float, int, Waiting]] = []
        self._parked: list[tuple[float, int, Waiting]] = []  # heap by parked_until
        self._arrivals = 0
        self.prefill_tokens = 0  # of all that wait

    def __len__(self) -> int:
        return len(self._resumed) + len(self._fresh)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._resumed or request_id in self._fresh

    def __iter__(self) -> Iterator[Waiting]:
        yield from self._resumed.values()
        yield from self._fresh.values()

    def add(self, waiting: Waiting) -> None:
        self.prefill_tokens += waiting.prefill
        if waiting.ticket.resumed:
            self._resumed[waiting.request_id] = waiting
            return
        self._fresh[waiting.request_id] = waiting
        self._arrivals += 1
        if waiting.latest_start < math.inf:
            heapq.heappush(self._deadlines, (waiting.latest_start, self._arrivals, waiting))
        self._enqueue(waiting)

    def _enqueue(self, waiting: Waiting) -> None:
        priority, tenant = waiting.ticket.priority, waiting.ticket.tenant.name
        if (of_class := self._classes.get(priority)) is None:
            of_class = self._classes[priority] = _Class()
            self._priorities = sorted(self._classes)
        least = self._head_of(of_class, math.inf)  # which forgets who has left
        heap = of_class.tenants.get(tenant)
        if heap is None:
            heap = of_class.tenants[tenant] = []
            self._counters.lift(tenant, None if least is None else least.ticket.tenant.name)
            heapq.heappush(of_class.order, (self._counters.had(tenant), tenant))
        heapq.heappush(heap, (waiting.prefill, self._arrivals, waiting))
        self._arrivals += 1

    def sort_by_arrival(self) -> None:
        """Some have come from another queue: whoever has waited longest is the first again."""
        for one in (self._resumed, self._fresh):
            for waiting in sorted(one.values(), key=lambda waiting: waiting.since):
                one.move_to_end(waiting.request_id)

    def remove(self, request_id: str) -> Waiting | None:
        """Takes a ticket out, granted or withdrawn; None if it does not wait here."""
        waiting = self._resumed.pop(request_id, None) or self._fresh.pop(request_id, None)
        if waiting is not None:
            self.prefill_tokens -= waiting.prefill
        return waiting

    def oldest(self) -> Waiting | None:
        """Who waits longest of the fresh ones."""
        return next(iter(self._fresh.values()), None)

    def is_starving(self, waiting: Waiting, now: float) -> bool:
        return now - waiting.since >= self._starvation_s

    def head(self, now: float) -> Waiting | None:
        """Who goes next; it stays in the queue until it is removed."""
        if self._resumed:
            return next(iter(self._resumed.values()))
        oldest = self.oldest()
        if oldest is None or self.is_starving(oldest, now):
            return oldest
        while self._parked and self._parked[0][0] <= now:
            _, _, parked = heapq.heappop(self._parked)
            if self._is_here(parked):
                self._enqueue(parked)
        while self._priorities:
            if (waiting := self._head_of(self._classes[self._priorities[0]], now)) is not None:
                return waiting
            del self._classes[self._priorities.pop(0)]
        return None

    def _head_of(self, of_class: _Class, now: float) -> Waiting | None:
        while of_class.order:
            had, tenant = of_class.order[0]
            heap = of_class.tenants[tenant]
            while heap and (heap[0][2].parked_until > now or not self._is_here(heap[0][2])):
                heapq.heappop(heap)
            if not heap:
                heapq.heappop(of_class.order)
                del of_class.tenants[tenant]
                self._counters.leaves(tenant)
            elif (now_had := self._counters.had(tenant)) > had:  # it has been served since: to its new place
                heapq.heapreplace(of_class.order, (now_had, tenant))
            else:
                return heap[0][2]
        return None

    def _is_here(self, waiting: Waiting) -> bool:
        return self._fresh.get(waiting.request_id) is waiting

    def park(self, waiting: Waiting, until: float) -> None:
        """Until then it is not offered by `head`, unless it starves."""
        waiting.parked_until = until
        heapq.heappush(self._parked, (until, self._arrivals, waiting))
        self._arrivals += 1

    def unpark(self, waiting: Waiting) -> None:
        """The replica that it waited for is gone."""
        waiting.parked_until = 0.0
        self._enqueue(waiting)

    def late(self, now: float) -> list[Waiting]:
        """Those whose latest start has passed; told once, and to be removed."""
        late = []
        while self._deadlines and (self._deadlines[0][0] < now or not self._is_here(self._deadlines[0][2])):
            waiting = heapq.heappop(self._deadlines)[2]
            if self._is_here(waiting):
                late.append(waiting)
        return late

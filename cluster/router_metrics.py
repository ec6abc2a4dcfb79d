"""The router's metrics: what waits, what is there, what was decided."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.batcher import WaitingView
from cluster.outcomes import Ending
from replicas import metrics
from replicas.metrics import Bounded
from replicas.ray_metrics import Make, in_actor

PRIORITIES = 16  # classes that are told one by one: a client may send any number
STATES = ("ready", "draining", "swapping")
DENIALS = (Ending.NO_REPLICA, Ending.TOO_LATE, Ending.QUEUE_FULL, Ending.RATE_LIMITED)


@dataclass
class Tally:
    """What the router has decided since it started."""

    grants: int = 0
    denials: Counter[str] = field(default_factory=Counter)  # by ending
    lost: int = 0  # replicas


class Queue(NamedTuple):
    """What waits."""

    by_priority: Mapping[int, int]
    oldest_s: float  # 0: nothing waits
    prompt_tokens: int

    @classmethod
    def of(cls, waiting: Iterable[WaitingView], now: float) -> "Queue":
        by_priority: Counter[int] = Counter()
        oldest, tokens = now, 0
        for ticket, since in waiting:
            by_priority[ticket.priority] += 1
            oldest = min(oldest, since)
            tokens += ticket.prompt_tokens
        return cls(by_priority, now - oldest, tokens)


class RouterMetrics:
    """Keeps the router's part of the catalogue."""

    def __init__(self, model: str, make: Make = in_actor) -> None:
        self._model = model
        self._priority = Bounded(PRIORITIES)
        self._seen: set[str] = set()  # priorities: one that waits no more is 0, not gone
        self._queue_requests = make(metrics.QUEUE_REQUESTS)
        self._queue_oldest = make(metrics.QUEUE_OLDEST_SECONDS)
        self._queue_tokens = make(metrics.QUEUE_PROMPT_TOKENS)
        self._replicas = make(metrics.REPLICAS)
        self._grants = make(metrics.GRANTS)
        self._denials = make(metrics.DENIALS)
        self._lost = make(metrics.REPLICAS_LOST)
        for ending in DENIALS:
            self._denials.tell(0, model, ending.name)
        self._started_s = time.time()
        self._start = make(metrics.ROUTER_START)

    def tell(self, queue: Queue, states: Iterable[str], tally: Tally) -> None:
        self._start.tell(self._started_s, self._model)
        waiting: Counter[str] = Counter({self._priority("0"): 0})
        for priority, count in queue.by_priority.items():
            waiting[self._priority(str(priority))] += count
        self._seen |= waiting.keys()
        for name in self._seen:
            self._queue_requests.tell(waiting[name], self._model, name)
        self._queue_oldest.tell(queue.oldest_s, self._model)
        self._queue_tokens.tell(queue.prompt_tokens, self._model)
        by_state = Counter(states)
        for state in STATES:
            self._replicas.tell(by_state[state], self._model, state)
        self._grants.tell(tally.grants, self._model)
        self._lost.tell(tally.lost, self._model)
        for ending, count in tally.denials.items():
            self._denials.tell(count, self._model, ending)

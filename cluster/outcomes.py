"""How a request can end: a closed set, each with what the HTTP client is told."""

import contextvars
import enum
import time
from typing import TYPE_CHECKING

from replicas.messages import Quota, Tenant

if TYPE_CHECKING:
    from cluster.journal import Ended


class Ending(enum.Enum):
    """An ending that the cluster, not the model, gave a request. (HTTP status, error type, sentence)"""

    NO_REPLICA = (503, "ServiceUnavailableError", "No replica of the model is ready; try again.")
    LOST = (503, "ServiceUnavailableError", "The replica was lost and none came back in time; try again.")
    VERSION_GONE = (
        503,
        "ServiceUnavailableError",
        "The model version that it began on is served no more, and it goes on with no other; send it again.",
    )
    QUARANTINED = (
        500,
        "InternalServerError",
        "It was running on two replicas as they died and is not tried a third time.",
    )
    REJECTED = (400, "BadRequestError", "The engine refused the request.")
    BODY_TOO_LARGE = (413, "RequestEntityTooLarge", "The request's body is too large.")
    TOO_LATE = (429, "TooManyRequestsError", "The first token cannot come in the time that it is wanted in; try again.")
    QUEUE_FULL = (429, "TooManyRequestsError", "Too many requests are waiting; try again.")
    RATE_LIMITED = (429, "RateLimitError", "The tenant's limit is used up; try again.")
    UNAUTHENTICATED = (401, "AuthenticationError", "An API key is needed: send `Authorization: Bearer KEY`.")
    BAD_HEADER = (400, "BadRequestError", "A header of the request cannot be used.")

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def error_type(self) -> str:
        return self.value[1]

    @property
    def sentence(self) -> str:
        return self.value[2]

    @property
    def retryable(self) -> bool:
        return self.status in (429, 503)


class Verdict:
    """What the router said of a request. Its ending is set when the cluster, not the model, ends the request."""

    __slots__ = ("detail", "ending", "quota", "retry_after_s")

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.detail = ""  # a sentence for the client; empty: the ending's own
        self.retry_after_s = 0.0  # when another try may succeed; 0: not known
        self.quota: Quota | None = None  # what its tenant has left


class RequestContext:
    """One HTTP request, as the edge and ClusterCore share it; vLLM's front end lies between the two."""

    __slots__ = (
        "_priority_ceiling",
        "_tickets",
        "answered_at",
        "arrived_at",
        "body_bytes",
        "open_requests",
        "records",
        "tenant",
        "traceparent",
        "ttft_slo_s",
        "verdict",
    )

    def __init__(
        self,
        tenant: Tenant | None = None,
        priority_ceiling: int | None = None,
        ttft_s: float | None = None,
        traceparent: str = "",
    ) -> None:
        """`ttft_s`: seconds from now in which the first token is wanted; None: whenever it comes.

        `traceparent`: the client's header of that name (W3C Trace Context), unchecked; "": it sent none.
        """
        self.tenant = tenant or Tenant()
        self.verdict = Verdict()
        self.body_bytes: int | None = None  # as its head announced it, if it did
        self.arrived_at = time.monotonic()
        self.ttft_slo_s = ttft_s
        self.traceparent = traceparent
        self.open_requests = 0  # of the engine, that have not ended
        self.records: list[Ended] = []  # of those that have; the journal's
        self.answered_at: float | None = None  # when its response was over (monotonic seconds); the journal's
        self._priority_ceiling = priority_ceiling  # None: any may be asked for
        self._tickets = 0

    @property
    def ttft_s(self) -> float | None:
        """Seconds that are left for the first token; the front end's own work has taken the rest. None: no limit."""
        return None if self.ttft_slo_s is None else max(self.arrived_at + self.ttft_slo_s - time.monotonic(), 0.0)

    def priority(self, asked: int) -> int:
        """What it gets of what it asked for: lower goes first, so that the ceiling is the lowest number."""
        return asked if self._priority_ceiling is None else max(asked, self._priority_ceiling)

    def is_first_ticket(self) -> bool:
        """True the first time: samples and tool turns make further tickets of one HTTP request."""
        self._tickets += 1
        return self._tickets == 1


# Set by the HTTP layer for each request; whatever the request starts runs in its context and finds it.
context_of_request: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar("request", default=None)

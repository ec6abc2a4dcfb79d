"""The journal: what became of each request, as its gateway saw it. Metrics, traces and alarms are made of it.

Written when a request ends, never for a token: on a token's way ClusterCore stores one time, nothing more.
"""

import logging
import time
from typing import Literal, NamedTuple

from cluster.outcomes import RequestContext

logger = logging.getLogger("ray.serve")

DONE = "DONE"  # the model, its limits or a stop string ended it
ABORTED = "ABORTED"  # its client went away, or vLLM's front end gave it up
ERROR = "ERROR"  # the engine gave this one request up
RESTARTED = "RESTARTED"  # its version was gone; nothing of its answer was sent, and it begins again from its prompt
# An ending is one of these or the name of an `outcomes.Ending`.
OF_FINISH = {"ABORT": ABORTED, "ERROR": ERROR}  # vLLM's FinishReason by name; all others are DONE


class Ended(NamedTuple):
    """One engine request that ended. Times are monotonic seconds of this process, None where it never came to that.

    n>1 makes as many of one HTTP request. While it had no token, a request that lost its replica begins again: its
    times are those of the grant that gave it its first token.
    """

    request_id: str
    model: str
    version: str  # of the model, as its replica says; "" if it never got to one or that names none
    tenant: str  # "" where no keys are configured
    priority: int
    replica: str | None  # the last one that it was granted to
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in its replica's prefix cache
    output_tokens: int
    arrived_at: float  # its HTTP request, at the edge; of a further turn of one, the end of the turn before
    queued_at: float  # its ticket
    granted_at: float | None
    submitted_at: float | None  # sent to its replica
    first_token_at: float | None
    last_token_at: float | None
    ended_at: float
    ending: str
    resumes: int  # how often it went on elsewhere
    longest_gap_s: float  # without a token because of one of these
    ttft_slo_s: float | None  # the time in which its first token was wanted, from its arrival
    session: int = 0  # the stable hash by which it got its version
    mirror: bool = False  # a copy of a request, which no client sees: no figure of the service counts it

    @property
    def times(self) -> tuple[float | None, ...]:
        """When each of `metrics.STAGES` began, the response's included."""
        return (
            self.arrived_at,
            self.queued_at,
            self.granted_at,
            self.submitted_at,
            self.first_token_at,
            self.last_token_at,
        )

    @property
    def ttft_s(self) -> float | None:
        """Seconds from its arrival to its first token at the gateway."""
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds from token to token after the first. None: there were not two."""
        if self.first_token_at is None or self.last_token_at is None or self.output_tokens < 2:
            return None
        return (self.last_token_at - self.first_token_at) / (self.output_tokens - 1)


class Listener:
    """Hears of what happens at a gateway, on its event loop: what it does must be short. Override what is wanted."""

    def ended(self, record: Ended) -> None:
        """An engine request ended."""

    def resumed(self, cause: Literal["lost", "moved"], gap_s: float) -> None:
        """A stream has its next token after its replica was lost or drained; `gap_s` since then."""

    def streamed(self, seconds: float) -> None:
        """An HTTP response is complete; `seconds` since its last token was at this gateway."""

    def answered(self, context: RequestContext, at: float) -> None:
        """An HTTP request is over, complete or not, with `context.records`; `at` in monotonic seconds."""

    def refused(self, ending: str) -> None:
        """The edge refused a request that never became an engine request."""


class Journal:
    """Tells its listeners. None of them can harm a request: what one raises is logged."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.listeners: list[Listener] = []

    def ended(self, context: RequestContext, record: Ended) -> None:
        context.records.append(record)
        context.open_requests -= 1
        self._tell("ended", record)
        if context.answered_at is not None and not context.open_requests:
            self._tell("answered", context, context.answered_at)

    def resumed(self, cause: Literal["lost", "moved"], gap_s: float) -> None:
        self._tell("resumed", cause, gap_s)

    def answered(self, context: RequestContext) -> None:
        """The edge has sent the last of an HTTP response, or its client is gone.

        An engine request may end later: what a stop string has ended, the front end aborts when it has told of it.
        """
        now = context.answered_at = time.monotonic()
        last = max((r.last_token_at or 0.0 for r in context.records if r.ending == DONE), default=0.0)
        if last:
            self._tell("streamed", now - last)
        if context.records and not context.open_requests:
            self._tell("answered", context, now)
        elif context.verdict.ending is not None and not context.records:
            self._tell("refused", context.verdict.ending.name)

    def _tell(self, method: str, *what: object) -> None:
        for listener in self.listeners:
            try:
                getattr(listener, method)(*what)
            except Exception:
                logger.exception("A listener of the journal failed; requests go on.")

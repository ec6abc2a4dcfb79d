"""How a request can end: a closed set, each with what the HTTP client is told."""

import contextvars
import enum


class Ending(enum.Enum):
    """An ending that the cluster, not the model, gave a request. (HTTP status, error type, sentence)"""

    NO_REPLICA = (503, "ServiceUnavailableError", "No replica of the model is ready; try again.")
    LOST = (503, "ServiceUnavailableError", "The replica was lost and none came back in time; try again.")
    REJECTED = (400, "BadRequestError", "The engine refused the request.")
    BODY_TOO_LARGE = (413, "RequestEntityTooLarge", "The request's body is too large.")
    QUEUE_FULL = (429, "TooManyRequestsError", "Too many requests are waiting; try again.")

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
    """Filled in when the cluster, not the model, ends a request. Shared by the HTTP layer and the engine client."""

    __slots__ = ("detail", "ending")

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.detail = ""  # a sentence for the client; empty: the ending's own


# Set by the HTTP layer for each request; whatever the request starts runs in its context and finds it.
verdict_of_request: contextvars.ContextVar[Verdict | None] = contextvars.ContextVar("verdict", default=None)

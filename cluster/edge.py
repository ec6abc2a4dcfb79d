"""The gateway's HTTP edge: what surrounds vLLM's app. Plain ASGI, no vLLM, so that each token passes only a few lines.

- Where API keys are configured, every request needs one; who it is goes with the request (`RequestContext`). Open
  stay what load balancers probe, the console's page, and the preflights of browsers, which carry no key.
- A body over the limit is refused with 413 before it is parsed, whatever the app makes of its missing rest.
- An ending that the cluster gave a request (no replica, say) becomes its HTTP status with Retry-After, for streams
  too: the response's head is held back until the first byte of its body exists. By then the tenant's quota is known
  too, for the rate-limit headers, and the model version. In a stream that has begun, it is the error event that says
  which ending it was.
- A request whose version is served no more while nothing of its answer was sent is put to the app once more, and a
  header says that it began on another.
"""

import json
import math
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from cluster.journal import Journal
from cluster.outcomes import Ending, RequestContext, context_of_request
from cluster.tenants import KeyRing
from replicas.messages import Quota

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


TRACEPARENT_HEADER = "traceparent"  # W3C Trace Context
TTFT_HEADER = "x-slo-ttft-ms"  # as llm-d calls it: milliseconds in which the client wants the first token
SESSION_HEADER = "x-session-id"  # as vLLM calls it: whose requests go to one model version
VERSION_HEADER = "x-moray-version"  # asked for by operators, and told with each answer
RESTARTED_HEADER = "x-moray-restarted"  # the version on which the request began before it had to begin again
_ERROR_EVENT = b'data: {"error"'
# vLLM sends them before it has asked the engine, and they tell of nothing but the request.
_EVENTS_BEFORE_ALL = (b"event: response.created\n", b"event: response.in_progress\n")
# Open where keys are asked for: what load balancers probe, and the console's page, which holds no data.
_OPEN = frozenset({"/health", "/ping", "/version", "/console"})


class Edge:
    """Wraps an ASGI app.

    `max_body_bytes` bounds request bodies; `retry_after_s` goes with a 429 or 503 that has no time of its own. `keys`
    gives the keys in force; None: none are configured, all may enter. `ttft_s` is for requests that name no other.
    `journal` hears of each request that is over. `operators`: names of the tenants who may ask for a model version;
    where no keys are configured, all may. `versions` tells which there are.
    """

    def __init__(
        self,
        app: App,
        max_body_bytes: int,
        retry_after_s: int,
        keys: Callable[[], Awaitable[KeyRing]] | None = None,
        ttft_s: float | None = None,
        journal: Journal | None = None,
        operators: Collection[str] = (),
        versions: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._operators = operators
        self._versions = versions
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._retry_after_s = retry_after_s
        self._keys = keys
        self._ttft_s = ttft_s
        self._journal = journal or Journal("")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self._keys is not None:
            await send({"type": "websocket.close", "code": 1008})  # nothing of ours speaks it: no way past the keys
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _Headers(scope)
        context = await self._context(scope, headers)
        body = _LimitedBody(receive, self._max_body_bytes, context)
        head = _HeldHead(send, context, self._retry_after_s, begun=body.forget)
        if (length := headers.get("content-length")).isdigit():
            context.body_bytes = int(length)
            if context.verdict.ending is None and context.body_bytes > self._max_body_bytes:
                body.refuse()
        if context.verdict.ending is not None:
            await head.replace()
            self._journal.answered(context)
            return
        context.may_start_anew = not context.pinned
        untouched = dict(scope)  # apps write into theirs
        token = context_of_request.set(context)
        try:
            await self._app(scope, body.receive, head.send)
            if context.starts_anew and not body.gone:
                context.start_anew()
                body.rewind()
                await self._app(untouched, body.receive, head.send)
        except Exception:
            # Apps wrap it and answer it (FastAPI: 400, then replaced as any verdict is), or let it come here.
            if not (body.refused and await head.replace()):
                raise
        finally:
            context_of_request.reset(token)
            self._journal.answered(context)

    async def _context(self, scope: Scope, headers: "_Headers") -> RequestContext:
        """Who asks and what they want; its verdict is set if they may not enter."""
        ttft_s, problem = _wanted_ttft_s(headers.get(TTFT_HEADER), self._ttft_s)
        wanted = (ttft_s, headers.get(TRACEPARENT_HEADER), headers.get(SESSION_HEADER))
        if self._keys is None:
            context = RequestContext(None, None, *wanted, headers.get(VERSION_HEADER))
        elif scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            context = RequestContext(None, None, *wanted)
        else:
            key = _presented_key(headers)
            if (holder := (await self._keys()).holder(key)) is None:
                context = RequestContext()
                context.verdict.ending = Ending.UNAUTHENTICATED
                context.verdict.detail = "The API key is not known here." if key else ""
                return context
            context = RequestContext(holder.tenant, holder.priority_ceiling, *wanted, headers.get(VERSION_HEADER))
        if problem:
            context.verdict.ending, context.verdict.detail = Ending.BAD_HEADER, problem
        elif context.pinned:
            self._check_pin(context)
        return context

    def _check_pin(self, context: RequestContext) -> None:
        """Sets the verdict unless it is an operator's and there is such a version."""
        verdict = context.verdict
        if self._keys is not None and context.tenant.name not in self._operators:
            verdict.ending = Ending.NOT_OPERATOR
            verdict.detail = f"Only operators may send {VERSION_HEADER}: gateway.operators names the tenants that are."
        elif context.pinned not in (there := sorted(self._versions())):
            verdict.ending = Ending.BAD_HEADER
            known = f"there are: {', '.join(there)}" if there else "this model is served in no versions"
            verdict.detail = f"{VERSION_HEADER}: there is no version {context.pinned[:40]!r}; {known}."


class _Headers:
    def __init__(self, scope: Scope) -> None:
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]

    def get(self, name: str) -> str:
        """The first of that name, which is lower case as ASGI's are; "" if there is none."""
        wanted = name.encode()
        return next((value.decode("latin-1").strip() for key, value in self._headers if key == wanted), "")


def _presented_key(headers: _Headers) -> str:
    """OpenAI's way to send a key, or else Anthropic's."""
    scheme, _, key = headers.get("authorization").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _wanted_ttft_s(text: str, default: float | None) -> tuple[float | None, str]:
    """Seconds, and what is wrong with the header's text."""
    if not text:
        return default, ""
    try:
        wanted_ms = float(text)
    except ValueError:
        wanted_ms = 0.0
    if not 0 < wanted_ms < math.inf:
        return None, f"The header {TTFT_HEADER} must be a positive number of milliseconds, not {text[:40]!r}."
    return wanted_ms / 1000, ""


class _BodyTooLarge(Exception):
    pass


class _LimitedBody:
    """Counts a body that came without Content-Length; keeps it, as the app does, for a request that begins again."""

    def __init__(self, receive: Receive, limit: int, context: RequestContext) -> None:
        self._receive = receive
        self._limit = self._left = limit
        self._context = context
        self._kept: list[Message] = []
        self._again: list[Message] = []  # what is to be received before anything new
        self.refused = False
        self.gone = False  # the client

    def rewind(self) -> None:
        """What was received is received once more."""
        self._again = self._kept[:]

    def forget(self) -> None:
        """It will not be rewound."""
        self._kept.clear()

    async def receive(self) -> Message:
        if self._again:
            return self._again.pop(0)
        message = await self._receive()
        self.gone = message["type"] == "http.disconnect"
        if message["type"] == "http.request":
            self._kept.append(message)
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self.refuse()
                raise _BodyTooLarge
        return message

    def refuse(self) -> None:
        self.refused = True
        verdict = self._context.verdict
        verdict.ending = Ending.BODY_TOO_LARGE
        verdict.detail = f"The request's body is larger than {self._limit / (1 << 20):g} MiB."


class _HeldHead:
    """Holds the head until the body begins: by then the verdict is known, if the request never got to a token."""

    def __init__(
        self, send: Send, context: RequestContext, retry_after_s: int, begun: Callable[[], None] = lambda: None
    ) -> None:
        """`begun` is called when the answer begins."""
        self._send = send
        self._tell_begun = begun
        self._context = context
        self._retry_after_s = retry_after_s
        self._head: Message | None = None
        self._held: list[Message] = []  # what of the body came before any answer
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._context.answer_begun:
            if not self._replaced:
                await self._send(message if self._context.verdict.ending is None else self._in_our_words(message))
        elif self._context.starts_anew:
            self._head, self._held = None, []  # whatever the app makes of it: the answer is yet to come
        elif message["type"] == "http.response.start":
            self._head = message
        elif self._head is None:  # what may come before the head, such as early hints
            await self._send(message)
        elif message["type"] == "http.response.body" and not message.get("body") and message.get("more_body"):
            pass  # not a byte yet
        elif message.get("more_body") and message.get("body", b"").startswith(_EVENTS_BEFORE_ALL):
            self._held.append(message)
        elif not await self.replace():
            self._context.answer_begun = True
            self._tell_begun()
            if ours := self._own_headers():
                self._head["headers"] = [*self._head.get("headers", ()), *_encoded(ours)]
            for each in (self._head, *self._held, message):
                await self._send(each)

    def _in_our_words(self, message: Message) -> Message:
        """vLLM tells a stream that has begun of no more than an "Internal server error"."""
        verdict = self._context.verdict
        if (ending := verdict.ending) is None or not message.get("body", b"").startswith(_ERROR_EVENT):
            return message
        error = _error(ending, verdict.detail or ending.sentence)
        return {**message, "body": b"data: " + json.dumps(error).encode() + b"\n\n"}

    async def replace(self) -> bool:
        """Answers with the verdict, if there is one and nothing else was answered. True: the verdict is the answer."""
        verdict = self._context.verdict
        ending = verdict.ending
        if ending is not None and not self._context.answer_begun:
            self._context.answer_begun = self._replaced = True
            headers = self._own_headers()
            if ending.retryable:
                headers["retry-after"] = str(math.ceil(verdict.retry_after_s) or self._retry_after_s)
            if ending is Ending.UNAUTHENTICATED:
                headers["www-authenticate"] = "Bearer"
            await _send_error(self._send, ending, verdict.detail or ending.sentence, headers)
        return self._replaced

    def _own_headers(self) -> dict[str, str]:
        context = self._context
        fields = _rate_limit_headers(context.verdict.quota)
        if context.version:
            fields[VERSION_HEADER] = context.version
        if context.restarted_from:
            fields[RESTARTED_HEADER] = context.restarted_from
        return fields


def _error(ending: Ending, sentence: str) -> dict[str, Any]:
    return {"error": {"message": sentence, "type": ending.error_type, "param": None, "code": ending.status}}


async def _send_error(send: Send, ending: Ending, sentence: str, headers: dict[str, str]) -> None:
    """An error in the shape of OpenAI's and vLLM's."""
    body = json.dumps(_error(ending, sentence)).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    await send({"type": "http.response.start", "status": ending.status, "headers": _encoded(fields)})
    await send({"type": "http.response.body", "body": body})


def _encoded(fields: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def _rate_limit_headers(quota: Quota | None) -> dict[str, str]:
    """What is left to the tenant, under the names that OpenAI's clients know."""
    fields: dict[str, str] = {}
    for what in ("requests", "tokens"):
        if (allowance := getattr(quota, what, None)) is not None:
            fields[f"x-ratelimit-limit-{what}"] = str(allowance.limit)
            fields[f"x-ratelimit-remaining-{what}"] = str(allowance.remaining)
            fields[f"x-ratelimit-reset-{what}"] = _duration(allowance.reset_s)
    return fields


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 850ms, 12s, 1m30s."""
    if 0 < seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"

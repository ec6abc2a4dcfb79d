"""The gateway's HTTP edge: what surrounds vLLM's app. Plain ASGI, no vLLM, so that each token passes only a few lines.

- A body over the limit is refused with 413 before it is parsed, whatever the app makes of its missing rest.
- An ending that the cluster gave a request (no replica, say) becomes its HTTP status with Retry-After, for streams
  too: the response's head is held back until the first byte of its body exists.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from cluster.outcomes import Ending, Verdict, verdict_of_request

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Edge:
    """Wraps an ASGI app. `max_body_bytes` bounds request bodies; `retry_after_s` goes with 429 and 503."""

    def __init__(self, app: App, max_body_bytes: int, retry_after_s: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        verdict = Verdict()
        body = _LimitedBody(receive, self._max_body_bytes, verdict)
        head = _HeldHead(send, verdict, self._retry_after_s)
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            body.refuse()
            await head.replace()
            return
        token = verdict_of_request.set(verdict)
        try:
            await self._app(scope, body.receive, head.send)
        except Exception:
            # Apps wrap it and answer it (FastAPI: 400, then replaced as any verdict is), or let it come here.
            if not (body.refused and await head.replace()):
                raise
        finally:
            verdict_of_request.reset(token)


class _BodyTooLarge(Exception):
    pass


class _LimitedBody:
    """Counts a body that came without Content-Length."""

    def __init__(self, receive: Receive, limit: int, verdict: Verdict) -> None:
        self._receive = receive
        self._limit = self._left = limit
        self._verdict = verdict
        self.refused = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self.refuse()
                raise _BodyTooLarge
        return message

    def refuse(self) -> None:
        self.refused = True
        self._verdict.ending = Ending.BODY_TOO_LARGE
        self._verdict.detail = f"The request's body is larger than {self._limit / (1 << 20):g} MiB."


class _HeldHead:
    """Holds the head until the body begins: by then the verdict is known, if the request never got to a token."""

    def __init__(self, send: Send, verdict: Verdict, retry_after_s: int) -> None:
        self._send = send
        self._verdict = verdict
        self._retry_after_s = retry_after_s
        self._head: Message | None = None
        self._begun = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._begun:
            if not self._replaced:
                await self._send(message)
        elif message["type"] == "http.response.start":
            self._head = message
        elif self._head is None:  # what may come before the head, such as early hints
            await self._send(message)
        elif message["type"] == "http.response.body" and not message.get("body") and message.get("more_body"):
            pass  # not a byte yet
        elif not await self.replace():
            self._begun = True
            await self._send(self._head)
            await self._send(message)

    async def replace(self) -> bool:
        """Answers with the verdict, if there is one and nothing else was answered. True: the verdict is the answer."""
        ending = self._verdict.ending
        if ending is not None and not self._begun:
            self._begun = self._replaced = True
            headers = {"retry-after": str(self._retry_after_s)} if ending.retryable else {}
            await _send_error(self._send, ending, self._verdict.detail or ending.sentence, headers)
        return self._replaced


async def _send_error(send: Send, ending: Ending, sentence: str, headers: dict[str, str]) -> None:
    """An error in the shape of OpenAI's and vLLM's."""
    error = {"message": sentence, "type": ending.error_type, "param": None, "code": ending.status}
    body = json.dumps({"error": error}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    head = [(k.encode(), v.encode()) for k, v in fields.items()]
    await send({"type": "http.response.start", "status": ending.status, "headers": head})
    await send({"type": "http.response.body", "body": body})

"""One request through the HTTP edge, and ASGI apps made for the purpose."""

from __future__ import annotations

import asyncio
import json

from cluster.edge import Edge
from cluster.outcomes import Ending, context_of_request

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]}
LIMIT = 1 << 19


def chunk(body: bytes, more: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Call:
    """One request through the edge, and what came out."""

    def __init__(self, app, *, headers=(), body=(b"",), kind="http", path="/", **edge: object) -> None:
        self.sent: list[dict] = []
        self.raised: Exception | None = None
        self._incoming = [
            *({"type": "http.request", "body": b, "more_body": n < len(body)} for n, b in enumerate(body, 1)),
            {"type": "http.disconnect"},
        ]
        scope = {"type": kind, "method": "POST", "path": path, "query_string": b"", "headers": list(headers)}
        try:
            made = Edge(app, max_body_bytes=LIMIT, retry_after_s=7, **edge)
            asyncio.run(made(scope, self._receive, self._send))
        except Exception as error:
            self.raised = error

    async def _receive(self):
        return self._incoming.pop(0)

    async def _send(self, message):
        self.sent.append(dict(message))

    @property
    def status(self) -> int:
        assert self.sent[0]["type"] == "http.response.start"
        assert [m["type"] for m in self.sent].count("http.response.start") == 1
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent[1:])

    @property
    def error(self) -> dict:
        assert self.headers[b"content-type"] == b"application/json"
        assert self.headers[b"content-length"] == str(len(self.body)).encode()
        return json.loads(self.body)["error"]


def answering(*messages, verdict_before: int | None = None, ending=Ending.NO_REPLICA, detail=""):
    """An app that sends these, and whose request gets its verdict before the one with that number."""

    async def app(scope, receive, send):
        for number, message in enumerate(messages):
            if number == verdict_before:
                verdict = context_of_request.get().verdict
                verdict.ending, verdict.detail = ending, detail
            await send(message)

    return app

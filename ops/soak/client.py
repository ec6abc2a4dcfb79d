"""One HTTP client of the soak: asks, retries what is refused for now, goes away when it is to."""

from __future__ import annotations

import asyncio
import time

import httpx

from ops.soak.answers import Answer, Broken, Reading, whole
from ops.soak.catalogue import Ask

SILENCE_LIMIT_S = 120.0  # between two pieces of an answer; a client that waits longer takes it for cut
RETRY_LIMIT = 60  # refusals in a row, each followed by a wait, after which a request counts as broken
MOST_WAIT_S = 2.0  # of a Retry-After: the server has to bear it


class Aborted(Exception):
    """The client went away, as it was to."""


class Client:
    """Use as a context."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(base_url=url, timeout=SILENCE_LIMIT_S, limits=limits, trust_env=False)
        self.refused = 0  # answers 429 and 503 with Retry-After
        self.longest_silence_s = 0.0  # between two events of a stream

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def answer(self, ask: Ask, request_id: str, abort_after: int | None = None) -> Answer:
        """What the server answers, asked again each time that it refuses for now. Raises Broken, or Aborted.

        `abort_after`: events of a stream, or hundredths of a second of a whole answer (which is about the same), after
        which the client goes away.
        """
        request = self._http.build_request("POST", ask.path, json=ask.body, headers={"x-request-id": request_id})
        for _ in range(RETRY_LIMIT):
            try:
                if abort_after is None or ask.streamed:
                    answer = await self._once(request, ask, abort_after)
                else:
                    async with asyncio.timeout(abort_after / 100):
                        answer = await self._once(request, ask, None)
            except TimeoutError:
                raise Aborted from None
            except httpx.HTTPError as error:
                raise Broken(f"{type(error).__name__}: {error}") from error
            if isinstance(answer, Answer):
                return answer
            self.refused += 1
            await asyncio.sleep(min(answer, MOST_WAIT_S))
        raise Broken(f"refused {RETRY_LIMIT} times")

    async def _once(self, request: httpx.Request, ask: Ask, abort_after: int | None) -> Answer | float:
        """The answer, or the seconds of a Retry-After."""
        reply = await self._http.send(request, stream=True)
        try:
            retry_after = reply.headers.get("retry-after", "")
            if reply.status_code in (429, 503) and retry_after.isdigit():
                await reply.aread()
                return float(retry_after)
            if reply.status_code != 200:
                raise Broken(f"HTTP {reply.status_code}: {(await reply.aread())[:500]!r}")
            if not ask.streamed:
                return whole(await reply.aread())
            return await self._read(reply, abort_after)
        finally:
            await reply.aclose()

    async def _read(self, reply: httpx.Response, abort_after: int | None) -> Answer:
        reading = Reading()
        heard = None
        async for line in reply.aiter_lines():
            now = time.monotonic()
            self.longest_silence_s = max(self.longest_silence_s, now - (heard or now))
            heard = now
            reading.feed(line)
            if abort_after is not None and reading.events >= abort_after:
                raise Aborted
        return reading.end()

"""The load of the drill's own: greedy streams, one after the other on each place, checked against undisturbed ones.

What the model says after its end (`ignore_eos`) is wanted, too: each stream has the same length, and a token that is
missing or repeated shows. Two undisturbed passes tell which answers can be compared at all: where two tokens are nearly
as likely, the sums' order decides, and that the rest of the batch decides.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from typing import Any

import httpx

from ops.drill.recovery import Stream
from ops.errors import UserError
from ops.gateway_calls import authorization
from ops.soak.answers import Answer, Broken, Reading, difference

TOKENS = 400  # of a stream: seconds, on a large model as on a small one
SILENCE_LIMIT_S = 120.0  # between two pieces of an answer; a client that waits longer takes it for cut
MOST_WAIT_S = 2.0  # of a Retry-After
_AFTER_A_FAILURE_S = 0.1


class NoLoad(UserError):
    """The drill's own load does not run, even undisturbed."""


class Load:
    """Use as a context. `streams` is what became of all of them since `start`."""

    def __init__(self, url: str, api_key: str | None, model: str, places: int) -> None:
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(
            base_url=url, headers=authorization(api_key), timeout=SILENCE_LIMIT_S, limits=limits, trust_env=False
        )
        self.streams: list[Stream] = []
        self.unfit = 0  # of the places: their answers are not the same twice even undisturbed
        self.stream_s = 0.0  # that an undisturbed one took
        self._bodies = [_body(model, place) for place in range(places)]
        self._right: dict[int, Answer] = {}
        self._working: list[asyncio.Task[None]] = []
        self._stopping = False
        self._number = 0

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._http.aclose()

    async def undisturbed(self) -> None:
        """Learns the right answers. Raises NoLoad."""
        first, again = await self._pass(), await self._pass()
        pairs = enumerate(zip(first, again, strict=True))
        self._right = {place: one for place, (one, other) in pairs if not difference(one, other)}
        self.unfit = len(self._bodies) - len(self._right)

    async def _pass(self) -> list[Answer]:
        found = [Stream(time.monotonic()) for _ in self._bodies]
        answers = await asyncio.gather(*(self._once(place, stream) for place, stream in enumerate(found)))
        for stream in found:
            if stream.refused or stream.broken:
                words = stream.broken or f"it was refused with {stream.status}"
                raise NoLoad(f"the drill's own load does not run, even undisturbed: {words} (--load 0 goes without)")
            self.stream_s = max(self.stream_s, (stream.ended_s or 0.0) - stream.begun_s)
        return [answer for answer in answers if answer is not None]

    def start(self) -> None:
        """On each place one stream after the other, the places' beginnings spread over a stream's length."""
        self._working = [asyncio.ensure_future(self._work(place)) for place in range(len(self._bodies))]

    async def stop(self, limit_s: float) -> None:
        """Lets the streams end that run, for so long."""
        self._stopping = True
        if self._working:
            await asyncio.wait(self._working, timeout=limit_s)

    async def _work(self, place: int) -> None:
        await asyncio.sleep(self.stream_s * place / len(self._bodies))
        while not self._stopping:
            stream = Stream(time.monotonic())
            self.streams.append(stream)
            answer = await self._once(place, stream)
            right = self._right.get(place)
            if answer is not None and right is not None:
                stream.compared, stream.wrong = True, difference(answer, right)

    async def _once(self, place: int, stream: Stream) -> Answer | None:
        """Asks once and notes what comes; a refusal is waited for as long as it says. None: no whole answer."""
        times = stream.token_s = array("d")
        self._number += 1
        answer, wait_s = None, 0.0
        headers = {"x-request-id": f"drill-{self._number}"}
        try:
            async with self._http.stream("POST", "/v1/completions", json=self._bodies[place], headers=headers) as reply:
                stream.status = reply.status_code
                if reply.status_code == httpx.codes.OK:
                    answer = await _read(reply, times)
                else:
                    wait_s = _retry_after(reply)
                    stream.refused = wait_s > 0
                    words = (await reply.aread())[:300].decode(errors="replace")
                    stream.broken = "" if stream.refused else f"HTTP {reply.status_code}: {words}"
        except Broken as broken:
            stream.broken = str(broken)
        except httpx.HTTPError as error:
            stream.broken = f"{type(error).__name__}: {error}"
        stream.ended_s = time.monotonic()  # not for one that is cancelled with the load: it has not ended
        if answer is None:
            await asyncio.sleep(wait_s or _AFTER_A_FAILURE_S)
        return answer


async def _read(reply: httpx.Response, times: array[float]) -> Answer:
    reading, seen = Reading(), 0
    async for line in reply.aiter_lines():
        reading.feed(line)
        if reading.events > seen:
            seen = reading.events
            times.append(time.monotonic())
    return reading.end()


def _retry_after(reply: httpx.Response) -> float:
    """Seconds that a refusal asks to wait; 0: it is none."""
    said = reply.headers.get("retry-after", "")
    return min(float(said), MOST_WAIT_S) if reply.status_code in (429, 503) and said.isdigit() else 0.0


def _body(model: str, place: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": f"{123 + 7 * place}+{456 + 3 * place}=",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }

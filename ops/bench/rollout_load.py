"""The load under a rollout: mixed greedy requests, each noted with its version, its times and its whole answer.

Chat and completions, streamed and whole, some that end by themselves and some to a limit. A refusal is waited for and
not asked again: to a client that does not retry it is a failure, and it counts as one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence

import httpx

from ops.bench.rollout_answers import Exchange, agreed
from ops.errors import UserError
from ops.soak.answers import Answer, Broken, Reading, whole
from ops.soak.catalogue import CHAT, Ask, catalogue

VERSION_HEADER = "x-moray-version"
RESTARTED_HEADER = "x-moray-restarted"
SILENCE_LIMIT_S = 120.0  # between two pieces of an answer; a client that waits longer takes it for cut
AFTER_A_FAILURE_S = 0.2
NATURAL_WEIGHT, SHORT_WEIGHT, LONG_WEIGHT = 12, 2, 1  # how often each is asked
LONG_TOKENS = 240

# Of the soak's catalogue: its greedy requests but for those that take a grammar or candidates, which cost an engine
# more than all others together.
_LEFT_OUT = ("seeded", "sampled", "samples", "JSON", "tool", "penalties", "logit bias", "bad words", "echo")


class NoLoad(UserError):
    """The load does not run, even undisturbed."""


def asks(model: str) -> list[Ask]:
    """What is asked."""
    return [ask for ask in catalogue(model) if ask.exact and not any(words in ask.name for words in _LEFT_OUT)]


def weight(ask: Ask) -> int:
    """Most asks are as most traffic is: the model ends them itself."""
    if ask.output_tokens is None and ask.body["max_tokens"] > 1 and "stop" not in ask.body and ask.path == CHAT:
        return NATURAL_WEIGHT
    return LONG_WEIGHT if ask.body["max_tokens"] >= LONG_TOKENS else SHORT_WEIGHT


class Load:
    """Use as a context. `exchanges` is what became of all requests since `start`."""

    def __init__(self, url: str, asked: Sequence[Ask], seed: int = 0) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(base_url=url, timeout=SILENCE_LIMIT_S, limits=limits, trust_env=False)
        self._asked = list(asked)
        self._weights = [weight(ask) for ask in asked]
        self._rng = random.Random(seed)
        self._working: list[asyncio.Task[None]] = []
        self._stopping = False
        self.exchanges: list[Exchange] = []

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._http.aclose()

    async def references(self, passes: Iterable[int]) -> tuple[str, dict[str, Answer]]:
        """(version, its right answers by the asks' names): all are asked once at each concurrency, undisturbed.

        Raises NoLoad if an answer is missing, or if two versions answer.
        """
        found: list[Mapping[str, Answer]] = []
        versions: set[str] = set()
        for concurrency in passes:
            answers: dict[str, Answer] = {}
            for exchange in await self._all(concurrency):
                if exchange.answer is None:
                    raise NoLoad(f"undisturbed, {exchange.ask} was not answered: {exchange.words}")
                answers[exchange.ask] = exchange.answer
                versions.add(exchange.version)
            found.append(answers)
        if len(versions) != 1 or "" in versions:
            raise NoLoad(f"undisturbed, the answers are of {sorted(versions)}: they should be of one version")
        return versions.pop(), agreed(found)

    async def _all(self, concurrency: int) -> list[Exchange]:
        places = asyncio.Semaphore(concurrency)

        async def one(ask: Ask) -> Exchange:
            async with places:
                return await self.once(ask)

        order = self._rng.sample(self._asked, len(self._asked))
        return await asyncio.gather(*(one(ask) for ask in order))

    def start(self, concurrency: int) -> None:
        self._working = [asyncio.ensure_future(self._work()) for _ in range(concurrency)]

    async def stop(self) -> None:
        """With the last answer, or when what hangs is given up."""
        self._stopping = True
        await asyncio.gather(*self._working)

    async def _work(self) -> None:
        while not self._stopping:
            [ask] = self._rng.choices(self._asked, self._weights)
            exchange = await self.once(ask, self.exchanges)
            if exchange.answer is None:
                await asyncio.sleep(AFTER_A_FAILURE_S)

    async def once(self, ask: Ask, into: list[Exchange] | None = None) -> Exchange:
        """Asks once. The exchange is in `into` from its beginning on."""
        exchange = Exchange(ask=ask.name, began_s=time.monotonic())
        if into is not None:
            into.append(exchange)
        try:
            async with self._http.stream("POST", ask.path, json=ask.body) as reply:
                exchange.status = reply.status_code
                if reply.status_code != httpx.codes.OK:
                    said = (await reply.aread())[:300].decode(errors="replace")
                    exchange.words = f"HTTP {reply.status_code}: {said}"
                else:
                    exchange.version = reply.headers.get(VERSION_HEADER, "")
                    exchange.restarted = reply.headers.get(RESTARTED_HEADER, "")
                    exchange.answer = await (_stream if ask.streamed else _body)(reply, exchange)
        except Broken as broken:
            # An error event, or a body without its end; an answer that is none at all was not begun.
            exchange.words, exchange.cut = str(broken), exchange.first_s is not None
        except httpx.HTTPError as error:
            exchange.words = f"{type(error).__name__}: {error}"
            exchange.cut = exchange.first_s is not None
        return exchange


async def _stream(reply: httpx.Response, exchange: Exchange) -> Answer:
    reading, seen = Reading(), 0
    heard: float | None = None
    async for line in reply.aiter_lines():
        reading.feed(line)
        if reading.events > seen:
            seen, now = reading.events, time.monotonic()
            exchange.first_s = exchange.first_s or now
            exchange.longest_gap_s = max(exchange.longest_gap_s, now - (heard or now))
            heard = now
    return reading.end()


async def _body(reply: httpx.Response, exchange: Exchange) -> Answer:
    body = await reply.aread()
    exchange.first_s = time.monotonic()
    return whole(body)

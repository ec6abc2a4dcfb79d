"""The clients: they send the catalogue's requests, some go away in the midst of an answer, all others check theirs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ops.soak.answers import Answer, Broken, difference, is_quarantine, shortcoming
from ops.soak.catalogue import Ask
from ops.soak.client import Aborted, Client

ABORTED_SHARE = 0.12
_LATEST_ABORT = 200  # events of a stream, hundredths of a second of a whole answer


@dataclass(frozen=True)
class Failure:
    """An answer that should have been another."""

    ask: str
    request_id: str  # the gateway's and the engine's logs know it
    words: str
    got: Answer | None = None
    wanted: Answer | None = None

    def in_full(self) -> str:
        lines = [f"{self.ask} ({self.request_id}): {self.words}"]
        lines += [f"  {name}: {answer}" for name, answer in (("got", self.got), ("wanted", self.wanted)) if answer]
        return "\n".join(lines)


@dataclass
class Tally:
    """What became of all requests."""

    requests: int = 0
    tokens: int = 0  # of answers that came whole
    aborted: int = 0
    quarantined: int = 0
    broken: list[Failure] = field(default_factory=list)
    wrong: list[Failure] = field(default_factory=list)


class Load:
    """Sends random requests and checks their answers against the right ones, by the asks' names."""

    def __init__(self, client: Client, asks: Sequence[Ask], right: Mapping[str, Answer], seed: int) -> None:
        self.tally = Tally()
        self._client = client
        self._asks = asks
        self._right = right
        self._rng = random.Random(seed)
        self._stopping = False

    async def run(self, concurrency: int) -> None:
        """Until `stop`; then it ends with the last answer."""
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._work())

    def stop(self) -> None:
        self._stopping = True

    async def _work(self) -> None:
        while not self._stopping:
            ask = self._rng.choice(self._asks)
            abort = self._rng.random() < ABORTED_SHARE
            await self._one(ask, self._rng.randint(1, _LATEST_ABORT) if abort else None)

    async def _one(self, ask: Ask, abort_after: int | None) -> None:
        tally = self.tally
        tally.requests += 1
        request_id = f"soak-{tally.requests}"
        try:
            answer = await self._client.answer(ask, request_id, abort_after)
        except Aborted:
            tally.aborted += 1
            return
        except Broken as broken:
            if is_quarantine(str(broken), request_id):
                tally.quarantined += 1
            else:
                tally.broken.append(Failure(ask.name, request_id, str(broken)))
            return
        tally.tokens += answer.completion_tokens
        wanted = self._right.get(ask.name)
        if words := shortcoming(answer, ask) if wanted is None else difference(answer, wanted):
            tally.wrong.append(Failure(ask.name, request_id, words, answer, wanted))


async def undisturbed(
    client: Client, asks: Sequence[Ask], concurrencies: Sequence[int], seed: int
) -> tuple[dict[str, Answer], dict[str, str]]:
    """The right answers by name, and why others have none: all are asked once at each concurrency, in random order.

    What is not the same each time says nothing after a disturbance either: on a near tie of two tokens the sums'
    order decides, which the rest of the batch decides. Raises Broken: undisturbed, every answer must come.
    """
    rng = random.Random(seed)
    right: dict[str, Answer] = {}
    unfit: dict[str, str] = {}
    for turn, concurrency in enumerate(concurrencies):
        order = rng.sample(asks, len(asks))
        for ask, answer in zip(order, await _all(client, order, concurrency, f"undisturbed-{turn}"), strict=True):
            if ask.exact and (words := difference(answer, right.setdefault(ask.name, answer))):
                unfit.setdefault(ask.name, words)
    return {name: answer for name, answer in right.items() if name not in unfit}, unfit


async def _all(client: Client, asks: Sequence[Ask], concurrency: int, prefix: str) -> list[Answer]:
    places = asyncio.Semaphore(concurrency)

    async def one(number: int, ask: Ask) -> Answer:
        async with places:
            try:
                answer = await client.answer(ask, f"{prefix}-{number}")
            except Broken as broken:
                raise Broken(f"undisturbed, {ask.name}: {broken}") from broken
        if words := shortcoming(answer, ask):
            raise Broken(f"undisturbed, {ask.name}: {words}")
        return answer

    return await asyncio.gather(*(one(number, ask) for number, ask in enumerate(asks)))

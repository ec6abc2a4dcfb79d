"""A gateway's side of the watching: gathers what ended, pushes it once a second, never on a request's way."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from cluster.journal import Ended, Listener
from cluster.live import SeenReplica
from ops.controller.reports import Batch, of_interest

logger = logging.getLogger("ray.serve")

PUSH_EVERY_S = 1.0
KEPT = 20_000  # ended requests, while the controller is away: Ray brings it back in seconds


class ControllerGone(Exception):
    """The controller did not take the batch; Ray restarts it."""


class Seeing(Protocol):
    """ClusterCore, as far as it is needed here."""

    def seen(self) -> list[SeenReplica]: ...

    def take_hung(self) -> list[SeenReplica]: ...


class Reporter(Listener):
    """Listens to the journal; `run` pushes. `send` raises ControllerGone if the batch was not taken."""

    def __init__(
        self,
        gateway: str,
        core: Seeing,
        send: Callable[[Batch], Awaitable[None]],
        wanted: Callable[[], str] = str,
    ) -> None:
        self._gateway, self._core, self._send, self._wanted = gateway, core, send, wanted
        self._ended: deque[Ended] = deque()
        self._first = 0  # number of the first of them since the start
        self._hung: deque[SeenReplica] = deque(maxlen=64)
        self._dropped = 0

    def ended(self, record: Ended) -> None:
        if of_interest(record, record.ended_at) is None:
            return
        self._ended.append(record)
        if len(self._ended) > KEPT:
            self._forget(1)
            self._dropped += 1

    def _forget(self, count: int) -> None:
        self._first += count
        for _ in range(count):
            self._ended.popleft()

    def batch(self, now: float, late: bool) -> Batch:
        """What has come since the batch before."""
        self._hung.extend(self._core.take_hung())
        return Batch(
            gateway=self._gateway,
            late=late,
            requests=tuple(told for record in self._ended if (told := of_interest(record, now))),
            first=self._first,
            replicas=tuple(self._core.seen()),
            hung=tuple(self._hung),
            wanted=self._wanted(),
            dropped=self._dropped,
        )

    async def run(self) -> None:
        """Pushes until it is cancelled. What the controller did not take is told again."""
        away = False
        due = time.monotonic() + PUSH_EVERY_S
        while True:
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            late, due = now - due > PUSH_EVERY_S, now + PUSH_EVERY_S
            batch = self.batch(now, late)
            try:
                await self._send(batch)
            except ControllerGone as error:
                if not away:
                    logger.warning("The controller does not answer (%s); nobody watches until it is back.", error)
                away = True
                continue
            away = False
            # Less those that fell out meanwhile.
            self._forget(max(batch.first + len(batch.requests) - self._first, 0))
            for _ in batch.hung:
                self._hung.popleft()

"""What a gateway has to tell its router: gathered for one turn of the loop, sent through any number of its lives."""

import asyncio
import logging
from collections.abc import Callable

from cluster.router_link import RouterGone, RouterLink
from replicas.messages import Inbox, Lost, Outbox, Released, Resync, Ticket

logger = logging.getLogger("ray.serve")

RETRY_ROUTER_S = 0.1
STARTED_S = 0.002  # the router hears of a first token once that is on its way to the client


class RouterTalk:
    """Gathers news for the router and sends them; `run` is the task that does it."""

    def __init__(self, router: RouterLink, all_open: Callable[[], Resync]) -> None:
        """`all_open` gives what a router that knows nothing must hear."""
        self._router = router
        self._all_open = all_open
        # What the router has not been told yet.
        self._tickets: dict[str, Ticket] = {}
        self._started: list[str] = []
        self._released: list[Released] = []
        self._lost: list[Lost] = []
        self._met = self._missed = 0
        self._news = asyncio.Event()

    def ask(self, ticket: Ticket) -> None:
        self._tickets[ticket.request_id] = ticket
        self._news.set()

    def started(self, request_id: str) -> None:
        """Its first token has come."""
        self._started.append(request_id)
        asyncio.get_running_loop().call_later(STARTED_S, self._news.set)

    def release(self, request_id: str, output_tokens: int, whole: bool) -> None:
        """As in `Released`; a ticket that the router never heard of is withdrawn."""
        if self._tickets.pop(request_id, None) is None:
            self._released.append(Released(request_id=request_id, output_tokens=output_tokens, whole=whole))
            self._news.set()

    def lost(self, replica_id: str, epoch: int) -> None:
        """A replica's connection broke."""
        self._lost.append(Lost(replica_id=replica_id, epoch=epoch))
        self._news.set()

    def attained(self, met: bool) -> None:
        """A request has ended, within the SLO or not. It goes with its release."""
        if met:
            self._met += 1
        else:
            self._missed += 1

    async def run(self, on_inbox: Callable[[Inbox], None]) -> None:
        """Keeps the router told; never returns. What one turn of the loop gathers goes at once."""
        while True:
            gone = asyncio.Event()

            def on_gone(gone: asyncio.Event = gone) -> None:
                gone.set()
                self._news.set()

            try:
                await self._router.connect(on_inbox, on_gone)
            except RouterGone as error:
                logger.warning("The router does not answer (%s); trying again.", error)
                await asyncio.sleep(RETRY_ROUTER_S)
                continue
            self._outbox()  # its news are part of what follows
            self._router.tell(self._all_open())
            while not gone.is_set():
                await self._news.wait()
                self._news.clear()
                outbox = self._outbox()
                if outbox != Outbox() and not gone.is_set():
                    self._router.tell(outbox)
            await asyncio.sleep(RETRY_ROUTER_S)

    def _outbox(self) -> Outbox:
        outbox = Outbox(
            tickets=tuple(self._tickets.values()),
            started=tuple(self._started),
            released=tuple(self._released),
            lost=tuple(self._lost),
            met=self._met,
            missed=self._missed,
        )
        self._met = self._missed = 0
        self._tickets, self._started, self._released, self._lost = {}, [], [], []
        return outbox

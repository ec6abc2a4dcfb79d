"""A gateway's way to the router: found by name through Ray, spoken to over a `wire.Connection`.

An actor call through Ray costs a request 2-5 ms on two CPU cores; this 0.3 ms, and the router can speak first.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import ray

from cluster.draining import DrainRefused, DrainRequest
from replicas.messages import Inbox, Outbox, Resync, RouterAddress
from replicas.router_handle import find_router
from replicas.wire import Connection, Kind

CONNECT_TIMEOUT_S = 5.0

_decode_inbox = msgspec.msgpack.Decoder(Inbox).decode


class RouterGone(Exception):
    """The router does not answer; it will be back, empty."""


class RouterLink(Protocol):
    """The router as a gateway needs it."""

    async def connect(self, on_inbox: Callable[[Inbox], None], on_gone: Callable[[], None]) -> None:
        """Connects anew. `on_gone` is called once when this connection ends. Raises RouterGone if none is to be had."""
        ...

    def tell(self, message: Outbox | Resync) -> None:
        """Sends; what is told on a connection that is gone is lost, and part of what the next Resync says."""
        ...


class RayRouterLink:
    """`RouterLink` to the router actor of a model."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._connection: Connection | None = None

    async def connect(self, on_inbox: Callable[[Inbox], None], on_gone: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def on_message(_: Connection, kind: Kind, buffers: list[bytes]) -> None:
            if kind is Kind.INBOX:
                on_inbox(_decode_inbox(buffers[0]))

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                actor = await find_router(self._model)
                address: RouterAddress = await actor.address.remote()
                _, self._connection = await loop.create_connection(
                    lambda: Connection(on_message, lambda _: on_gone()), address.host, address.port
                )
        except (ray.exceptions.RayError, OSError) as error:  # TimeoutError is an OSError
            raise RouterGone(f"{type(error).__name__}: {error}") from error
        self._connection.send(Kind.HELLO, [address.token.encode()])

    def tell(self, message: Outbox | Resync) -> None:
        if self._connection is not None:
            self._connection.send(Kind.OUTBOX, [msgspec.msgpack.encode(message)])

    async def drain(self, asked: DrainRequest) -> str:
        """Has a replica drained, or no longer; returns its id. Raises DrainRefused and RouterGone."""
        answer = await self._ask("drain", asked)
        if refusal := answer.get("refused"):
            raise DrainRefused(refusal)
        return str(answer["replica"])

    async def status(self, brief: bool = False) -> dict[str, Any]:
        """What the router holds: `RouterState.status`. Raises RouterGone."""
        return await self._ask("status", brief)

    async def experts(self) -> dict[str, Any]:
        """What the experts were given: `expert_report`. Raises RouterGone."""
        return await self._ask("experts")

    async def metrics_addresses(self) -> list[str]:
        """ "host:port" of each gateway's metrics. Raises RouterGone."""
        return list((await self._ask("metrics_addresses"))["gateways"])

    async def _ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        try:
            router = await find_router(self._model, CONNECT_TIMEOUT_S)
            answer: dict[str, Any] = await getattr(router, method).remote(*arguments)
        except (ray.exceptions.RayError, OSError) as error:
            raise RouterGone(f"{type(error).__name__}: {error}") from error
        return answer

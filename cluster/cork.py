"""A gateway's HTTP writes, gathered over one turn of the event loop.

A frame from a replica becomes an event in each of its streams. Written one by one, between the work that makes them,
each wakes the proxy, which wakes the client, on cores that the engine wants; written together they wake each once.
Nothing waits for a clock: what one turn of the loop has written leaves at the beginning of the next.
"""

import asyncio
from typing import Any


class Corks:
    """The connections of one event loop that have something to write."""

    def __init__(self) -> None:
        self._waiting: list[CorkedTransport] = []

    def add(self, transport: "CorkedTransport") -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._pull)
        self._waiting.append(transport)

    def _pull(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            transport.flush()


class CorkedTransport:
    """A transport whose writes leave with those of all others of its loop; all else is the transport's own."""

    def __init__(self, transport: Any, corks: Corks) -> None:
        self._transport = transport
        self._corks = corks
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._corks.add(self)
        self._parts.append(data)

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():  # gone since; uvloop's write would raise, and hold up the others
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        self.flush()
        self._transport.close()


def cork_http() -> None:
    """Corks every connection that uvicorn, which Ray Serve runs in this process, accepts from now on."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    accept, corks = HttpToolsProtocol.connection_made, Corks()

    def connection_made(self: Any, transport: Any) -> None:
        accept(self, CorkedTransport(transport, corks))  # type: ignore[arg-type]

    HttpToolsProtocol.connection_made = connection_made  # type: ignore[method-assign]

"""Corked writes: held for one turn of the loop, whole and in order, and never lost by a close."""

from __future__ import annotations

import asyncio

from cluster.cork import CorkedTransport, Corks


class Wire:
    """Notes what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 7


async def test_writes_of_one_turn_leave_together_after_it():
    corks, wires = Corks(), [Wire(), Wire()]
    one, two = (CorkedTransport(wire, corks) for wire in wires)
    one.write(b"a")
    two.write(b"x")
    one.write(b"b")
    assert [wire.written for wire in wires] == [[], []]
    await asyncio.sleep(0)
    assert [wire.written for wire in wires] == [[b"ab"], [b"x"]]
    two.write(b"y")  # and again
    await asyncio.sleep(0)
    assert [wire.written for wire in wires] == [[b"ab"], [b"x", b"y"]]


async def test_a_close_sends_what_was_written_before_it():
    wire = Wire()
    corked = CorkedTransport(wire, Corks())
    corked.write(b"last words")
    corked.close()
    assert (wire.written, wire.closed) == ([b"last words"], True)
    await asyncio.sleep(0)
    assert wire.written == [b"last words"]


async def test_a_connection_that_was_lost_meanwhile_holds_up_nobody():
    corks, wires = Corks(), [Wire(), Wire()]
    gone, other = (CorkedTransport(wire, corks) for wire in wires)
    gone.write(b"a")
    other.write(b"x")
    wires[0].closed = True
    await asyncio.sleep(0)
    assert [wire.written for wire in wires] == [[], [b"x"]]


def test_all_else_is_the_transports_own():
    assert CorkedTransport(Wire(), Corks()).get_write_buffer_size() == 7

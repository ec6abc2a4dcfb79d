"""The lease's decisions: contenders whose clocks run at different speeds never hold it at once."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.k8s.lease import Held, Sight, Step, Terms, decide, leads, look

TERMS = Terms()


def held(holder: str = "a", version: str = "1", lease_s: float = 15.0) -> Held:
    return Held(holder, lease_s, version)


def test_no_lease_is_made() -> None:
    assert decide("me", look(None, None, 0.0), 0.0) is Step.CREATE


def test_anothers_is_waited_for_until_it_has_not_changed_for_its_time() -> None:
    seen = look(None, held(), 100.0)
    assert decide("me", seen, 115.0) is Step.WAIT
    renewed = look(seen, held(version="2"), 114.0)
    assert decide("me", renewed, 120.0) is Step.WAIT
    assert decide("me", look(renewed, held(version="2"), 128.0), 129.1) is Step.TAKE


def test_one_given_back_is_taken_at_once() -> None:
    assert decide("me", look(None, held(holder=""), 5.0), 5.0) is Step.TAKE


def test_mine_is_renewed_and_given_up_before_the_others_may_take_it() -> None:
    assert decide("a", look(None, held(), 0.0), 0.0) is Step.RENEW
    assert leads(100.0, 109.9, TERMS) and not leads(100.0, 110.0, TERMS) and not leads(None, 0.0, TERMS)


@pytest.mark.parametrize("terms", [(15.0, 15.0, 2.0), (15.0, 16.0, 2.0), (15.0, 10.0, 10.0)])
def test_terms_under_which_two_could_hold_it_are_refused(terms) -> None:
    with pytest.raises(ValueError, match="two may hold"):
        Terms(*terms)


@dataclass
class Store:
    """The API server: one lease, and whoever names its version may write."""

    lease: Held | None = None
    version: int = 0

    def write(self, read: str | None, holder: str) -> Held | None:
        if (self.lease.version if self.lease else None) != read:
            return None
        self.version += 1
        self.lease = Held(holder, TERMS.lease_s, str(self.version))
        return self.lease


@dataclass
class Contender:
    name: str
    rate: float  # its clock's seconds in a true one
    offset: float
    sight: Sight | None = None
    asked_s: float | None = None
    alive: bool = True

    def clock(self, true_s: float) -> float:
        return true_s * self.rate + self.offset

    def leading(self, true_s: float) -> bool:
        return self.alive and leads(self.asked_s, self.clock(true_s), TERMS)


CONTENDERS = st.lists(st.tuples(st.floats(0.85, 1.15), st.floats(-1e6, 1e6)), min_size=2, max_size=3)


@settings(max_examples=200)
@given(CONTENDERS, st.integers(0, 2**32))
def test_two_never_hold_it(clocks, seed) -> None:
    """Events in true time: a look is asked, read, answered; a write is asked, done or refused, answered or lost."""
    chance = Random(seed)
    store = Store()
    contenders = [Contender(f"c{i}", rate, offset) for i, (rate, offset) in enumerate(clocks)]
    order = itertools.count()
    events: list[tuple[float, int, str, Contender, tuple]] = []

    def at(true_s: float, what: str, who: Contender, *detail: object) -> None:
        heapq.heappush(events, (true_s, next(order), what, who, detail))

    def delay() -> float:
        """Of a message; now and then a process stands still, or its network does."""
        return chance.uniform(5.0, 40.0) if chance.random() < 0.06 else chance.expovariate(4.0)

    def alone(true_s: float) -> None:
        leading = [one.name for one in contenders if one.leading(true_s)]
        assert len(leading) <= 1, (true_s, leading)

    for who in contenders:
        at(chance.uniform(0.0, 3.0), "look", who)
    for _ in range(300):
        now, _, what, who, detail = heapq.heappop(events)
        alone(now)
        if what == "look":
            if chance.random() < 0.01 and sum(one.alive for one in contenders) > 1:
                who.alive = False  # killed
                continue
            at(now + delay(), "read", who)
        elif what == "read":
            at(now + delay(), "seen", who, store.lease)
        elif what == "seen":
            local = who.clock(now)
            who.sight = look(who.sight, detail[0], local)
            step = decide(who.name, who.sight, local)
            if detail[0] is not None and detail[0].holder != who.name:
                who.asked_s = None
            if step is Step.WAIT:
                at(now + 2.0 / who.rate, "look", who)
            else:
                at(now + delay(), "write", who, detail[0].version if detail[0] else None, local)
        elif what == "write":
            written = store.write(detail[0], who.name)
            if chance.random() < 0.1:
                written = None  # done or not, the answer is lost
            at(now + delay(), "written", who, written, detail[1])
        elif what == "written":
            if detail[0] is not None:
                who.sight = look(who.sight, detail[0], who.clock(now))
                who.asked_s = detail[1]
            at(now + 2.0 / who.rate, "look", who)
        alone(now)

"""One lease, several processes: who acts, what is handed over, what an API server that fails does to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from fake_api import LEASES, NAMESPACE, answering, hanging_up, losing_the_answer

from ops.k8s.leadership import RECORD, Leadership, NotLeading
from ops.k8s.lease import Terms
from ops.k8s.refusals import ApiRefused

LEASE = f"{LEASES}/watchers"
QUICK = Terms(lease_s=1.0, renew_within_s=0.6, look_every_s=0.1)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def contender(server, clock) -> Callable[[str], Leadership]:
    """Not started: turned by hand, on a clock that stands."""
    return lambda name: Leadership(server.api(), NAMESPACE, "watchers", name, clock=clock)


@pytest.fixture
def running(server) -> Iterator[Callable[[str], Leadership]]:
    made: list[Leadership] = []

    def make(name: str) -> Leadership:
        made.append(Leadership(server.api(threading.Event()), NAMESPACE, "watchers", name, QUICK))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.release()


def test_the_first_has_it_and_the_second_waits_until_it_ends(contender, clock):
    a, b = contender("a"), contender("b")
    a.turn()
    b.turn()
    assert a.leading and not b.leading and b.holder == "a"
    clock.now_s += 9.0
    a.turn()
    clock.now_s += 9.0
    b.turn()
    assert a.leading and not b.leading, "renewed meanwhile"
    clock.now_s += 1.5
    assert not a.leading, "it steps down before others take it"
    clock.now_s += 15.0
    b.turn()
    assert b.leading
    a.turn()
    assert not a.leading and a.holder == "b"


def test_what_was_remembered_is_handed_over(contender, clock, server):
    a, b = contender("a"), contender("b")
    a.turn()
    a.remember({"r1": "node-a"})
    b.turn()
    clock.now_s += 16.0
    b.turn()
    assert b.leading and b.record == {"r1": "node-a"}
    with pytest.raises(NotLeading):
        a.remember({})
    assert server.objects[LEASE]["spec"]["leaseTransitions"] == 1


def test_one_that_was_overtaken_while_it_slept_writes_nothing(contender, clock):
    a, b = contender("a"), contender("b")
    a.turn()
    clock.now_s += 9.0  # a thinks that it still leads
    assert a.leading
    a._terms = Terms(lease_s=1000, renew_within_s=999)
    b.turn()
    clock.now_s += 16.0
    b.turn()
    assert b.leading and a.leading, "a believes so, by terms that nobody else has"
    with pytest.raises(NotLeading):
        a.remember({"r9": "x"})
    assert b.record == {} and not a.leading


def test_somebody_who_edits_the_lease_does_not_end_it(contender, server):
    a = contender("a")
    a.turn()
    lease = server.objects[LEASE]
    server.put(LEASE, lease | {"metadata": lease["metadata"] | {"labels": {"seen": "yes"}}})
    a.remember({"r1": "n"})
    assert a.leading and a.record == {"r1": "n"}
    assert server.objects[LEASE]["metadata"]["labels"] == {"seen": "yes"}


def test_an_answer_that_was_lost(contender, server):
    a = contender("a")
    a.turn()
    server.fail("PUT", LEASE, losing_the_answer)
    a.remember({"r1": "n"})
    assert a.leading and a.record == {"r1": "n"}


def test_a_lease_that_is_deleted_takes_no_memory_with_it(contender, server):
    a = contender("a")
    a.turn()
    a.remember({"r1": "n"})
    server.delete(LEASE)
    a.turn()
    assert a.leading and a.record == {"r1": "n"} and RECORD in server.objects[LEASE]["metadata"]["annotations"]


def test_an_annotation_of_somebody_else_is_no_record(contender, server, clock):
    a = contender("a")
    a.turn()
    lease = server.objects[LEASE]
    server.put(LEASE, lease | {"metadata": lease["metadata"] | {"annotations": {RECORD: "[1, 2"}}})
    a.turn()
    assert a.leading and a.record == {}


def test_without_the_api_server_it_steps_down_in_time(contender, server, clock):
    a = contender("a")
    a.turn()
    server.fail("GET", LEASE, answering(500), times=50)
    server.fail("PUT", LEASE, hanging_up, times=50)
    with pytest.raises(ApiRefused):
        a.turn()
    assert a.leading, "what was granted holds"
    clock.now_s += 10.0
    assert not a.leading
    server.faults.clear()
    a.turn()
    assert a.leading


def test_a_renewal_counts_from_when_it_was_asked_for(contender, server, clock):
    a = contender("a")

    def slow(request) -> bool:
        clock.now_s += 8.0
        return False

    a.turn()
    server.fail("PUT", LEASE, slow)
    a.turn()
    assert a.leading
    clock.now_s += 2.0
    assert not a.leading, "the others count from when they saw it, which may have been at once"


def test_one_that_goes_gives_it_back_and_the_other_takes_it(running, server, until):
    a = running("a")
    until(lambda: a.leading)
    b = running("b")
    until(lambda: b.holder == "a")
    a.remember({"r1": "n"})
    a.release()
    assert not a.leading and server.objects[LEASE]["spec"]["holderIdentity"] in ("", "b")
    until(lambda: b.leading and b.record == {"r1": "n"})


def test_one_that_is_killed_is_followed_once_its_lease_has_run_out(running, server, until):
    a = running("a")
    until(lambda: a.leading)
    b = running("b")
    a._stop.set()  # as a killed process: it renews nothing and gives nothing back
    until(lambda: b.leading)
    assert not a.leading

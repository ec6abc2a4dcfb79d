"""What a gateway counts of its replicas, for whoever watches them."""

from __future__ import annotations

import asyncio
import time

from infos import replica_info

from cluster.live import HangWatch, Live, Peer, Resources, SeenReplica, seen_replicas
from cluster.outcomes import RequestContext
from replicas.messages import Grant, Ticket
from replicas.wire import Kind


def peer(replica_id: str = "a") -> Peer:
    return Peer(replica_info(replica_id, epoch=3, version="v2"))


def live(replica_id: str | None, submitted: bool = True) -> Live:
    one = Live(None, Ticket(request_id="r", prompt_tokens=1, max_tokens=1), RequestContext())
    if replica_id is not None:
        one.grant = Grant(request_id="r", replica_id=replica_id, epoch=3)
        one.submitted_at = time.monotonic() - 60.0 if submitted else 0.0
    return one


def test_a_replica_has_what_was_sent_to_it_and_gave_what_came_from_it() -> None:
    one, other = peer("a"), peer("b")
    one.tokens += 5
    one.heard(Kind.FRAME)
    for _ in range(3):
        one.heard(Kind.ALIVE)
    requests = [live("a"), live("a"), live("a", submitted=False), live(None), live("gone")]
    assert seen_replicas([one, other], requests) == [
        SeenReplica("a", 3, "v2", 2, 5, 3),
        SeenReplica("b", 3, "v2", 0, 0, 0),
    ]


def test_one_that_is_given_up_as_hung_is_told_once() -> None:
    watch, one = HangWatch(8.0), peer()
    one.connection = object()  # type: ignore[assignment]
    one.heard_at = (now := time.monotonic()) - 50.0
    assert list(watch.hung([one], [live("a")], now)) == [], "the first look is late by itself"
    assert list(watch.hung([one], iter([live("a"), live("a")]), now + 1.0)) == [one]
    assert watch.take_found() == [SeenReplica("a", 3, "v2", 2, 0, 0)] and watch.take_found() == []


async def test_a_task_that_fails_is_the_engines_death_and_one_that_is_cancelled_is_not() -> None:
    async def waits() -> None:
        await asyncio.sleep(60)

    async def ends() -> None: ...

    async def fails() -> None:
        raise ValueError("a mistake of ours")

    resources = Resources()
    for coroutine in (waits(), ends()):
        resources.start(coroutine)
    await asyncio.sleep(0.01)
    resources.cancel()
    await asyncio.sleep(0.01)
    assert not resources.engine_dead and not resources._tasks
    resources.start(fails())
    await asyncio.sleep(0.01)
    assert resources.engine_dead

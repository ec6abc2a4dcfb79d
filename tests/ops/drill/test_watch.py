"""What a watch makes of statuses and alarms."""

from __future__ import annotations

import asyncio
from typing import Any

from ops.drill.recovery import AlarmSeen, Healing, Sight
from ops.drill.watch import Watch, sight, take_alarms


def told(name: str, raised_s: float, **labels: str) -> dict[str, Any]:
    return {
        "name": name,
        "severity": "page",
        "summary": "so it is",
        "runbook": name,
        "labels": labels,
        "raised_s": raised_s,
    }


def event(at_s: float, raised: bool, alarm: dict[str, Any]) -> dict[str, Any]:
    return {"at_s": at_s, "raised": raised, "alarm": alarm}


def test_beginnings_and_ends_make_alarms():
    one, other = told("stuck-queue", 5.0, model="m"), told("replica-latency", 6.0, replica="a")
    alarms: dict[Any, AlarmSeen] = {}
    healings: dict[Any, Healing] = {}
    healing = {"at_s": 7.0, "replica": "a", "action": "drain", "outcome": "done", "why": "suspect"}
    first = {"alarms": [one, other], "recent": [event(5.0, True, one), event(6.0, True, other)], "healing": [healing]}
    take_alarms(first, alarms, healings)
    assert [(a.name, a.resolved_s) for a in alarms.values()] == [("stuck-queue", None), ("replica-latency", None)]
    assert [h.action for h in healings.values()] == ["drain"]

    # The end is told; later the cluster has forgotten all of it, and raises the same alarm anew.
    take_alarms({"alarms": [other], "recent": [event(9.0, False, one), *first["recent"]]}, alarms, healings)
    take_alarms({"alarms": [told("stuck-queue", 20.0, model="m")], "recent": []}, alarms, healings)
    assert sorted((a.name, a.raised_s, a.resolved_s) for a in alarms.values() if a.name == "stuck-queue") == [
        ("stuck-queue", 5.0, 9.0),
        ("stuck-queue", 20.0, None),
    ]
    assert len(healings) == 1


async def looked_at(gateway: Any, seconds: float, change: Any = None) -> tuple[Watch, list[Sight]]:
    seen: list[Sight] = []
    async with Watch(gateway.url, None, seen.append) as watch:
        await asyncio.sleep(seconds)
        if change is not None:
            change()
            await asyncio.sleep(seconds)
    return watch, seen


async def test_it_looks_several_times_a_second_and_sees_that_there_is_no_controller(gateway):
    watch, seen = await looked_at(gateway, 1.0)
    assert len(seen) >= 3 and watch.has_controller is False and watch.alarms is None
    assert seen[0] == sight(gateway.status, seen[0].at_s)
    assert [one.at_s for one in seen] == sorted(one.at_s for one in seen)


async def test_it_tells_alarms_where_there_is_a_controller(gateway):
    gateway.alarms = {"alarms": [told("stuck-queue", 5.0)], "recent": [], "healing": [], "watching": True}
    watch, _ = await looked_at(gateway, 0.5)
    assert watch.has_controller and [alarm.name for alarm in watch.alarms or ()] == ["stuck-queue"]


async def test_a_controller_that_is_away_watches_nothing(gateway):
    gateway.alarms = {"alarms": [], "recent": [], "healing": [], "watching": False}
    watch, _ = await looked_at(gateway, 0.5)
    assert watch.has_controller is None and watch.alarms is None


async def test_a_router_that_is_away_is_no_sight(gateway):
    def away() -> None:
        gateway.status = 503

    watch, seen = await looked_at(gateway, 0.5, away)
    assert 1 <= len(seen) <= 4 and watch.status is not None

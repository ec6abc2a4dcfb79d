"""Looks at the cluster: its status several times a second, its alarms every second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from ops.drill.recovery import AlarmSeen, GatewaySight, Healing, ReplicaSight, Sight
from ops.gateway_calls import authorization

LOOK_EVERY_S = 0.2
LEAST_OFTEN_S = 1.0
SHARE = 0.2  # of the time that looks may take: a large cluster's status is long
ANSWER_LIMIT_S = 5.0
MOST_ASKED = 10  # at once
ALARMS_EVERY_S = 1.0


class Watch:
    """Use as a context: it looks while that lasts. `on_sight` is told each."""

    def __init__(self, url: str, api_key: str | None, on_sight: Callable[[Sight], None]) -> None:
        # A connection for each look: behind a balancer it is another gateway's turn, and none is left hanging.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            base_url=url, headers=authorization(api_key), timeout=ANSWER_LIMIT_S, limits=limits, trust_env=False
        )
        self._on_sight = on_sight
        self.status: dict[str, Any] | None = None  # the last that was answered
        self.has_controller: bool | None = None  # None: not known yet
        self._asked_s = 0.0  # when the last status that was answered was asked for
        self._took_s = 0.0
        self._alarms: dict[tuple[str, str, float], AlarmSeen] = {}
        self._healings: dict[tuple[float, str, str], Healing] = {}
        self._looking: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Watch:
        self._looking = [asyncio.ensure_future(self._look()), asyncio.ensure_future(self._look_at_alarms())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
        await self._http.aclose()

    @property
    def alarms(self) -> list[AlarmSeen] | None:
        """What was seen raised so far; None: the cluster has no controller."""
        return list(self._alarms.values()) if self.has_controller else None

    @property
    def healings(self) -> list[Healing]:
        return list(self._healings.values())

    async def _look(self) -> None:
        """Asks on while answers stay away: a gateway that lost its router holds one back for seconds."""
        asking: set[asyncio.Task[None]] = set()
        try:
            while True:
                if len(asking) < MOST_ASKED:
                    one = asyncio.ensure_future(self._ask_once())
                    asking.add(one)
                    one.add_done_callback(asking.discard)
                await asyncio.sleep(min(max(LOOK_EVERY_S, self._took_s / SHARE), LEAST_OFTEN_S))
        finally:
            for one in asking:
                one.cancel()

    async def _ask_once(self) -> None:
        asked_s = time.monotonic()
        status = await self._get("/moray/status")
        if isinstance(status, dict) and asked_s > self._asked_s:  # not overtaken by a later one
            now = time.monotonic()
            self._asked_s, self._took_s = asked_s, now - asked_s
            self.status = status
            self._on_sight(sight(status, now))

    async def _look_at_alarms(self) -> None:
        while self.has_controller is not False:
            told = await self._get("/moray/alarms")
            if told == httpx.codes.NOT_FOUND:
                self.has_controller = False
            elif isinstance(told, dict) and told.get("watching", True):  # else its controller is away
                self.has_controller = True
                take_alarms(told, self._alarms, self._healings)
            await asyncio.sleep(ALARMS_EVERY_S)

    async def _get(self, path: str) -> dict[str, Any] | int | None:
        """The answer, the status code of another one, or None."""
        try:
            reply = await self._http.get(path)
            return reply.json() if reply.is_success else reply.status_code
        except (httpx.HTTPError, ValueError):
            return None


def sight(status: Mapping[str, Any], at_s: float) -> Sight:
    """A status of `/moray/status` as the report needs it."""
    gateway = status["gateway"]
    return Sight(
        at_s,
        tuple(
            ReplicaSight((r["id"], r["epoch"]), r["state"], r["granted"] + r["running"] > 0) for r in status["replicas"]
        ),
        status["router"]["pid"],
        GatewaySight(gateway["pid"], gateway["resumed"], gateway["moved"], gateway["quarantined"]),
    )


def take_alarms(
    told: Mapping[str, Any],
    alarms: dict[tuple[str, str, float], AlarmSeen],
    healings: dict[tuple[float, str, str], Healing],
) -> None:
    """Adds what `/moray/alarms` tells: beginnings and ends, and what is raised now."""
    for event in sorted(told.get("recent", ()), key=lambda event: event["at_s"]):
        _take(alarms, event["alarm"], None if event["raised"] else event["at_s"])
    for alarm in told.get("alarms", ()):
        _take(alarms, alarm, None)
    for one in told.get("healing", ()):
        healing = Healing(one["at_s"], one["replica"], one["action"], one["outcome"], one.get("why", ""))
        healings[healing[:3]] = healing


def _take(alarms: dict[tuple[str, str, float], AlarmSeen], told: Mapping[str, Any], resolved_s: float | None) -> None:
    identity = (told["name"], repr(sorted(told["labels"].items())), told["raised_s"])
    known = alarms.get(identity)
    if known is not None and known.resolved_s is not None:
        return  # a resolved one stays so
    alarms[identity] = AlarmSeen(
        told["name"], told["severity"], told["summary"], told["labels"], told["raised_s"], resolved_s
    )

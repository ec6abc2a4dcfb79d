"""One rollout as it was seen from outside: its phases, and what each replica did meanwhile. Pure but for `look`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ops.processes import members
from ops.soak.session import CORE

READY = "ready"
ANSWER_LIMIT_S = 10.0


class ReplicaSeen(NamedTuple):
    version: str
    phase: str  # ready, draining, or what it does for its swap


class Sight(NamedTuple):
    """One look. Seconds of one monotonic clock."""

    at_s: float
    phase: str  # of the rollout that runs; "": none does
    share: float  # of new requests that go to its version
    replicas: Mapping[str, ReplicaSeen]  # by id
    cores: int  # engine processes that live


class Ended(NamedTuple):
    """What the history says of a rollout."""

    phase: str
    why: str


class Eye:
    """Looks at one session."""

    def __init__(self, url: str, session_id: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=ANSWER_LIMIT_S, trust_env=False)
        self._session_id = session_id
        self.report: dict[str, Any] = {}  # the last that was answered
        self.status: dict[str, Any] = {}

    async def __aenter__(self) -> Eye:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def look(self) -> Sight | None:
        """None: the gateway, the router or the controller does not answer now."""
        try:
            told = await self._http.get("/moray/rollouts")
            status = await self._http.get("/moray/status?brief=true")
        except httpx.HTTPError:
            return None
        if told.status_code != httpx.codes.OK or status.status_code != httpx.codes.OK:
            return None
        self.report, self.status = told.json(), status.json()
        return sight(time.monotonic(), self.report, self.status, cores(self._session_id))

    def ended(self, rollout: str) -> Ended | None:
        """What became of the rollout with that id; None: it runs, or is not known."""
        return ended(self.report, rollout)


def cores(session_id: str) -> int:
    """Engine processes of a session that live."""
    return sum(is_core(process.pid) for process in members(session_id))


def is_core(pid: int) -> bool:
    """Whether that process is an engine core."""
    try:
        return CORE in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # gone
        return False


def sight(at_s: float, report: Mapping[str, Any], status: Mapping[str, Any], cores: int) -> Sight:
    """Of what the gateway answers to /moray/rollouts and /moray/status."""
    current = report.get("current") or {}
    phases = {one["id"]: one["phase"] for one in current.get("replicas", ())}
    replicas = {
        one["id"]: ReplicaSeen(one.get("version") or "", phases.get(one["id"]) or one["state"])
        for one in status["replicas"]
    }
    return Sight(at_s, current.get("phase", ""), float(current.get("share") or 0.0), replicas, cores)


def ended(report: Mapping[str, Any], rollout: str) -> Ended | None:
    for past in report.get("history", ()):
        if past["id"] == rollout:
            return Ended(past["phase"], past.get("why") or "")
    return None


# -- what a row of looks tells ----------------------------------------------------------------------------------------


def settled(sight: Sight, version: str, replicas: int) -> bool:
    """Whether that version and no other is served, by so many replicas, and nothing is being done."""
    return (
        not sight.phase
        and len(sight.replicas) == replicas
        and all(seen == ReplicaSeen(version, READY) for seen in sight.replicas.values())
    )


def extra_replicas(sights: Sequence[Sight], wanted: int) -> int:
    """Most replicas, or engine processes, beyond those that there were to be."""
    return max((max(len(sight.replicas), sight.cores) - wanted for sight in sights), default=0)


def canary_share(sights: Sequence[Sight]) -> float:
    """The largest share of new requests that the version was given while it was on trial."""
    return max((sight.share for sight in sights if sight.phase == "canary"), default=0.0)


def replica_seconds(sights: Sequence[Sight]) -> list[float]:
    """How long each change of a replica's version took: from when it stopped taking requests until it took them again.

    One that was put out of rotation and came back with the version that it had does not count.
    """
    found: list[float] = []
    taken: dict[str, tuple[float, str]] = {}  # replica -> since when it takes none, and its version until then
    last: dict[str, ReplicaSeen] = {}
    for sight in sights:
        for replica, seen in sight.replicas.items():
            before = last.get(replica)
            if seen.phase != READY and (before is None or before.phase == READY):
                taken[replica] = (sight.at_s, before.version if before else seen.version)
            elif seen.phase == READY and replica in taken:
                since_s, version = taken.pop(replica)
                if version != seen.version:
                    found.append(sight.at_s - since_s)
            last[replica] = seen
    return found

"""Which fault is made on what, and what is refused. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from ops.errors import UserError

READY = "ready"


class Fault(enum.StrEnum):
    """A fault to make. Its value is its command."""

    KILL_REPLICA = "kill-replica"  # SIGKILL to the engine core's process
    FREEZE_REPLICA = "freeze-replica"  # SIGSTOP to it
    SLOW_REPLICA = "slow-replica"  # SIGSTOP and SIGCONT in turns
    KILL_ROUTER = "kill-router"  # SIGKILL to the router actor's process


class DrillRefused(UserError):
    """This drill is not made; the message says why, and what would."""


def choose(status: Mapping[str, Any], wanted: str | None, even_the_last: bool) -> Mapping[str, Any]:
    """The replica to strike, as `/moray/status` has it: the one whose id begins so, or the busiest.

    Raises DrillRefused.
    """
    ready = [replica for replica in status["replicas"] if replica["state"] == READY]
    if not ready:
        known = len(status["replicas"])
        raise DrillRefused(
            "no replica is ready" + (f", all {known} are being drained" if known else "") + ": there is nothing to "
            "strike (`moray status` shows what there is)"
        )
    victim = _named(status["replicas"], wanted) if wanted is not None else max(ready, key=_busy)
    if victim["state"] != READY:
        raise DrillRefused(f"{victim['id']} is {victim['state']}: strike one that takes requests")
    if len(ready) == 1 and not even_the_last:
        raise DrillRefused(
            f"{victim['id']} is the only ready replica: without it requests wait, and are answered with 503 if none "
            "comes in time; --even-the-last strikes it all the same"
        )
    return victim


def _named(replicas: list[Mapping[str, Any]], wanted: str) -> Mapping[str, Any]:
    meant = [r for r in replicas if r["id"] == wanted] or [r for r in replicas if wanted and r["id"].startswith(wanted)]
    if len(meant) != 1:
        names = ", ".join(str(r["id"]) for r in meant or replicas)
        what = "is not one replica's beginning" if meant else "is no replica"
        raise DrillRefused(f"--replica {wanted!r} {what}; there are: {names}")
    return meant[0]


def _busy(replica: Mapping[str, Any]) -> tuple[int, int]:
    return replica["granted"], replica["running"]


def intention(fault: Fault, target: str, url: str, until: str, load: int) -> str:
    """What a drill is about to do, in some sentences; what the operator says yes to.

    `target`: whose process it is. `until`: when a stopped one goes on, as a sentence; "" for a kill.
    """
    does = {
        Fault.KILL_REPLICA: "kill (SIGKILL) the engine of",
        Fault.FREEZE_REPLICA: "stop (SIGSTOP) the engine of",
        Fault.SLOW_REPLICA: "stop and continue, in turns, the engine of",
        Fault.KILL_ROUTER: "kill (SIGKILL)",
    }[fault]
    beside = f"{load} streams of the drill's own run" if load else "No load of the drill's own runs"
    return f"On the cluster at {url} this is to {does} {target}. {until}{beside} beside."

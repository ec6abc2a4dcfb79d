"""`moray drain`: takes a replica out of service, or back into it, and follows how its streams end."""

from __future__ import annotations

import time
from collections.abc import Callable

from ops.gateway_calls import call
from ops.status import fetch

LOOK_EVERY_S = 0.5


def drain(url: str, replica: str, api_key: str | None, *, migrate: bool, undo: bool, force: bool) -> str:
    """Asks for it; returns the replica's whole id. Raises Refused."""
    asked = {"replica": replica, "migrate": migrate, "undo": undo, "force": force}
    return str(call("POST", url, "/moray/drain", api_key, dict, asked)["replica"])


def follow(url: str, replica: str, api_key: str | None, report: Callable[[int], None]) -> None:
    """Returns when nothing runs there any more; `report` is told how many requests do, whenever that has changed."""
    told = None
    while True:
        known = {one["id"]: one["granted"] for one in fetch(url, api_key)["replicas"]}
        left = known.get(replica, 0)  # gone is empty, too
        if left != told:
            report(left)
            told = left
        if not left:
            return
        time.sleep(LOOK_EVERY_S)

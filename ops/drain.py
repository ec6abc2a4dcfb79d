"""`moray drain`: takes a replica out of service, or back into it, and follows how its streams end."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from ops.errors import UserError
from ops.status import fetch

LOOK_EVERY_S = 0.5


class DrainFailed(UserError):
    """The session did not do it; the message says why."""


def drain(url: str, replica: str, api_key: str | None, *, migrate: bool, undo: bool, force: bool) -> str:
    """Asks for it; returns the replica's whole id. Raises DrainFailed."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    asked = {"replica": replica, "migrate": migrate, "undo": undo, "force": force}
    try:
        reply = httpx.post(f"{url}/moray/drain", json=asked, headers=headers, timeout=15.0, trust_env=False)
    except httpx.HTTPError as error:
        raise DrainFailed(f"{url} does not answer: {error}") from None
    if reply.is_success:
        return str(reply.json()["replica"])
    try:
        said = str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = f"{url}/moray/drain answered {reply.status_code}"
    hint = ": give an operator's key with --api-key or MORAY_API_KEY" if reply.status_code in (401, 403) else ""
    raise DrainFailed(said.rstrip(".") + hint)


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

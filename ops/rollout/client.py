"""What the `moray rollout` commands ask a running cluster's gateway."""

from __future__ import annotations

from typing import Any

from ops.gateway_calls import call

PATH = "/moray/rollouts"


class Client:
    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url
        self._api_key = api_key

    def report(self) -> dict[str, Any]:
        """As GET /moray/rollouts answers. Raises Refused."""
        return self._ask("GET", PATH)

    def audit(self, count: int) -> list[dict[str, Any]]:
        """The last entries of the audit log, the oldest first. Raises Refused."""
        entries: list[dict[str, Any]] = self._ask("GET", f"{PATH}/audit?count={count}")["entries"]
        return entries

    def start(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Returns the report, with the new rollout as `current`. Raises Refused."""
        return self._ask("POST", PATH, spec)

    def command(self, command: str) -> dict[str, Any]:
        """pause, resume, promote or abort. Raises Refused."""
        return self._ask("POST", f"{PATH}/current", {"command": command})

    def undo(self, gated: bool) -> dict[str, Any]:
        """Returns the report, with the new rollout as `current`. Raises Refused."""
        return self._ask("POST", f"{PATH}/undo", {"gated": gated})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return call(method, self._url, path, self._api_key, dict, body)

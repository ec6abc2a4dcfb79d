"""What the `moray rollout` commands ask a running cluster's gateway."""

from __future__ import annotations

from typing import Any

import httpx

from ops.errors import UserError

TIMEOUT_S = 15.0
PATH = "/moray/rollouts"


class RolloutRefused(UserError):
    """The cluster did not do it; the message says why, and the way out."""


class Away(RolloutRefused):
    """The gateway, or the controller behind it, does not answer just now."""


class Client:
    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def report(self) -> dict[str, Any]:
        """As GET /moray/rollouts answers. Raises RolloutRefused."""
        return self._ask("GET", PATH)

    def audit(self, count: int) -> list[dict[str, Any]]:
        """The last entries of the audit log, the oldest first. Raises RolloutRefused."""
        entries: list[dict[str, Any]] = self._ask("GET", f"{PATH}/audit?count={count}")["entries"]
        return entries

    def start(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Returns the report, with the new rollout as `current`. Raises RolloutRefused."""
        return self._ask("POST", PATH, spec)

    def command(self, command: str) -> dict[str, Any]:
        """pause, resume, promote or abort. Raises RolloutRefused."""
        return self._ask("POST", f"{PATH}/current", {"command": command})

    def undo(self, gated: bool) -> dict[str, Any]:
        """Returns the report, with the new rollout as `current`. Raises RolloutRefused."""
        return self._ask("POST", f"{PATH}/undo", {"gated": gated})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            reply = httpx.request(
                method,
                f"{self._url}{path}",
                json=body,
                headers=self._headers,
                timeout=TIMEOUT_S,
                trust_env=False,  # a proxy that the environment names has no business with the session
            )
        except httpx.HTTPError as error:
            raise Away(
                f"{self._url} does not answer ({error or type(error).__name__}); `moray status` tells why"
            ) from None
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if reply.is_success and isinstance(answer, dict):
            return answer
        said = _message(answer) or f"{self._url}{path} answered {reply.status_code}"
        if reply.status_code in (401, 403):
            said = f"{said.rstrip('.')}: give an operator's key with --api-key or MORAY_API_KEY"
        raise (Away if reply.status_code in (502, 503, 504) else RolloutRefused)(said)


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""

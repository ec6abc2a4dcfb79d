"""Calls to a gateway: with the key, through no proxy, and refusals in the gateway's own words."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx

from ops.errors import UserError

TIMEOUT_S = 15.0
Shape = TypeVar("Shape", dict[str, Any], list[Any])


class Refused(UserError):
    """The cluster did not do it; the message says why, and the way out."""


class Away(Refused):
    """The gateway, or what is behind it, does not answer just now."""


def authorization(api_key: str | None) -> dict[str, str]:
    """The headers that carry a key; none without one."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def call(
    method: str,
    url: str,
    path: str,
    api_key: str | None,
    shape: type[Shape],
    body: Any = None,
    timeout_s: float = TIMEOUT_S,
) -> Shape:
    """The JSON that the gateway answers; anything but a `shape` is no answer. Raises Refused."""
    try:
        reply = httpx.request(
            method,
            f"{url}{path}",
            json=body,
            headers=authorization(api_key),
            timeout=timeout_s,
            trust_env=False,  # a proxy that the environment names has no business with the session
        )
    except httpx.HTTPError as error:
        raise Away(f"{url} does not answer ({error or type(error).__name__}); `moray status` tells why") from None
    try:
        answer = reply.json()
    except ValueError:
        answer = None
    if reply.is_success and isinstance(answer, shape):
        return answer
    said = _message(answer) or f"{url}{path} answered {reply.status_code}"
    if reply.status_code in (401, 403):
        said = f"{said.rstrip('.')}: give an operator's key with --api-key or MORAY_API_KEY"
    raise (Away if reply.status_code in (502, 503, 504) else Refused)(said)


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""

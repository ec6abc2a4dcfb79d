"""What the API server says when it does not do what it was asked, as one typed tree of errors. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ops.errors import UserError

RETRIED = frozenset({429, 500, 502, 503, 504})


class ApiRefused(UserError):
    """The API server did not do it. `causes` are those of its Status object: reason, field, message."""

    def __init__(self, message: str, status: int = 0, causes: tuple[Mapping[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.causes = status, causes

    @property
    def passes(self) -> bool:
        """Asked again in a while, it may be done. A disruption budget's no is for who evicts to wait for, not us."""
        return self.status in RETRIED and not isinstance(self, DisruptionBudget)


class Unreachable(ApiRefused):
    """No answer, or half of one: what was asked for may have been done."""

    passes = True


class Forbidden(ApiRefused): ...


class Missing(ApiRefused): ...


class Conflict(ApiRefused):
    """The object is another one than the caller thinks, or a field is another manager's."""


class AlreadyExists(Conflict): ...


class Expired(ApiRefused):
    """A watch's resourceVersion is older than what the API server remembers: list again."""


class DisruptionBudget(ApiRefused):
    """An eviction would break a PodDisruptionBudget just now."""


def refusal(status: int, body: str, asked: str) -> ApiRefused:
    """Of an answer that is no success. `asked`: method and path."""
    told = _status_object(body)
    message = str(told.get("message") or body.strip()[:300] or "no reason given").rstrip(".")
    reason = str(told.get("reason") or "")
    details = told.get("details")
    listed = details.get("causes") if isinstance(details, dict) else None  # a proxy in between may say anything
    causes = tuple(
        {key: str(value) for key, value in one.items()}
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict)
    )
    kind: type[ApiRefused] = ApiRefused
    match status:
        case 401:
            message = (
                f"the API server does not know these credentials ({message}): log in again, or name another "
                "--kubeconfig or --context"
            )
        case 403:
            kind = Forbidden
            message = f"a permission is lacking: {message}; whoever administers the cluster can grant it by a Role"
        case 404:
            kind = Missing
        case 409:
            kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        case 410:
            kind = Expired
        case 429 if any(cause.get("reason") == "DisruptionBudget" for cause in causes):
            kind = DisruptionBudget
    if status not in (401, 403):
        message = f"the API server answered {status} to {asked}: {message}"
    return kind(message, status, causes)


def other_managers(conflict: ApiRefused) -> dict[str, list[str]]:
    """Of a server-side apply's conflict: the fields, by the manager that has them."""
    found: dict[str, list[str]] = {}
    for cause in conflict.causes:
        if cause.get("reason") == "FieldManagerConflict":
            named = re.search(r'conflict with "((?:[^"\\]|\\.)*)"', cause.get("message", ""))
            found.setdefault(named.group(1) if named else "another", []).append(cause.get("field", "?"))
    return found


def _status_object(body: str) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}

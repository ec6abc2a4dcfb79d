"""Who waits in the router's queue, summed up by tenant and priority for `/moray/status` and the console. Pure."""

from collections.abc import Iterable
from typing import Any

import msgspec

from cluster.batcher import WaitingView

ROWS = 50  # that are told one by one: tenants come from a file, but any number may stand in a request's priority


class _Row(msgspec.Struct):
    """Some that wait."""

    requests: int = 0
    prompt_tokens: int = 0
    since: float = float("inf")  # when the oldest came

    def add(self, requests: int, prompt_tokens: int, since: float) -> None:
        self.requests += requests
        self.prompt_tokens += prompt_tokens
        self.since = min(self.since, since)

    def told(self, now: float) -> dict[str, Any]:
        oldest_s = round(max(now - self.since, 0.0), 3) if self.requests else 0.0
        return {"requests": self.requests, "prompt_tokens": self.prompt_tokens, "oldest_s": oldest_s}


def queue_report(waiting: Iterable[WaitingView], now: float) -> dict[str, Any]:
    """`rows`: those of which most wait, by tenant and priority; `others`: the rest in sum, and of how many rows."""
    rows: dict[tuple[str, int], _Row] = {}
    for ticket, since in waiting:
        key = (ticket.tenant.name, ticket.priority)
        if (row := rows.get(key)) is None:
            row = rows[key] = _Row()
        row.add(1, ticket.prompt_tokens, since)
    ordered = sorted(rows.items(), key=lambda item: (-item[1].requests, item[0]))
    others = _Row()
    for _, row in ordered[ROWS:]:
        others.add(row.requests, row.prompt_tokens, row.since)
    return {
        "rows": [{"tenant": name, "priority": priority, **row.told(now)} for (name, priority), row in ordered[:ROWS]],
        "others": {"rows": len(ordered[ROWS:]), **others.told(now)},
    }

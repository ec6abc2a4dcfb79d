"""What a session holds when it is at rest, and what of it should not be there. Pure.

"At rest" is twice: before the disturbances, when every process has served every kind of request, and after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Descriptors that a process may hold more than its like did before. What leaks with requests leaks hundreds, what leaks
# with lost replicas or routers one for each. What comes and goes by itself are kept-alive connections of the proxy and
# Ray's gRPC channels, one to each process that it has just spoken to: in three minutes with 6 and 7 disturbances the
# settled levels did not move at all, unsettled ones by -7 to +1.
HANDLES_ALLOWED = 5
# Ray keeps spare workers for a while; how many is its own affair, and they hold nothing of ours.
SPARE = frozenset({"ray::IDLE"})


@dataclass(frozen=True)
class Levels:
    """What a session at rest holds."""

    handles: Mapping[str, int]  # role of a process -> open descriptors; the most where several have one role
    processes: Mapping[str, int]  # kind of process -> how many there are
    gateway_mib: float  # resident memory


def leaked_kv(status: Mapping[str, Any]) -> int:
    """Replicas that have requests or KV blocks in use although nobody asks for anything."""
    return sum(bool(r["running"] or r["waiting"] or r["kv_used_fraction"]) for r in status["replicas"])


def leaked_tickets(status: Mapping[str, Any]) -> int:
    """Requests that router or gateway still keep, and KV tokens' owners that the router still counts."""
    router, gateway = status["router"], status["gateway"]
    on_replicas = sum(bool(r["granted"] or r["kv_tokens_granted"]) for r in status["replicas"])
    return int(router["queued"] + router["granted"] + gateway["open_requests"] + on_replicas)


def is_quiet(status: Mapping[str, Any]) -> bool:
    return not leaked_kv(status) and not leaked_tickets(status)


def leaked_handles(before: Levels, after: Levels) -> dict[str, int]:
    """Role -> descriptors above the level before and the allowance."""
    over = {role: n - before.handles.get(role, 0) - HANDLES_ALLOWED for role, n in after.handles.items()}
    return {role: n for role, n in over.items() if n > 0}


def leaked_processes(before: Levels, after: Levels) -> dict[str, int]:
    """Kind -> processes more than before."""
    more = {kind: n - before.processes.get(kind, 0) for kind, n in after.processes.items() if kind not in SPARE}
    return {kind: n for kind, n in more.items() if n > 0}

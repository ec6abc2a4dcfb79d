"""Which replica an operator means, and whether it may be drained. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec


class DrainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator asks for."""

    replica: str  # its id, or a beginning that no other has
    migrate: bool = False  # take its streams elsewhere at once, instead of letting them end there
    undo: bool = False  # it shall be granted requests again
    force: bool = False  # even if nobody else is left to take requests


class DrainRefused(Exception):
    """What was asked for cannot be done; the message is one sentence for the operator."""


class Candidate(NamedTuple):
    replica_id: str
    draining: bool


def choose(asked: DrainRequest, replicas: Iterable[Candidate]) -> str:
    """The id of the replica that is meant. Raises DrainRefused."""
    known = sorted(replicas)
    meant = [c for c in known if c.replica_id == asked.replica] or [
        c for c in known if asked.replica and c.replica_id.startswith(asked.replica)
    ]
    if len(meant) != 1:
        names = ", ".join(c.replica_id for c in meant or known) or "none"
        what = "is not one replica's beginning" if meant else "is no replica"
        raise DrainRefused(f"{asked.replica!r} {what}; there are: {names}")
    [one] = meant
    others = [c for c in known if c is not one and not c.draining]
    if not (asked.undo or asked.force or others):
        raise DrainRefused(
            f"{one.replica_id} is the last replica that takes requests: without it they wait, and are answered with "
            "503 if none comes; --force drains it all the same"
        )
    return one.replica_id

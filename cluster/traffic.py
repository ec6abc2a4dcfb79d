"""Which model version a request goes to: a stable hash of its session against the versions' shares. Pure.

A session is a point in [0, 1). The shares are laid out from 0 on, the stable version's last: a canary whose share grows
keeps the sessions that it has, and takes further ones from the stable version. Whoever knows the shares finds the
same version for a session, router and gateway alike.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

POINTS = 1 << 63  # a session is one of so many


class Interval(NamedTuple):
    """The sessions from the end of the interval before up to `end`, which is not among them."""

    end: float  # in points; infinity for the last one
    version: str


def session_of(tenant: str, key: str) -> int:
    """The session's point: 63 bits, the same in each process and at all times. `key`: what its requests share."""
    digest = hashlib.blake2b(f"{tenant}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def laid_out(shares: Mapping[str, float], stable: str) -> tuple[Interval, ...]:
    """The versions' intervals, in the shares' order but for the stable one, which is the last. No share: no interval.

    Shares need not add up to 1: what counts is each one's part of their sum.
    """
    named = sorted((version == stable, at) for at, (version, share) in enumerate(shares.items()) if share > 0.0)
    versions = list(shares)
    whole = math.fsum(shares[versions[at]] for _, at in named)
    intervals: list[Interval] = []
    end = 0.0
    for _, at in named:
        end += shares[versions[at]]
        intervals.append(Interval(end / whole * POINTS, versions[at]))
    if intervals:
        intervals[-1] = Interval(math.inf, intervals[-1].version)
    return tuple(intervals)


def version_of(session: int, intervals: Sequence[Interval]) -> str | None:
    """Where a session's requests go; None: there is no interval."""
    return next((version for end, version in intervals if session < end), None)


def is_mirrored(session: int, share: float) -> bool:
    """Whether a copy of a session's requests runs on the mirror's version: from the far end, canaries last."""
    return session >= (1.0 - share) * POINTS

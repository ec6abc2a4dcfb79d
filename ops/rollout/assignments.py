"""What is to be served, as the engine writes it down: the very first assignment, and a rollout's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from ops.rollout.actions import Assign
from ops.rollout.state import Rollout
from replicas.assignment import Assignment


def first(
    there: Assignment | None, last: Rollout | None, version: str, directories: Mapping[str, str]
) -> Assignment | None:
    """What is served when the application starts. `directories`: of the store, by version.

    In this order: what this Ray cluster was told to serve before, for a redeployment undoes no rollout; what the last
    rollout that is remembered left behind (`alarms.state_path` outlives Ray); `version`, the settings' own. The first
    one that the store has counts. None: the model is no version.
    """
    if not version:
        return None
    if there is not None and there.stable in directories:
        known = {name: directories.get(name, before) for name, before in there.directories.items()}
        known[there.stable] = directories[there.stable]
        return there if known == there.directories else _next(there, directories=known)
    stable = last.stable if last is not None and last.stable in directories else version
    return Assignment(
        revision=there.revision + 1 if there is not None else 1,
        stable=stable,
        new_replica=stable,
        directories={stable: found} if (found := directories.get(stable)) else {},
    )


def following(
    before: Assignment | None, action: Assign, names: Iterable[str], directories: Mapping[str, str], extra: int
) -> Assignment:
    """As the rollout decided; `before` itself if that says the same. `names`: versions whose directories are needed."""
    had = before.directories if before is not None else {}
    wanted = Assignment(
        revision=before.revision if before is not None else 1,
        stable=action.stable,
        new_replica=action.new_replica,
        # One that is out of the store by now may be loaded all the same.
        directories={name: found for name in sorted(names) if (found := directories.get(name) or had.get(name))},
        traffic=action.traffic,
        mirror=action.mirror,
        extra=extra,
    )
    return wanted if before is None or wanted == before else _next(wanted)


def scaled(before: Assignment, extra: int) -> Assignment:
    """With so many replicas on top."""
    return before if before.extra == extra else _next(before, extra=extra)


def shares(assignment: Assignment | None) -> dict[str, float]:
    """Of new requests by version, where they are set; they add up to 1."""
    if assignment is None or not assignment.traffic:
        return {}
    total = sum(assignment.traffic.values())
    return {version: share / total for version, share in assignment.traffic.items()}


def _next(assignment: Assignment, **changes: object) -> Assignment:
    return msgspec.structs.replace(assignment, revision=assignment.revision + 1, **changes)

"""What GET /moray/rollouts answers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from cluster.vitals import ReplicaVitals, Vitals
from ops.rollout.kept import Kept, Past, past
from ops.rollout.state import Rollout

UNVERSIONED = (
    "The served model is no version, so there is nothing to roll: put its checkpoint into a store (`moray model add`) "
    "and serve it from there (settings model.store and model.version)."
)


def rollouts(
    kept: Kept, stable: str, shares: Mapping[str, float], vitals: Vitals | None, why: str, held: str
) -> dict[str, Any]:
    """`stable` "": the model is no version. `vitals` None: the router is away. `held`: why a wish is not followed.

    `current` is None if no rollout runs; the last one stands at the end of `history` then.
    """
    running, last = kept.running, kept.rollout
    ended = [*kept.past, *([past(last)] if last is not None and last.ended else [])]
    counts = Counter(replica.version for replica in vitals.replicas) if vitals is not None else Counter[str]()
    names = counts.keys() | shares.keys() | ({stable} if stable else set())
    return {
        "current": None if running is None else _current(running, shares, vitals, why),
        "history": [_past(one) for one in ended],
        "stable": stable,
        "versions": {name: {"replicas": counts[name], "share": shares.get(name)} for name in sorted(names)},
        "note": held or ("" if stable else UNVERSIONED),
        "watching": vitals is not None,
    }


def _current(rollout: Rollout, shares: Mapping[str, float], vitals: Vitals | None, why: str) -> dict[str, Any]:
    return {
        "id": rollout.id,
        "from": rollout.from_version,
        "to": rollout.to_version,
        "phase": str(rollout.phase),
        "step": rollout.step,
        "steps": list(rollout.spec.steps),
        "share": _share(rollout.to_version, shares, vitals),
        "paused": rollout.paused,
        "strategy": str(rollout.strategy),
        "since_s": rollout.since_s,
        "started_s": rollout.started_s,
        "why": why,
        "gates": [msgspec.to_builtins(gate) | {"answer": str(gate.answer.value)} for gate in rollout.gates],
        "replicas": [
            {"id": replica.replica_id, "version": replica.version, "phase": _phase(replica)}
            for replica in (vitals.replicas if vitals is not None else ())
        ],
        "started_by": rollout.by,
        "events": [
            {"at_s": note.at_s, "what": note.what, "detail": note.detail, "by": note.by} for note in rollout.notes
        ],
    }


def _share(version: str, shares: Mapping[str, float], vitals: Vitals | None) -> float:
    """Of new requests. Where no shares are set they follow the replicas."""
    if shares:
        return shares.get(version, 0.0)
    taking = [r for r in vitals.replicas if not (r.draining or r.swapping)] if vitals is not None else []
    return sum(replica.version == version for replica in taking) / len(taking) if taking else 0.0


def _phase(replica: ReplicaVitals) -> str:
    if replica.swapping and replica.swap is not None:
        return replica.swap.phase
    return "draining" if replica.draining else "ready"


def _past(one: Past) -> dict[str, Any]:
    return {
        "id": one.id,
        "from": one.from_version,
        "to": one.to_version,
        "phase": str(one.phase),
        "strategy": one.strategy,
        "why": one.why,
        "started_by": one.started_by,
        "started_s": one.started_s,
        "ended_s": one.ended_s,
    }

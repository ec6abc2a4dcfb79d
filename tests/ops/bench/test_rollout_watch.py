"""What is concluded from looks at a rollout."""

from __future__ import annotations

from typing import Any

import pytest

from ops.bench.rollout_watch import (
    ReplicaSeen,
    Sight,
    canary_share,
    ended,
    extra_replicas,
    replica_seconds,
    settled,
    sight,
)


def seen(at_s: float, *replicas: tuple[str, str], phase: str = "canary", share: float = 0.0, cores: int = 2) -> Sight:
    named = {f"r{n}": ReplicaSeen(*one) for n, one in enumerate(replicas)}
    return Sight(at_s, phase, share, named, cores)


OLD, NEW = ("v1", "ready"), ("v2", "ready")
ROLLED = [
    seen(0, OLD, OLD, phase="pending"),
    seen(1, ("v1", "finishing"), OLD),
    seen(3, ("v1", "loading"), OLD, share=0.0),
    seen(5, NEW, OLD, share=0.1),
    seen(6, NEW, ("v1", "finishing"), phase="promoting", share=1.0),
    seen(7, NEW, ("v2", "probing"), phase="promoting", share=1.0),
    seen(9, NEW, NEW, phase=""),
]


def test_each_replica_is_timed_from_its_last_grant_to_its_first() -> None:
    assert replica_seconds(ROLLED) == [4, 3]
    back = [seen(0, OLD), seen(1, ("v1", "verifying")), seen(2, OLD)]  # refused before it loaded anything
    assert replica_seconds(back) == [] and replica_seconds([]) == []


def test_the_share_is_that_of_the_canary() -> None:
    assert canary_share(ROLLED) == 0.1 and canary_share([]) == 0.0


def test_extra_replicas_are_found_among_replicas_and_processes() -> None:
    assert extra_replicas(ROLLED, 2) == 0
    assert extra_replicas([*ROLLED, seen(10, NEW, NEW, OLD)], 2) == 1
    assert extra_replicas([*ROLLED, seen(10, NEW, NEW, cores=4)], 2) == 2  # two load, and have not joined


@pytest.mark.parametrize(
    ("last", "answer"),
    [
        (seen(1, NEW, NEW, phase=""), True),
        (seen(1, NEW, NEW, phase="promoting"), False),
        (seen(1, NEW, OLD, phase=""), False),
        (seen(1, NEW, ("v2", "draining"), phase=""), False),
        (seen(1, NEW, phase=""), False),
        (seen(1, NEW, NEW, NEW, phase=""), False),
    ],
)
def test_settled(last: Sight, answer: bool) -> None:
    assert settled(last, "v2", 2) is answer


def test_a_look_puts_the_answers_together() -> None:
    status: dict[str, Any] = {
        "replicas": [{"id": "a", "state": "ready", "version": "v2"}, {"id": "b", "state": "ready", "version": "v1"}]
    }
    current = {"phase": "canary", "share": 0.1, "replicas": [{"id": "b", "version": "v1", "phase": "loading"}]}
    both = {"a": ReplicaSeen("v2", "ready"), "b": ReplicaSeen("v1", "loading")}
    assert sight(5.0, {"current": current}, status, 2) == Sight(5.0, "canary", 0.1, both, 2)
    assert sight(5.0, {"current": None}, {"replicas": []}, 0) == Sight(5.0, "", 0.0, {}, 0)


def test_the_history_tells_how_it_ended() -> None:
    report = {"history": [{"id": "r1", "phase": "done", "why": ""}, {"id": "r2", "phase": "rolled-back", "why": "x"}]}
    assert ended(report, "r2") == ("rolled-back", "x") and ended(report, "r3") is None and ended({}, "r1") is None

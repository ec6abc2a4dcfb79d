"""What is kept of rollouts that ended."""

from __future__ import annotations

import msgspec

from ops.rollout.kept import past
from ops.rollout.spec import RolloutSpec
from ops.rollout.state import Phase, started


def test_the_history_says_why_it_went_back_not_that_it_is_back() -> None:
    rollout = started("r1", RolloutSpec(version="v2"), "v1", 1.0)
    done = rollout.with_note(2.0, "promoting", "all gates say yes").with_note(3.0, "done", "2 replicas serve v2")
    assert past(msgspec.structs.replace(done, phase=Phase.DONE)).why == "2 replicas serve v2"
    back = rollout.with_note(2.0, "rolling-back", "errors: 40%").with_note(3.0, "rolled-back", "2 replicas serve v1")
    assert past(msgspec.structs.replace(back, phase=Phase.ROLLED_BACK)).why == "errors: 40%"
    early = rollout.with_note(2.0, "rolled-back", "no replica had been touched")
    assert past(msgspec.structs.replace(early, phase=Phase.ROLLED_BACK)).why == "no replica had been touched"


def test_a_replica_that_came_late_is_not_why_it_ended() -> None:
    rollout = started("r1", RolloutSpec(version="v2"), "v1", 1.0).with_note(3.0, "done", "2 replicas serve v2")
    late = rollout.with_note(9.0, "swap", "c to v2").with_note(10.0, "swapped", "c serves v2: in 1 s")
    assert past(msgspec.structs.replace(late, phase=Phase.DONE)).why == "2 replicas serve v2"

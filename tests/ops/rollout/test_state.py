"""What a rollout is asked for, and how it is kept."""

import msgspec
import pytest

from ops.rollout.spec import Gates, RolloutSpec
from ops.rollout.state import KEPT_NOTES, Phase, Rollout, started


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"version": ""}, "name the version"),
        ({"steps": ()}, "1 to 20"),
        ({"steps": (0.5, 0.1)}, "grow"),
        ({"steps": (0.1, 0.1)}, "grow"),
        ({"steps": (1.0,)}, "below 1"),
        ({"steps": (0.0, 0.5)}, "nothing is mirrored"),
        ({"mirror": 1.5}, "mirror"),
        ({"deadline_s": 30.0}, "cannot end"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"min_samples": 5}, "tell nothing"),
        ({"attempts": 0}, "1 or more"),
        ({"gates": Gates(ttft_ratio=1.0)}, "ttft_ratio"),
        ({"gates": Gates(errors=0.0)}, "errors"),
    ],
)
def test_a_spec_that_cannot_be_one_says_why(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RolloutSpec(**{"version": "v2", **wrong})  # type: ignore[arg-type]


def test_a_spec_from_json_refuses_what_it_does_not_know() -> None:
    asked = b'{"version": "v2", "steps": [0.2], "strategy": "surge", "gates": {"errors": 0.1}}'
    spec = msgspec.json.decode(asked, type=RolloutSpec)
    assert (spec.steps, spec.strategy, spec.gates.errors) == ((0.2,), "surge", 0.1)
    for unknown in (b'{"version": "v2", "step": [0.2]}', b'{"version": "v2", "gates": {"ttft": 1}}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(unknown, type=RolloutSpec)
    with pytest.raises(msgspec.ValidationError, match="grow"):
        msgspec.json.decode(b'{"version": "v2", "steps": [0.5, 0.2]}', type=RolloutSpec)


def test_a_rollout_is_stored_and_read_as_it_is() -> None:
    rollout = started("r1", RolloutSpec(version="v2"), "v1", 5.0, "ann")
    for number in range(KEPT_NOTES + 5):
        rollout = rollout.with_note(6.0, "step", f"{number}")
    assert msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout) == rollout
    assert len(rollout.notes) == KEPT_NOTES and rollout.notes[-1].number == rollout.noted - 1
    assert (rollout.phase, rollout.stable, rollout.to_version) == (Phase.PENDING, "v1", "v2")


def test_nothing_to_roll_out_is_said() -> None:
    with pytest.raises(ValueError, match="already"):
        started("r1", RolloutSpec(version="v1"), "v1", 0.0)
    with pytest.raises(ValueError, match=r"model\.store"):
        started("r1", RolloutSpec(version="v1"), "", 0.0)

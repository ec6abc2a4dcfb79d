"""What operators can say, in each phase."""

import pytest
from msgspec.structs import replace

from ops.rollout.commands import Command, Refused, commanded
from ops.rollout.spec import RolloutSpec
from ops.rollout.state import ENDED, Phase, Wish, started

ROLLOUT = started("x", RolloutSpec(version="v2"), "v1", 100.0, "ann")
RUNNING = [Phase.PENDING, Phase.VERIFYING, Phase.CANARY]


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("phase", ENDED)
def test_what_has_ended_takes_no_command_and_says_the_way_out(phase: Phase, command: Command) -> None:
    with pytest.raises(Refused, match="undo" if phase is Phase.DONE else "start a new one"):
        commanded(replace(ROLLOUT, phase=phase), command, 200.0)


@pytest.mark.parametrize("command", [Command.PAUSE, Command.RESUME, Command.PROMOTE])
def test_what_goes_back_goes_back(command: Command) -> None:
    for rollout in (replace(ROLLOUT, phase=Phase.ROLLING_BACK), replace(ROLLOUT, wish=Wish.ABORT)):
        with pytest.raises(Refused, match="going back to v1"):
            commanded(rollout, command, 200.0)
        assert commanded(rollout, Command.ABORT, 200.0) == rollout


@pytest.mark.parametrize("phase", [*RUNNING, Phase.PROMOTING])
def test_twice_is_as_once(phase: Phase) -> None:
    for command in Command:
        once = commanded(replace(ROLLOUT, phase=phase), command, 200.0, "bob")
        assert commanded(once, command, 300.0, "bob") == once


@pytest.mark.parametrize("phase", RUNNING)
def test_a_pause_stops_the_clock(phase: Phase) -> None:
    paused = commanded(replace(ROLLOUT, phase=phase), Command.PAUSE, 200.0, "bob")
    assert paused.paused and paused.notes[-1].by == "bob"
    resumed = commanded(paused, Command.RESUME, 500.0, "bob")
    assert not resumed.paused and resumed.since_s == ROLLOUT.since_s + 300.0


def test_promote_ends_a_pause_and_is_noted_once() -> None:
    paused = commanded(replace(ROLLOUT, phase=Phase.CANARY), Command.PAUSE, 200.0)
    promoted = commanded(paused, Command.PROMOTE, 300.0, "bob")
    assert promoted.wish is Wish.PROMOTE and not promoted.paused
    assert [note.what for note in promoted.notes] == ["started", "paused", "resumed", "promote"]
    assert commanded(replace(paused, phase=Phase.PROMOTING), Command.PROMOTE, 300.0).paused is False


def test_abort_is_heard_in_a_pause() -> None:
    paused = commanded(replace(ROLLOUT, phase=Phase.PROMOTING), Command.PAUSE, 200.0)
    assert commanded(paused, Command.ABORT, 300.0).wish is Wish.ABORT

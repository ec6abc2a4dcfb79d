"""What operators say to a rollout that runs, in each of its phases. Pure; store the answer, then `decide`."""

import enum

import msgspec

from ops.rollout.state import ENDED, Phase, Rollout, Wish


class Command(enum.StrEnum):
    PAUSE = "pause"  # begin nothing new; what speaks against the new version still rolls it back
    RESUME = "resume"
    PROMOTE = "promote"  # without waiting for gates; files and probes still have to pass
    ABORT = "abort"  # back to the old version


class Refused(Exception):
    """The command cannot be followed now; a sentence with the way out."""


def commanded(rollout: Rollout, command: Command, now_s: float, by: str = "") -> Rollout:
    """The rollout with that command. Twice is as once: what is so already stays as it is. Refused: it cannot be."""
    name = f"Rollout {rollout.id} to {rollout.to_version}"
    if rollout.phase in ENDED:
        way_out = {Phase.DONE: "`moray rollout undo` goes back"}.get(rollout.phase, "start a new one")
        raise Refused(f"{name} has ended ({rollout.phase}): {way_out}.")
    if command is Command.ABORT:
        if rollout.phase is Phase.ROLLING_BACK or rollout.wish is Wish.ABORT:
            return rollout
        return msgspec.structs.replace(rollout, wish=Wish.ABORT).with_note(now_s, "abort", "asked for", by)
    if rollout.phase is Phase.ROLLING_BACK or rollout.wish is Wish.ABORT:
        raise Refused(f"{name} is going back to {rollout.from_version}; wait for it, then start a new one.")
    if command is Command.PAUSE:
        if rollout.paused:
            return rollout
        return msgspec.structs.replace(rollout, paused_s=now_s).with_note(now_s, "paused", "nothing new begins", by)
    if command is Command.RESUME:
        return _resumed(rollout, now_s, by)
    if rollout.phase is Phase.PROMOTING or rollout.wish is Wish.PROMOTE:
        return _resumed(rollout, now_s, by)
    rollout = msgspec.structs.replace(_resumed(rollout, now_s, by), wish=Wish.PROMOTE)
    return rollout.with_note(now_s, "promote", "without waiting for gates", by)


def _resumed(rollout: Rollout, now_s: float, by: str) -> Rollout:
    """Its deadline goes on where it stood. What was watched, and a turn, went on meanwhile, and so did their clocks."""
    if rollout.paused_s is None:
        return rollout
    since_s = rollout.since_s + now_s - rollout.paused_s
    return msgspec.structs.replace(rollout, paused_s=None, since_s=since_s).with_note(
        now_s, "resumed", "it goes on", by
    )

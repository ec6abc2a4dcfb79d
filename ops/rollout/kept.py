"""What of rollouts outlives the controller: stored as one value before whatever it leads to is done. Pure."""

from __future__ import annotations

import msgspec

from ops.rollout.state import Phase, Rollout

KEPT_PAST = 100


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout that ended."""

    id: str
    from_version: str
    to_version: str
    phase: Phase
    strategy: str
    why: str
    started_by: str
    started_s: float
    ended_s: float | None


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    rollout: Rollout | None = None  # that runs, or the last one
    past: tuple[Past, ...] = ()  # those before it, the oldest first
    rollouts: int = 0  # so many in all; makes ids
    wanted: str = ""  # the last user_config, as JSON, that was acted upon, or refused
    served: bool = False  # a request was granted here: who asks for another version by then wants a rollout
    checksums: dict[str, str] = {}  # version -> digest of its loaded weights, as the first replica had it
    deployment: str = ""  # "application#deployment" of the replicas, as Ray Serve names it; "": none was seen yet
    extra: int = 0  # replicas on top, as the last `Scale` that was done said
    base: int | None = None  # replicas that Serve kept before it, stored before it is done; None: none are on top

    @property
    def running(self) -> Rollout | None:
        return None if self.rollout is None or self.rollout.ended else self.rollout

    @property
    def last_done(self) -> Past | None:
        ended = [*self.past, *([past(self.rollout)] if self.rollout is not None and self.rollout.ended else [])]
        return next((one for one in reversed(ended) if one.phase is Phase.DONE), None)

    def begin(self, rollout: Rollout) -> Kept:
        """With that rollout instead of the last one, which has ended."""
        before = (*self.past, past(self.rollout)) if self.rollout is not None else self.past
        return msgspec.structs.replace(
            self,
            rollout=rollout,
            past=before[-KEPT_PAST:],
            rollouts=self.rollouts + 1,
            checksums={},  # a version that was added anew, or another layout of the shards, has others
        )

    def without_rollout(self, now_s: float) -> Kept:
        """The application is deployed with another store, or none: what the last rollout served is there no more."""
        last = self.rollout
        if last is None:
            return self
        if not last.ended:
            last = msgspec.structs.replace(last, phase=Phase.FAILED, ended_s=now_s)
            last = last.with_note(now_s, Phase.FAILED, f"{last.from_version} is in the store no more")
        kept = (*self.past, past(last))[-KEPT_PAST:]
        return msgspec.structs.replace(self, rollout=None, past=kept, extra=0, base=None)


def past(rollout: Rollout) -> Past:
    """Of one that has ended. Why it went back stands where that began; after its end, replicas that came late do."""
    why = {note.what: note.detail for note in rollout.notes}
    return Past(
        id=rollout.id,
        from_version=rollout.from_version,
        to_version=rollout.to_version,
        phase=rollout.phase,
        strategy=str(rollout.strategy),
        why=why.get(Phase.ROLLING_BACK) or why.get(rollout.phase, ""),
        started_by=rollout.by,
        started_s=rollout.started_s,
        ended_s=rollout.ended_s,
    )

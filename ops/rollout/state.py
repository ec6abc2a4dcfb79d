"""A rollout as it is stored before each action. Frozen values: what is decided is a new one. Times: seconds (UTC)."""

import enum

import msgspec

from ops.anomaly.alarms import Answer
from ops.rollout.samples import Samples
from ops.rollout.spec import RolloutSpec, Strategy

KEPT_NOTES = 200


class Phase(enum.StrEnum):
    PENDING = "pending"  # asked for
    VERIFYING = "verifying"  # its files are being read; no replica is touched
    CANARY = "canary"  # some replicas serve it, with the share of `step`
    PROMOTING = "promoting"  # it is good: all replicas get it
    DONE = "done"
    ROLLING_BACK = "rolling-back"  # it is not, or somebody wants it back: all replicas get the old one
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"  # refused before any replica was touched


ENDED = (Phase.DONE, Phase.ROLLED_BACK, Phase.FAILED)


class Wish(enum.StrEnum):
    """What an operator wants of a rollout that runs."""

    NONE = ""
    PROMOTE = "promote"  # without waiting for gates; probes still have to pass
    ABORT = "abort"


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one gate said at its last look."""

    name: str  # "ttft", "tpot", "length", "errors", "unfinished" or "golden"
    answer: Answer  # YES: it is surely good enough; NO: it is surely not; UNKNOWN: not enough data for either
    detail: str  # a sentence with the figures
    n_stable: int = 0  # requests that it is said from
    n_canary: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The one replica that is being given another version."""

    id: str  # of the swap command
    replica_id: str
    version: str  # that it is to get
    began_s: float
    restart: bool = False  # by a new process instead of a swap


class Looks(msgspec.Struct, frozen=True, kw_only=True):
    """When the gates were looked at in this step: each look could be wrong by chance, so that there are few."""

    count: int = 0
    window_s: float = -1.0  # `Samples.since_s` of the last look: a new controller collects anew
    samples: int = 0  # of the version that had fewer, at the last look


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was decided; `number` counts up without gaps, so that whoever tells them tells each once."""

    number: int
    at_s: float
    what: str  # "started", "verified", "step", "swap", "gates", "paused", "rolling-back", …
    detail: str  # a sentence
    by: str = ""  # the operator who asked for it; "": decided from what was seen


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """From one version to another. `stable` and `target` say what is to be served."""

    id: str
    spec: RolloutSpec
    from_version: str
    started_s: float
    by: str = ""  # who asked for it
    phase: Phase = Phase.PENDING
    strategy: Strategy = Strategy.AUTO  # in-place or surge, from the end of verifying on
    same_architecture: bool = True  # False: a replica gets the other version by a restart, not by a swap
    golden: int = 0  # golden prompts that the version brings
    since_s: float = 0.0  # when the phase or step began, or a replica was through; time in a pause is added
    step: int = 0  # of spec.steps
    paused_s: float | None = None  # when it was paused; None: it goes on
    wish: Wish = Wish.NONE
    turn: Turn | None = None
    turns: int = 0  # begun so far; makes swaps' ids
    lost: int = 0  # turns to the new version whose replica was lost
    proven: bool = False  # the new version loaded and its probes passed on a replica: only then it gets traffic
    watch_s: float | None = None  # requests that began after it count for the step's gates; None: none do
    looks: Looks = Looks()
    gates: tuple[GateResult, ...] = ()
    baseline: Samples | None = None  # of the old version, from when it last was beside the new one, or alone
    ended_s: float | None = None
    notes: tuple[Note, ...] = ()  # the last of them
    noted: int = 0  # so many in all

    @property
    def to_version(self) -> str:
        return self.spec.version

    @property
    def paused(self) -> bool:
        return self.paused_s is not None

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def stable(self) -> str:
        """The version that is served outside of it: the old one until it is done."""
        return self.to_version if self.phase is Phase.DONE else self.from_version

    def with_note(self, at_s: float, what: str, detail: str, by: str = "") -> "Rollout":
        note = Note(number=self.noted, at_s=at_s, what=what, detail=detail, by=by)
        return msgspec.structs.replace(self, notes=(*self.notes, note)[-KEPT_NOTES:], noted=self.noted + 1)


def started(id: str, spec: RolloutSpec, from_version: str, now_s: float, by: str = "") -> Rollout:
    """A new rollout, nothing of it done. ValueError, a sentence: there is nothing to roll out."""
    if spec.version == from_version:
        raise ValueError(f"{spec.version} is what is served already: there is nothing to roll out")
    if not from_version:
        raise ValueError("The served model has no version: set model.store and model.version, and serve it from there")
    rollout = Rollout(id=id, spec=spec, from_version=from_version, started_s=now_s, since_s=now_s, by=by)
    return rollout.with_note(now_s, "started", f"from {from_version} to {spec.version}", by)

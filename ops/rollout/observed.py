"""What a rollout is decided from: how things are now, whoever made them so. Times: seconds of one clock (UTC).

Nothing in here is remembered from an action: a controller that was killed after an action sees what came of it.
"""

import msgspec

from ops.rollout.samples import Samples
from replicas.assignment import Assignment
from replicas.messages import SwapReport


class ReplicaSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A replica in the router's roster."""

    replica_id: str  # a restarted one has another
    version: str  # of the weights that it has; during a swap, of those that it had
    draining: bool = False  # by an operator, by healing, or for this rollout's restart: it is granted nothing
    swap: SwapReport | None = None  # of the command that it has, or of the last one as long as it is told
    running: int = 0  # requests that it has and that did not end

    @property
    def swapping(self) -> bool:
        return self.swap is not None and not self.swap.ended

    @property
    def taking(self) -> bool:
        """It is granted requests."""
        return not (self.draining or self.swapping)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What came of `Verify`."""

    version: str
    problems: tuple[str, ...] = ()  # why it cannot be rolled out, a sentence each: files, tokenizer, surge impossible
    same_architecture: bool = True  # False: its tensors do not fit where those of the version before are
    golden: int = 0  # golden prompts of its manifest


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    now_s: float
    replicas: tuple[ReplicaSeen, ...] | None  # None: the router does not answer, so that nothing is known
    wanted: int = 0  # replicas that are to be there, without `extra`; 0: not known
    extra: int = 0  # replicas on top, as the last `Scale` that was done said
    assignment: Assignment | None = None  # as it is stored; None: nothing is
    in_effect: bool = False  # the router acts by it
    check: Check | None = None  # None: not asked for since this controller started, or not done yet
    samples: dict[str, Samples] = {}  # by version: requests that began after `Rollout.watch_s`; {}: none collected
    turn_lives: bool | None = None  # Ray has the process of `Rollout.turn`'s replica; None: not known
    load_failure: str = ""  # why a starting replica could not load the version that it was to load, if that is known
    healing: str = ""  # the replica that healing has in hand (ops/controller/healing.py); "": none
    refused: str = ""  # why the last action was refused, a sentence; "": it was not

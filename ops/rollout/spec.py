"""What a rollout is asked to do: which version, in which steps, and what would speak against it."""

import enum
import math

import msgspec

from cluster.rollout_settings import Rollout

MAX_STEPS = 20

_USUAL = Rollout()  # what counts where nobody says otherwise


class Strategy(enum.StrEnum):
    AUTO = "auto"  # in place, unless the architecture differs
    IN_PLACE = "in-place"  # one replica at a time loads the new weights where the old ones were: no extra GPU
    SURGE = "surge"  # new replicas first


class Gates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By how much the new version may be worse than the stable one over the same time (ops/rollout/gates.py).

    A gate says no where the difference is larger than that and not chance, yes where it is surely smaller.
    """

    ttft_ratio: float = _USUAL.ttft_ratio  # times the stable version's time to the first token
    tpot_ratio: float = _USUAL.tpot_ratio  # times its time per token
    length_ratio: float = _USUAL.length_ratio  # times its answers' length, or one over that
    errors: float = _USUAL.errors  # failed requests, as a share of all, above its own
    # times its requests in flight, for each that ended: answers that find no end
    unfinished_ratio: float = _USUAL.unfinished_ratio
    golden_exact: float = _USUAL.golden_exact  # share of the golden prompts' answers that have to be exact
    # mean |difference| of log-probabilities (nats) of golden prompts that have them
    golden_distance: float = _USUAL.golden_distance
    # chance, over all gates, steps and looks, that a version just like it is rolled back
    false_rollback: float = _USUAL.false_rollback


class RolloutSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rollout as it is asked for. ValueError, a sentence: it cannot be one."""

    version: str  # of the store
    strategy: Strategy = Strategy(_USUAL.strategy)
    # Shares of the traffic that the new version gets one after the other, each watched until its gates say yes. It
    # gets no more than its part of the replicas, or it would look slow for being overloaded.
    steps: tuple[float, ...] = _USUAL.steps
    # share of the requests of which a copy runs on the new version too, unseen by clients
    mirror: float = _USUAL.mirror
    gates: Gates = Gates()
    min_samples: int = _USUAL.min_samples  # requests of each version that a step needs before its gates may say yes
    step_s: float = _USUAL.step_s  # seconds that a step is watched at least
    # seconds after a change of shares whose requests do not count: caches begin empty
    settle_s: float = _USUAL.settle_s
    deadline_s: float = _USUAL.deadline_s  # seconds that a step may take; without a yes by then all goes back
    finish_s: float = _USUAL.finish_s  # seconds that running requests have to end in before their replica is swapped
    swap_timeout_s: float = _USUAL.swap_timeout_s  # seconds that a replica has to load, on top of that
    attempts: int = _USUAL.attempts  # swaps to the new version in which a replica may be lost
    surge: int = _USUAL.surge  # extra replicas of the surge strategy

    def __post_init__(self) -> None:
        if why := self._why_not():
            raise ValueError(why)

    def _why_not(self) -> str:
        if not self.version:
            return "version: name the version to roll out"
        if not 1 <= len(self.steps) <= MAX_STEPS:
            return f"steps: {len(self.steps)} shares; write 1 to {MAX_STEPS}"
        if any(not 0.0 <= share < 1.0 for share in self.steps) or list(self.steps) != sorted(set(self.steps)):
            return f"steps: {list(self.steps)}; write shares from 0 to below 1 that grow, as 0.1, 0.5"
        if not 0.0 <= self.mirror <= 1.0:
            return f"mirror: {self.mirror}; write a share from 0 to 1"
        if self.steps[0] == 0.0 and self.mirror == 0.0:
            return "steps: the first share is 0 and nothing is mirrored, so that there would be nothing to watch"
        for name in ("step_s", "settle_s", "deadline_s", "finish_s", "swap_timeout_s"):
            value = getattr(self, name)
            if not (0.0 <= value < math.inf) or (value == 0.0 and name in ("deadline_s", "swap_timeout_s")):
                return f"{name}: {value}; write seconds"
        if self.deadline_s <= self.step_s + self.settle_s:
            return f"deadline_s: {self.deadline_s:g} s, in which a step of {self.step_s + self.settle_s:g} s cannot end"
        if self.min_samples < 20:
            return f"min_samples: {self.min_samples}; write 20 or more: fewer tell nothing"
        if self.attempts < 1 or self.surge < 1:
            return "attempts and surge are 1 or more"
        gates = self.gates
        for name in ("ttft_ratio", "tpot_ratio", "length_ratio", "unfinished_ratio"):
            if not 1.0 < getattr(gates, name) < math.inf:
                return f"gates.{name}: {getattr(gates, name)}; write a number above 1, as 1.25"
        if not 0.0 < gates.errors < 1.0 or not 0.0 < gates.false_rollback < 1.0 or not 0.0 <= gates.golden_exact <= 1.0:
            return "gates.errors and gates.false_rollback are between 0 and 1, gates.golden_exact from 0 to 1"
        if not gates.golden_distance >= 0.0:
            return f"gates.golden_distance: {gates.golden_distance}; write 0 or more"
        return ""

"""What a step costs on this cluster's replicas at any batch, learned from their load reports over a long time. Pure.

The batcher's `step_fit` is a tangent where a replica works now. How many requests a replica could carry is far from
there: of a mixture of experts a few requests touch few experts, each further one fewer new ones, so the tangent of a
small batch makes a full one look several times dearer than it is. The shape is known, what it costs is learned:

    step_s = base + prefill * prompt tokens + decode * decoding requests + experts * (1 - (1 - k/E)^tokens)

Least squares without negative costs, over all replicas together: the mean of unlike ones.
"""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np

from replicas.messages import Work

REMEMBERED_STEPS = 100_000.0  # of each replica: half an hour of work at 20 ms
LEAST_STEPS = 200.0  # with fewer nothing is known
# Pull to nothing, as a share of the data's weight. Where a few requests are all that was seen, what they touch and what
# each costs cannot be told apart: then it was the experts, which more requests share.
RIDGE = np.array([1e-9, 1e-6, 1e-3, 1e-6])


def touched_share(share: float, tokens: float) -> float:
    """Of the experts, what so many tokens use together, of which each uses `share`."""
    return 1.0 - math.pow(1.0 - share, tokens)


class Costs(NamedTuple):
    """Seconds of a step."""

    base_s: float
    prefill_s: float  # each prompt token
    decode_s: float  # each decoding request
    experts_s: float  # all experts
    share: float  # of them that one token touches; 0: not known, or a dense model

    def step_s(self, prefill_tokens: float, decoding: float) -> float:
        touched = touched_share(self.share, prefill_tokens + decoding)
        return self.base_s + self.prefill_s * prefill_tokens + self.decode_s * decoding + self.experts_s * touched


class PaceFit:
    """The costs of a step. All replicas serve the same model."""

    def __init__(self) -> None:
        self.share = 0.0  # as in `Costs`
        self.chunk = 2048  # prompt tokens in one step at most
        self._last: dict[str, Work] = {}  # replica id -> as it reported last
        self._xx = np.zeros((4, 4))
        self._xy = np.zeros(4)

    @property
    def steps(self) -> float:
        """That it goes by."""
        return float(self._xx[0, 0])

    def learn(self, replica_id: str, work: Work) -> None:
        """Takes the cumulative counters of a report; a replica's first one only tells where they stand."""
        last, self._last[replica_id] = self._last.get(replica_id), work
        if last is None:
            return
        steps = work.steps - last.steps
        prefill = work.prefill_tokens - last.prefill_tokens
        decoding = work.decode_tokens - last.decode_tokens
        step_s = work.step_s - last.step_s
        if steps <= 0 or min(prefill, decoding, step_s) < 0:  # nothing was done, or the core is another one
            return
        x = np.array([1.0, prefill / steps, decoding / steps, self._touched(steps, prefill, decoding)])
        self._xx += steps * np.outer(x, x)
        self._xy += step_s * x
        most = REMEMBERED_STEPS * len(self._last)
        if self.steps > most:
            self._xy *= most / self.steps
            self._xx *= most / self.steps

    def _touched(self, steps: int, prefill: int, decoding: int) -> float:
        """Mean share of the experts that a step used. Prompts are in few of a report's steps, in which they use all."""
        alone = touched_share(self.share, decoding / steps)
        if not prefill:
            return alone
        with_prompts = min(-(-prefill // self.chunk), steps)
        full = touched_share(self.share, decoding / steps + prefill / with_prompts)
        return (with_prompts * full + (steps - with_prompts) * alone) / steps

    def forget(self, replica_id: str) -> None:
        """It has left; what was learned of it stays."""
        self._last.pop(replica_id, None)

    def costs(self) -> Costs | None:
        """None: too little is known."""
        if self.steps < LEAST_STEPS:
            return None
        scale = np.sqrt(np.maximum(np.diag(self._xx) / self.steps, 1e-30))
        gram = self._xx / self.steps / np.outer(scale, scale) + np.diag(RIDGE)
        target = self._xy / self.steps / scale
        seen = [i for i in range(4) if scale[i] > 1e-9]
        best, least = np.zeros(4), np.inf
        for size in range(1, len(seen) + 1):
            for chosen in combinations(seen, size):  # each set of costs that are not nothing: fifteen at most
                at = list(chosen)
                found = np.linalg.solve(gram[np.ix_(at, at)], target[at])
                error = -float(target[at] @ found)
                if error < least and np.all(found >= 0.0):
                    best, least = np.zeros(4), error
                    best[at] = found
        base, prefill, decode, experts = (best / scale).tolist()
        return Costs(base, prefill, decode, experts, self.share)

"""The experts' load: tokens that each one was given in the last minute, and how even that is. Pure, numpy.

`tokens` is everywhere int [layer, expert]: how often a layer's gate chose an expert. A token counts top-k times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experts.placement import ShardPlacement
from experts.plan import Floats, Ints

WINDOW_S = 60.0


class RecentLoad(NamedTuple):
    """What was routed in the last seconds."""

    tokens: Ints
    seconds: float


class LoadWindow:
    """Makes the last `window_s` seconds' load of counts that only grow."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._counts: deque[tuple[float, Ints]] = deque()

    def add(self, now: float, counts: Ints) -> RecentLoad:
        """The counts as they are at `now`, a second of any clock. The first ones are only where it begins."""
        while len(self._counts) > 1 and self._counts[1][0] <= now - self._window_s:
            self._counts.popleft()
        self._counts.append((now, counts))
        began, at_first = self._counts[0]
        return RecentLoad(counts - at_first, now - began)


def shard_tokens(tokens: Ints, shards: Sequence[ShardPlacement]) -> Floats:
    """[layer, shard]: what each shard computes; an expert with copies on several is taken to be split evenly over them.

    Of two copies on one shard its layer's map, which is read here, knows one: that shard's load is told too low then.
    """
    layers, experts = tokens.shape
    holds = np.zeros((len(shards), layers, experts))
    for index, shard in enumerate(shards):
        for layer, ids in enumerate(shard.experts.values()):
            holds[index, layer, list(ids)] = 1.0
    each = tokens / np.maximum(holds.sum(0), 1.0)
    computed: Floats = np.einsum("sle,le->ls", holds, each)
    return computed

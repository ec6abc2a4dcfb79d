"""The experts' load as metrics, on Ray's metrics port; Ray prefixes "ray_" and adds the replica.

A series for each layer and each shard, none for each expert: 61 layers of 256 would be 15,616 a replica. Those are what
`moray experts` shows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from ray.serve.metrics import Gauge

from experts.load import shard_tokens
from experts.placement import ShardPlacement
from experts.plan import imbalance

EXPERT_IMBALANCE = "moray_expert_load_max_over_mean"
SHARD_IMBALANCE = "moray_shard_load_max_over_mean"
SHARD_SHARE = "moray_shard_load_share"


class ExpertMetrics:
    """Set by a replica each time that its engine has told what the experts were given."""

    def __init__(self) -> None:
        self._experts = Gauge(
            EXPERT_IMBALANCE,
            "The most loaded expert's tokens over the mean of its layer, in the last minute.",
            ("layer",),
        )
        self._balance = Gauge(
            SHARD_IMBALANCE,
            "The most loaded shard's tokens over the mean of all, by layer, in the last minute.",
            ("layer",),
        )
        self._share = Gauge(SHARD_SHARE, "A shard's part of all tokens that experts were given, 0..1.", ("shard",))

    def set(self, tokens: NDArray[np.int64], shards: Sequence[ShardPlacement]) -> None:
        """`tokens` [layer, expert] of the last minute."""
        by_shard = shard_tokens(tokens, shards)
        for gauge, values in ((self._experts, imbalance(tokens)), (self._balance, imbalance(by_shard))):
            for layer, value in enumerate(values):
                gauge.set(float(value), {"layer": str(layer)})
        total = float(by_shard.sum())
        for shard, share in enumerate(by_shard.sum(0)):
            self._share.set(float(share) / total if total else 0.0, {"shard": str(shard)})

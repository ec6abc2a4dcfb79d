"""The experts' load as metrics, on Ray's metrics port.

A series for each layer and each shard, none for each expert: 61 layers of 256 would be 15,616 a replica. Those are what
`moray experts` shows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experts.load import shard_tokens
from experts.placement import ShardPlacement
from experts.plan import imbalance
from replicas import metrics
from replicas.ray_metrics import Make, in_replica


class ExpertMetrics:
    """Set by a replica each time that its engine has told what the experts were given."""

    def __init__(self, make: Make = in_replica) -> None:
        self._experts = make(metrics.EXPERT_IMBALANCE)
        self._balance = make(metrics.SHARD_IMBALANCE)
        self._share = make(metrics.SHARD_SHARE)

    def set(self, tokens: NDArray[np.int64], shards: Sequence[ShardPlacement]) -> None:
        """`tokens` [layer, expert] of the last minute."""
        by_shard = shard_tokens(tokens, shards)
        for gauge, values in ((self._experts, imbalance(tokens)), (self._balance, imbalance(by_shard))):
            for layer, value in enumerate(values):
                gauge.tell(float(value), str(layer))
        total = float(by_shard.sum())
        for shard, share in enumerate(by_shard.sum(0)):
            self._share.tell(float(share) / total if total else 0.0, str(shard))

"""What the replicas told of their experts' load, summed up for `moray experts`, the console and the planner. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from experts.load import shard_tokens
from experts.placement import ShardPlacement
from experts.plan import Floats, Ints, imbalance
from replicas.messages import ExpertLoad, ReplicaInfo


def tokens_of(load: ExpertLoad) -> Ints:
    """[MoE layer, expert]."""
    tokens: Ints = np.frombuffer(load.tokens, "<i8").reshape(load.layers, load.experts)
    return tokens


def expert_report(told: Iterable[tuple[ReplicaInfo, ExpertLoad]]) -> dict[str, Any]:
    """`tokens` [MoE layer][expert] and `shard_tokens` [MoE layer][rank] of all replicas together, and of each replica
    how even its shards' loads are. `shard_tokens` is empty if the replicas have not the same number of shards.

    Empty if no replica has told anything, or if they disagree on the model's shape (two versions of one model).
    """
    told = list(told)
    shapes = {(load.layers, load.experts) for _, load in told}
    if len(shapes) != 1:
        return {"layers": [], "tokens": [], "shard_tokens": [], "seconds": 0.0, "replicas": []}
    infos, loads = zip(*told, strict=True)
    by_shard = [shard_tokens(tokens_of(load), _shards(info, load)) for info, load in told]
    alike = len({each.shape for each in by_shard}) == 1
    return {
        "layers": list(infos[0].shards[0].experts) if infos[0].shards else [],
        "tokens": np.sum([tokens_of(load) for load in loads], axis=0).tolist(),
        "shard_tokens": np.sum(by_shard, axis=0).round(1).tolist() if alike else [],
        "seconds": max(load.seconds for load in loads),
        "replicas": [_of_replica(*each) for each in zip(infos, loads, by_shard, strict=True)],
    }


def _shards(info: ReplicaInfo, load: ExpertLoad) -> tuple[ShardPlacement, ...]:
    return info.shards if load.shards is None else load.shards


def _of_replica(info: ReplicaInfo, load: ExpertLoad, by_shard: Floats) -> dict[str, Any]:
    shards = _shards(info, load)
    return {
        "id": info.replica_id,
        "seconds": load.seconds,
        "tokens": int(tokens_of(load).sum()),
        "shards": [
            {"rank": shard.ep_rank, "tokens": round(float(tokens), 1)}
            for shard, tokens in zip(shards, by_shard.sum(0), strict=True)
        ],
        "shard_max_over_mean": [round(float(each), 4) for each in imbalance(by_shard)],
    }

"""What the replicas told of their experts' load, summed up for `moray experts`, the console and the planner. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from experts.load import shard_tokens
from experts.plan import Ints, imbalance
from replicas.messages import ExpertLoad, ReplicaInfo


def tokens_of(load: ExpertLoad) -> Ints:
    """[MoE layer, expert]."""
    tokens: Ints = np.frombuffer(load.tokens, "<i8").reshape(load.layers, load.experts)
    return tokens


def expert_report(told: Iterable[tuple[ReplicaInfo, ExpertLoad]]) -> dict[str, Any]:
    """`tokens` [MoE layer][expert] of all replicas together, and of each replica how even its shards' loads are.

    Empty if no replica has told anything, or if they disagree on the model's shape (two versions of one model).
    """
    told = list(told)
    shapes = {(load.layers, load.experts) for _, load in told}
    if len(shapes) != 1:
        return {"layers": [], "tokens": [], "seconds": 0.0, "replicas": []}
    infos, loads = zip(*told, strict=True)
    return {
        "layers": list(infos[0].shards[0].experts) if infos[0].shards else [],
        "tokens": np.sum([tokens_of(load) for load in loads], axis=0).tolist(),
        "seconds": max(load.seconds for load in loads),
        "replicas": [_of_replica(info, load) for info, load in told],
    }


def _of_replica(info: ReplicaInfo, load: ExpertLoad) -> dict[str, Any]:
    shards = info.shards if load.shards is None else load.shards
    by_shard = shard_tokens(tokens_of(load), shards)
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

"""Replicas as their router knows them, for tests that start none."""

from __future__ import annotations

from replicas.messages import Capacity, ReplicaInfo


def replica_info(
    replica_id: str = "a", epoch: int = 1, *, version: str = "", load_s: float = 0.0, **capacity: int
) -> ReplicaInfo:
    """`capacity`: fields of a Capacity that are to be others."""
    has = {"kv_tokens": 4096, "block_tokens": 16, "max_num_seqs": 4, "max_num_batched_tokens": 1024}
    return ReplicaInfo(
        replica_id=replica_id,
        epoch=epoch,
        host="h",
        port=1,
        token="t",
        model="m",
        version=version,
        engine_pid=1,
        engine_host="process",
        device="cpu",
        capacity=Capacity(**{**has, "max_model_len": 2048, **capacity}),
        shards=(),
        load_s=load_s,
    )

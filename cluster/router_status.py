"""What the router tells of a replica, for `moray status` and the console. Pure."""

from typing import Any

import msgspec

from cluster.batcher import ReplicaView


def state_of(view: ReplicaView, swapping: bool) -> str:
    """`swapping`: it is being given another version's weights."""
    return "swapping" if swapping else "draining" if view.draining else "ready"


def of_replica(view: ReplicaView, state: str, brief: bool = False) -> dict[str, Any]:
    """One replica: where it is, what it can hold and holds; if not brief, which experts are on which of its shards.

    With 256 replicas of 8 shards of 58 layers of 256 experts a brief answer is 0.3 MB of JSON, a full one 18 MB.
    """
    info, load = view.info, view.load
    return {
        "id": info.replica_id,
        "state": state,
        "epoch": info.epoch,
        "version": info.version,
        "address": f"{info.host}:{info.port}",
        "pid": info.pid,
        "engine": {"pid": info.engine_pid, "host": info.engine_host},
        "capacity": msgspec.to_builtins(info.capacity),
        "granted": view.in_flight,
        "kv_tokens_granted": view.kv_in_flight,
        "running": load.running if load else 0,
        "waiting": load.waiting if load else 0,
        "kv_used_fraction": load.kv_used if load else 0.0,
        "shards": [
            {
                "rank": shard.ep_rank,
                "pid": shard.pid,
                "device": info.device,
                "experts_by_layer": None if brief else [list(ids) for ids in shard.experts.values()],
                "expert_bytes": shard.expert_bytes,
            }
            for shard in info.shards
        ],
    }

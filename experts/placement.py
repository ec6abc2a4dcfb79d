"""Which experts and which CPU cores each shard of one replica holds. Plain values: no torch, no vLLM."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec


class ShardPlacement(msgspec.Struct, frozen=True):
    """What one worker process of a replica really holds, read from its layers (see `vllm_plugin.expert_placement`)."""

    tp_rank: int
    """Rank in the tensor-parallel group. With expert parallelism attention is split over it."""
    ep_rank: int
    """Rank in the expert-parallel group (tensor x data parallel); 0 without expert parallelism."""
    ep_size: int
    """Shards over which the experts are dealt; 1 without expert parallelism."""
    pid: int
    experts: dict[str, tuple[int, ...]]
    """MoE layer's name in the model -> global ids of the experts held, in the order of their local slots."""
    expert_bytes: int
    """Bytes of routed-expert weights, scales and biases in this process (shared experts not counted)."""


def omp_binding(shards: int, cpus: Sequence[int]) -> str:
    """`VLLM_CPU_OMP_THREADS_BIND` that gives each of `shards` workers CPUs of its own, e.g. (2, [0, 1, 2]) -> "0,1|2".

    vLLM takes the n-th "|"-separated list for local rank n and demands exactly one list per worker
    (vllm/utils/ompmultiprocessing.py). Its "auto" wants one NUMA node per worker, so it refuses two workers on an
    ordinary machine. `cpus` are ids as in `os.sched_getaffinity(0)`; neighbours in `cpus` go to one shard, because
    neighbouring ids share caches, and spare CPUs go to the first shards one each.

    Shards with unequal numbers of threads wait for the slowest at every all-reduce: the extra CPU is then no loss,
    but no gain either.
    """
    if shards < 1:
        raise ValueError(f"A replica has at least one shard, not {shards}.")
    own = sorted(set(cpus))
    if shards > len(own):
        raise ValueError(
            f"{shards} expert shards need {shards} CPUs, one each, but this process may use only {len(own)} "
            f"({','.join(map(str, own)) or 'none'}). Lower expert_parallel or give the replica more CPUs."
        )
    each, spare = divmod(len(own), shards)
    starts = [rank * each + min(rank, spare) for rank in range(shards + 1)]
    return "|".join(",".join(map(str, own[begin:end])) for begin, end in pairwise(starts))

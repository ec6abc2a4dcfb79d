"""`moray bench balance`: our placements of experts against the ones that vLLM's bundled EPLB policy makes.

Loads are made up: Zipf's law, shuffled by layer, with several exponents, and mixtures of two topics, each with hot
experts of its own. Each load is placed from nothing; then it drifts (20% log-normal noise, or the topics' shares
change), and what is in force is changed. Moved is what a rank holds now and did not hold before, for both the same way.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experts.balance import Floats, Ints, Placement, lower_bound, place, replace

TOKENS = 1e6  # a layer's
NOISE = 0.2  # standard deviation of the logarithm


class Cluster(NamedTuple):
    """Ranks, spare slots of them all, and nodes, which EPLB's hierarchy looks at."""

    layers: int
    experts: int
    ranks: int
    spare: int
    nodes: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.experts}x{self.ranks}+{self.spare}"


CLUSTERS = (
    Cluster(48, 128, 8, 0, 1),
    Cluster(48, 128, 8, 16, 1),
    Cluster(58, 256, 32, 64, 4),
    Cluster(58, 256, 64, 64, 8),
)
TIMED = {"plan_ms_48x128x8": CLUSTERS[1], "plan_ms_58x256x320": CLUSTERS[2]}


def zipf(cluster: Cluster, exponent: float, rng: np.random.Generator) -> Floats:
    shares = 1.0 / np.arange(1, cluster.experts + 1) ** exponent
    tokens = TOKENS * shares / shares.sum()
    load: Floats = np.stack([rng.permutation(tokens) for _ in range(cluster.layers)])
    return load


def loads(cluster: Cluster, seed: int) -> dict[str, tuple[Floats, Floats]]:
    """By name: the load to place, and what it drifts to."""
    rng = np.random.default_rng(seed)
    made = {}
    for exponent in (0.5, 1.0, 1.5):
        load = zipf(cluster, exponent, rng)
        made[f"zipf {exponent:g}, noise"] = (load, load * np.exp(rng.normal(0.0, NOISE, load.shape)))
    topics = zipf(cluster, 1.0, rng), zipf(cluster, 1.0, rng)
    made["two topics, shifting"] = (0.7 * topics[0] + 0.3 * topics[1], 0.6 * topics[0] + 0.4 * topics[1])
    return made


def eplb(load: Floats, cluster: Cluster) -> Placement:
    """As vLLM's default policy places it."""
    import torch
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    slots = cluster.experts + cluster.spare
    placed = DefaultEplbPolicy.rebalance_experts(torch.tensor(load), slots, cluster.nodes, cluster.nodes, cluster.ranks)
    experts: Ints = np.asarray(placed, np.int64).reshape(cluster.layers, cluster.ranks, -1)
    return Placement(experts, cluster.experts)


def measure(seed: int, report: Callable[[str], None]) -> dict[str, Any]:
    """All of it; see `moray bench balance --help`."""
    rows: dict[str, dict[str, Any]] = {}
    for cluster in CLUSTERS:
        for name, (load, later) in loads(cluster, seed).items():
            rows[f"{cluster}, {name}"] = row = _compared(cluster, load, later)
            report(f"{cluster}, {name}: {row['ours']:.4f}, EPLB {row['eplb']:.4f}; moved {row['moved_ratio']} of its")
    return {"loads": rows} | {name: _timed(cluster, seed) for name, cluster in TIMED.items()}


def _compared(cluster: Cluster, load: Floats, later: Floats) -> dict[str, Any]:
    """One load's figures: imbalance is the fullest rank over the mean, the mean of all layers."""
    slots = (cluster.experts + cluster.spare) // cluster.ranks
    ours, theirs = place(load, cluster.ranks, cluster.spare), eplb(load, cluster)
    ours_later, theirs_later = replace(later, ours), eplb(later, cluster)
    total = cluster.layers * cluster.ranks * slots
    moved, theirs_moved = int(ours_later.moved_from(ours).sum()), int(theirs_later.moved_from(theirs).sum())
    return {
        "ours": _mean(ours, load),
        "eplb": _mean(theirs, load),
        "lp_bound": round(float(lower_bound(load, cluster.ranks, slots).mean()), 4),
        "drift_stay": _mean(ours, later),
        "drift_ours": _mean(ours_later, later),
        "drift_eplb": _mean(theirs_later, later),
        "moved": round(moved / total, 4),
        "eplb_moved": round(theirs_moved / total, 4),
        "moved_ratio": round(moved / theirs_moved, 4) if theirs_moved else None,
    }


def _mean(placement: Placement, load: Floats) -> float:
    return round(float(placement.imbalance(load).mean()), 4)


def _timed(cluster: Cluster, seed: int) -> float:
    """Milliseconds of the slowest of these loads, each the fastest of three."""
    worst = 0.0
    for load, _ in loads(cluster, seed).values():
        took = []
        for _ in range(3):
            began = time.perf_counter()
            place(load, cluster.ranks, cluster.spare)
            took.append(time.perf_counter() - began)
        worst = max(worst, min(took))
    return round(1e3 * worst, 1)

"""`moray bench balance`: our placements of experts against the ones that vLLM's bundled EPLB policy makes.

Loads are made up: Zipf's law, shuffled by layer, with several exponents, and mixtures of two topics, each with hot
experts of its own; beside them come loads that were measured. Each is placed from nothing; then it drifts several times
in a row (20% log-normal noise, the topics' shares, from one task to the next), and each time what is in force is
changed. Moved is what a rank holds now and did not hold before, for both the same way.

EPLB is asked twice: as vLLM asks it for a model with such groups on such nodes, where it keeps groups on nodes and
balances within them, and *flat*, without nodes, as vLLM asks it for models without groups.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experts.balance import Floats, Ints, Placement, lower_bound, place, replace
from experts.plan import imbalance
from experts.traffic import Traffic, rank_loads, sent_across_nodes

TOKENS = 1e6  # a layer's
NOISE = 0.2  # standard deviation of the logarithm
STEPS = 3  # drifts in a row


class Cluster(NamedTuple):
    """Ranks, spare slots of them all, nodes, and the groups of experts that tokens are routed to (DeepSeek-V3's)."""

    layers: int
    experts: int
    ranks: int
    spare: int
    nodes: int = 1
    groups: int = 1

    def __str__(self) -> str:
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.layers}x{self.experts}x{self.ranks}+{self.spare}{nodes}"

    @property
    def slots(self) -> int:
        return (self.experts + self.spare) // self.ranks

    def traffic(self, own_node_first: bool = False) -> Traffic | None:
        """Top 8 experts; of half of the groups, if there are any. None on one node."""
        top = max(self.groups // 2, 1)
        return Traffic(self.nodes, self.groups, top, 8, own_node_first) if self.nodes > 1 else None


CLUSTERS = (
    Cluster(48, 128, 8, 0),
    Cluster(48, 128, 8, 16),
    Cluster(58, 256, 32, 64, nodes=4, groups=8),
    Cluster(58, 256, 64, 64, nodes=8, groups=8),
)
TIMED = {"plan_ms_48x128x8": CLUSTERS[:2], "plan_ms_58x256x320": CLUSTERS[2:]}
MEASURED = "measured"  # in their names
MEASURED_ON = (2, 4)  # ranks, without spare slots and with one each
EXPONENTS = (0.5, 0.75, 1.0, 1.25, 1.5)
TOPIC_EXPONENTS = (1.0, 1.5)
TOPIC_SHARES = (0.7, 0.6, 0.5, 0.4)


def zipf(cluster: Cluster, exponent: float, rng: np.random.Generator) -> Floats:
    shares = 1.0 / np.arange(1, cluster.experts + 1) ** exponent
    tokens = TOKENS * shares / shares.sum()
    load: Floats = np.stack([rng.permutation(tokens) for _ in range(cluster.layers)])
    return load


def loads(cluster: Cluster, seed: int) -> dict[str, list[Floats]]:
    """By name: the load to place, and what it drifts to, one after the other."""
    rng = np.random.default_rng(seed)
    made: dict[str, list[Floats]] = {}
    for exponent in EXPONENTS:
        made[f"zipf {exponent:g}, noise"] = _noisy([zipf(cluster, exponent, rng)] * (1 + STEPS), rng)
    for exponent in TOPIC_EXPONENTS:
        one, other = zipf(cluster, exponent, rng), zipf(cluster, exponent, rng)
        shifting = [share * one + (1.0 - share) * other for share in TOPIC_SHARES]
        made[f"two topics {exponent:g}, shifting"] = shifting
        made[f"two topics {exponent:g}, shifting, noise"] = _noisy(shifting, rng)
    return made


def _noisy(course: list[Floats], rng: np.random.Generator) -> list[Floats]:
    """Noise upon noise: what was hot yesterday need not be the day after."""
    factor, made = np.ones_like(course[0]), [course[0]]
    for load in course[1:]:
        factor = factor * np.exp(rng.normal(0.0, NOISE, load.shape))
        made.append(load * factor)
    return made


def measured_loads(measured: Mapping[str, Floats]) -> Iterator[tuple[Cluster, str, list[Floats]]]:
    """Each task's load, then those of the tasks after it in the order of names: the topic changes altogether."""
    names = sorted(measured)
    for ranks in MEASURED_ON:
        for spare in (0, ranks):
            for i, name in enumerate(names):
                course = [np.asarray(measured[other], np.float64) for other in names[i:] + names[:i]]
                layers, experts = course[0].shape
                yield Cluster(layers, experts, ranks, spare), f"{MEASURED} {name}, other tasks", course[: 1 + STEPS]


def eplb(load: Floats, cluster: Cluster, flat: bool = False) -> Placement:
    """As vLLM's default policy places it."""
    import torch
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    groups, nodes = (1, 1) if flat else (cluster.groups, cluster.nodes)
    slots = cluster.experts + cluster.spare
    placed = DefaultEplbPolicy.rebalance_experts(torch.tensor(load), slots, groups, nodes, cluster.ranks)
    experts: Ints = np.asarray(placed, np.int64).reshape(cluster.layers, cluster.ranks, -1)
    return Placement(experts, cluster.experts)


def measure(seed: int, report: Callable[[str], None], measured: Mapping[str, Floats] | None = None) -> dict[str, Any]:
    """All of it; see `moray bench balance --help`. `measured`: tokens by [layer, expert], by task."""
    made = [(cluster, name, course) for cluster in CLUSTERS for name, course in loads(cluster, seed).items()]
    rows: dict[str, dict[str, Any]] = {}
    for cluster, name, course in [*made, *measured_loads(measured or {})]:
        rows[f"{cluster}, {name}"] = row = _compared(cluster, course)
        report(f"{cluster}, {name}: {row['ours']:.4f}, EPLB {row['eplb']:.4f}; moved {row['moved_ratio']} of its")
    return (
        {"loads": rows}
        | _worst([row for name, row in rows.items() if MEASURED not in name])
        | {f"{name}_measured": w for name, w in _worst([r for name, r in rows.items() if MEASURED in name]).items()}
        | {name: max(_timed(cluster, seed) for cluster in timed) for name, timed in TIMED.items()}
    )


def _worst(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The worst row of each comparison: ours over theirs, so that 1 or less is no worse. Empty for no rows.

    Of measured loads apart: in a layer of eight experts one swap moves a quarter of them.
    """
    if not rows:
        return {}
    pairs = {
        "worst_vs_eplb": ("ours", "eplb"),
        "worst_vs_eplb_flat": ("ours", "eplb_flat"),
        "worst_vs_lp_bound": ("ours", "lp_bound"),
        "worst_drift_vs_eplb": ("drift_ours", "drift_eplb"),
        "worst_drift_vs_eplb_flat": ("drift_ours", "drift_eplb_flat"),
        "worst_moved_ratio": ("moved", "eplb_moved"),
        "worst_moved_ratio_flat": ("moved", "eplb_flat_moved"),
    }
    return {
        name: round(max(row[ours] / row[theirs] for row in rows if row[theirs]), 4)
        for name, (ours, theirs) in pairs.items()
    }


def _compared(cluster: Cluster, course: list[Floats]) -> dict[str, Any]:
    """One load's figures: imbalance is the fullest rank over the mean, the mean of all layers."""
    load, traffic = course[0], cluster.traffic()
    ours = place(load, cluster.ranks, cluster.spare, traffic)
    theirs, flat = eplb(load, cluster), eplb(load, cluster, flat=True)
    row: dict[str, Any] = {
        "ours": _mean(ours, load),
        "eplb": _mean(theirs, load),
        "eplb_flat": _mean(flat, load),
        "lp_bound": round(float(lower_bound(load, cluster.ranks, cluster.slots).mean()), 4),
    }
    ways: dict[str, tuple[Placement, Callable[[Floats, Placement], Placement]]] = {
        "ours": (ours, lambda later, old: replace(later, old, traffic=traffic)),
        "eplb": (theirs, lambda later, _: eplb(later, cluster)),
        "eplb_flat": (flat, lambda later, _: eplb(later, cluster, flat=True)),
    }
    moved = {}
    row["drift_stay"] = round(float(np.mean([ours.imbalance(later).mean() for later in course[1:]])), 4)
    for name, (placed, change) in ways.items():
        reached, moves = [], 0
        for later in course[1:]:
            now = change(later, placed)
            reached.append(now.imbalance(later).mean())
            moves += int(now.moved_from(placed).sum())
            placed = now
        row[f"drift_{name}"] = round(float(np.mean(reached)), 4)
        moved[name] = moves / len(reached) / placed.experts.size
    row |= {"moved" if name == "ours" else f"{name}_moved": round(share, 4) for name, share in moved.items()}
    row["moved_ratio"] = round(moved["ours"] / moved["eplb"], 4) if moved["eplb"] else None
    return row | (_across_nodes(cluster, load, ours, theirs, flat) if traffic is not None else {})


def _across_nodes(
    cluster: Cluster, load: Floats, ours: Placement, theirs: Placement, flat: Placement
) -> dict[str, Any]:
    """Hidden states that a token sends to other nodes in a layer, by dispatch: times hidden size x 2 bytes, and back.

    For a dispatch that takes the own node first ours is placed anew for it; what its ranks' loads come to there, too.
    """
    traffic, own_first = cluster.traffic(), cluster.traffic(own_node_first=True)
    assert traffic is not None and own_first is not None  # asked for clusters of several nodes only
    near = place(load, cluster.ranks, cluster.spare, own_first)
    rows: dict[str, Any] = {}
    for name, placed, close in (("ours", ours, near), ("eplb", theirs, theirs), ("eplb_flat", flat, flat)):
        for dispatch, placement, way in (("hash", placed, traffic), ("own_node_first", close, own_first)):
            sent = sent_across_nodes(placement, load, way) / (load.sum(1) / way.top_k)
            rows[f"sent_{dispatch}_{name}"] = round(float(sent.mean()), 4)
        rows[f"own_node_first_{name}"] = round(float(imbalance(rank_loads(close, load, own_first)).mean()), 4)
    return rows


def _mean(placement: Placement, load: Floats) -> float:
    return round(float(placement.imbalance(load).mean()), 4)


def _timed(cluster: Cluster, seed: int) -> float:
    """Milliseconds of the slowest of these loads, each the fastest of three."""
    worst = 0.0
    for load, *_ in loads(cluster, seed).values():
        took = []
        for _ in range(3):
            began = time.perf_counter()
            place(load, cluster.ranks, cluster.spare, cluster.traffic())
            took.append(time.perf_counter() - began)
        worst = max(worst, min(took))
    return round(1e3 * worst, 1)

"""Where each expert goes, and which ones twice, so that no rank has much more to do than another. Pure, numpy.

`load` is tokens by [layer, expert]. Each rank holds the same number of slots a layer; slots beyond one an expert are
*spare* and hold second copies. An expert's tokens are split evenly over its copies, as vLLM's EPLB does. The aims, in
this order: the least maximum rank load; few hidden states sent to other nodes (`traffic.py` has the model; what is
given up of the first for it is `FOR_NODES`); and, from a placement in force, few experts moved.

What DeepSeek's EPLB does otherwise (github.com/deepseek-ai/EPLB, and vllm.distributed.eplb.policy): it fills ranks
greedily, within nodes that got whole groups of experts, and begins anew each time. Here a greedy filling is improved by
swaps, and by other numbers of copies where those do not do; groups are drawn to nodes, but an expert goes elsewhere
when balance needs it; and a placement in force is repaired (`repair.py`), not made anew.
"""

from __future__ import annotations

import numpy as np

from experts.locality import exchanged, homes, homes_in
from experts.plan import BadPlan, Floats, Ints, Placement
from experts.repair import repaired
from experts.swaps import filled, swapped
from experts.traffic import Traffic, sent_across_nodes

__all__ = ["BadPlan", "Floats", "Ints", "Placement", "lower_bound", "place", "replace"]

MOST_TRIES = 200  # of other numbers of copies
ON_FULLEST = 8.0  # times as likely to get a copy more: an expert on the fullest rank
NEAR = 1.002  # times the lower bound is near enough
FOR_NODES = 0.002  # of the mean rank load that the fullest rank may have more, if less is sent to other nodes


def lower_bound(load: Floats, ranks: int, slots: int) -> Floats:
    """By layer, what no placement's fullest rank can be below, over the mean.

    It is the greatest of three: the mean, which is the optimum of the linear program that lets an expert be split over
    ranks as one likes; the largest copy, at its least, which is when each spare slot goes to whose copies are largest
    (tokens are split evenly over copies here, so that program is a relaxation of this problem too); and, without spare
    slots, the largest expert with the smallest ones that fill the other slots of its rank.
    """
    total, experts = load.sum(1), load.shape[1]
    fullest = (load / _copies(load, ranks, slots)).max(1)
    if ranks * slots == experts:
        fullest += np.sort(load, 1)[:, : slots - 1].sum(1)
    mean = total / ranks
    bound: Floats = np.maximum(np.divide(fullest, mean, out=np.ones_like(mean), where=mean > 0), 1.0)
    return bound


def place(load: Floats, ranks: int, spare: int = 0, traffic: Traffic | None = None) -> Placement:
    """A placement from nothing. `spare`: slots of all ranks together beyond one an expert. Raises BadPlan."""
    load = _counted(load)
    experts = load.shape[1]
    slots = _slots(experts, ranks, spare)
    if traffic is not None:
        traffic.check(experts, ranks)
    copies = _copies(load, ranks, slots)
    made = Placement(swapped(filled(load, copies, ranks, slots), load, copies), experts)
    made = _searched(made, load) if spare else made
    return made if traffic is None or traffic.nodes == 1 else _over_nodes(made, load, traffic)


def _over_nodes(flat: Placement, load: Floats, traffic: Traffic) -> Placement:
    """As even as `flat`, but for `FOR_NODES`, and in no layer sending more to other nodes."""
    _, ranks, slots = flat.experts.shape
    cap = flat.rank_loads(load).max(1) + FOR_NODES * load.sum(1) / ranks
    home, start = homes(load, traffic), flat
    if home is not None:
        placed = swapped(filled(load, flat.copies, ranks, slots, home), load, flat.copies, cap, home=home)
        even = Placement(placed, flat.expert_count).rank_loads(load).max(1) <= cap
        start = Placement(np.where(even[:, None, None], placed, flat.experts), flat.expert_count)
    made = exchanged(start, load, traffic, cap, home)
    less = sent_across_nodes(made, load, traffic) < sent_across_nodes(flat, load, traffic)
    return Placement(np.where(less[:, None, None], made.experts, flat.experts), flat.expert_count)


def replace(
    load: Floats,
    old: Placement,
    tolerance: float = 0.01,
    most_moved: float = 0.145,
    traffic: Traffic | None = None,
) -> Placement:
    """A placement for a new load, from the one in force, moving few experts; in no layer worse than that.

    Ends within `tolerance` of what `place` would reach from nothing, or when `most_moved` of a layer's slots (two, at
    least) hold another expert than before: weights are moved beside the traffic, so a rebalance has to be short; the
    next one goes on from there. With `traffic`, of the moves that help those are taken that keep groups of experts on
    the nodes where they are, and that stay within a node. Raises BadPlan.
    """
    load = _counted(load)
    layers, ranks, slots = old.experts.shape
    if load.shape != (layers, old.expert_count):
        raise BadPlan(f"a load of {load.shape} layers and experts for a placement of {(layers, old.expert_count)}")
    if traffic is not None:
        traffic.check(old.expert_count, ranks)
    fresh = place(load, ranks, ranks * slots - old.expert_count).rank_loads(load).max(1)
    goal, before = fresh * (1.0 + tolerance), old.rank_loads(load).max(1)
    home = homes_in(old, load, traffic) if traffic is not None else None
    budget, nodes = max(int(most_moved * ranks * slots), 2), traffic.nodes if traffic is not None else 1
    experts = old.experts.copy()
    for layer in range(layers):
        here = None if home is None else home[layer]
        experts[layer] = repaired(experts[layer], load[layer], float(goal[layer]), budget, nodes, here)
    worse = Placement(experts, old.expert_count).rank_loads(load).max(1) > before
    experts[worse] = old.experts[worse]
    return Placement(experts, old.expert_count)


def _counted(load: Floats) -> Floats:
    load = np.asarray(load, np.float64)
    if load.ndim != 2 or not load.size or not np.isfinite(load).all() or load.min() < 0:
        raise BadPlan("a load is tokens by layer and expert: finite numbers, none below 0")
    return load


def _slots(experts: int, ranks: int, spare: int) -> int:
    if ranks < 1 or spare < 0:
        raise BadPlan(f"there is at least one rank and no less than no spare slot, not {ranks} and {spare}")
    if (experts + spare) % ranks:
        raise BadPlan(
            f"{experts} experts and {spare} spare slots do not divide over {ranks} ranks: "
            f"take {-(experts % -ranks) + (spare // ranks) * ranks} spare slots, say"
        )
    return (experts + spare) // ranks


def _copies(load: Floats, ranks: int, slots: int) -> Ints:
    """[layer, expert]: each spare slot goes to whose copies are largest; no expert has more copies than ranks."""
    layers, experts = load.shape
    copies, rows = np.ones((layers, experts), np.int64), np.arange(layers)
    each = load.astype(np.float64).copy()
    for _ in range(ranks * slots - experts):
        most = each.argmax(1)
        copies[rows, most] += 1
        count = copies[rows, most]
        each[rows, most] = np.where(count < ranks, load[rows, most] / count, -1.0)
    return copies


def _searched(made: Placement, load: Floats) -> Placement:
    """Moves a copy or two from one expert to another, at random but always the same way, and keeps what helps.

    Copies that are each as small as can be may not fit together: three of 0.6 of a rank's share fill two ranks badly.
    """
    _, ranks, slots = made.experts.shape
    enough = NEAR * lower_bound(load, ranks, slots)
    placed, copies, reached = made.experts.copy(), made.copies, made.imbalance(load)
    rng = np.random.default_rng(0)
    for _ in range(MOST_TRIES):
        at = np.flatnonzero(reached > enough)
        if not at.size:
            break
        tried, rows, likely = copies[at].copy(), np.arange(at.size), np.ones((at.size, copies.shape[1]))
        fullest = Placement(placed[at], made.expert_count).rank_loads(load[at]).argmax(1)
        np.put_along_axis(likely, placed[at, fullest], ON_FULLEST, 1)
        for _ in range(rng.integers(1, 3)):
            from_ = np.where(tried > 1, rng.random(tried.shape), -1.0).argmax(1)
            wanted = rng.random(tried.shape) * np.sqrt(load[at] / tried) * likely  # large copies sooner than small ones
            wanted[(tried == ranks) | (np.arange(tried.shape[1]) == from_[:, None])] = -1.0
            tried[rows, from_] -= 1
            tried[rows, wanted.argmax(1)] += 1
        anew = swapped(filled(load[at], tried, ranks, slots), load[at], tried)
        now = Placement(anew, made.expert_count).imbalance(load[at])
        better = now < reached[at]
        placed[at[better]], copies[at[better]], reached[at[better]] = anew[better], tried[better], now[better]
    return Placement(placed, made.expert_count)

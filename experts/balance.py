"""Where each expert goes, and which ones twice, so that no rank has much more to do than another. Pure, numpy.

`load` is tokens by [layer, expert]. Each rank holds the same number of slots a layer; slots beyond one an expert are
*spare* and hold second copies. An expert's tokens are split evenly over its copies, as vLLM's EPLB does. The aim is the
least maximum rank load, and, from a placement in force, few experts moved.

What DeepSeek's EPLB does otherwise (github.com/deepseek-ai/EPLB, and vllm.distributed.eplb.policy): it fills ranks
greedily, within nodes that got whole groups of experts, and begins anew each time. Here a greedy filling is improved by
swaps, and by other numbers of copies where those do not do; with a placement in force the swaps begin there. All layers
are worked on at once. Nodes are not looked at: on a cluster of several, what stays within one is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_SWAPS = 400  # a layer; some tens are usual
MOST_TRIES = 100  # of other numbers of copies
NEAR = 1.005  # times the lower bound is near enough
LEAST_GAIN = 1e-4  # of the hottest rank's load, to go on


class BadPlan(ValueError):
    """The numbers admit no plan, or a plan is none. The message says which and why."""


@dataclass(frozen=True)
class Placement:
    """Which expert is in each slot: `experts` [layer, rank, slot]."""

    experts: Ints
    expert_count: int

    def __post_init__(self) -> None:
        _, ranks, slots = self.experts.shape
        if self.experts.min(initial=0) < 0 or self.experts.max(initial=0) >= self.expert_count:
            raise BadPlan(f"a slot holds none of the {self.expert_count} experts")
        if (missing := np.argwhere(self.copies == 0)).size:
            layer, expert = missing[0]
            raise BadPlan(f"expert {expert} of layer {layer} is on none of {ranks} ranks with {slots} slots")

    @property
    def copies(self) -> Ints:
        """[layer, expert]."""
        layers = self.experts.shape[0]
        flat = self.experts.reshape(layers, -1) + self.expert_count * np.arange(layers)[:, None]
        counts: Ints = np.bincount(flat.ravel(), minlength=layers * self.expert_count)
        return counts.reshape(layers, self.expert_count)

    def rank_loads(self, load: Floats) -> Floats:
        """Tokens by [layer, rank]."""
        layers = self.experts.shape[0]
        each = load / self.copies
        slots: Floats = np.take_along_axis(each, self.experts.reshape(layers, -1), 1).reshape(self.experts.shape)
        loads: Floats = slots.sum(2)
        return loads

    def imbalance(self, load: Floats) -> Floats:
        """The fullest rank's load over the mean, by layer; 1 is perfect, and a layer without load is."""
        loads = self.rank_loads(load)
        mean = loads.mean(1)
        imbalance: Floats = np.divide(loads.max(1), mean, out=np.ones_like(mean), where=mean > 0)
        return imbalance

    def moved_from(self, old: Placement) -> Ints:
        """By layer, slots whose expert was not on their rank before: copies that have to be sent there."""
        layers, ranks, _ = self.experts.shape
        counts = np.zeros((2, layers, ranks, self.expert_count), np.int64)
        for i, placement in enumerate((self, old)):
            np.add.at(counts[i], (np.arange(layers)[:, None, None], np.arange(ranks)[:, None], placement.experts), 1)
        moved: Ints = np.maximum(counts[0] - counts[1], 0).sum((1, 2))
        return moved


def lower_bound(load: Floats, ranks: int, slots: int) -> Floats:
    """By layer, what no placement's fullest rank can be below: the mean, and the largest copy, over the mean.

    The largest copy is the least possible when each spare slot goes to whose copies are largest.
    """
    total = load.sum(1)
    largest = (load / _copies(load, ranks, slots)).max(1)
    mean = total / ranks
    bound: Floats = np.maximum(np.divide(largest, mean, out=np.ones_like(mean), where=mean > 0), 1.0)
    return bound


def place(load: Floats, ranks: int, spare: int = 0) -> Placement:
    """A placement from nothing. `spare`: slots of all ranks together beyond one an expert. Raises BadPlan."""
    load = np.asarray(load, np.float64)
    experts = load.shape[1]
    slots = _slots(experts, ranks, spare)
    copies = _copies(load, ranks, slots)
    made = Placement(_swapped(_filled(load, copies, ranks, slots), load, copies), experts)
    return _searched(made, load) if spare else made


def replace(load: Floats, old: Placement, tolerance: float = 0.01, most_moved: float = 0.12) -> Placement:
    """A placement for a new load, from the one in force, moving few experts.

    Ends within `tolerance` of what `place` would reach from nothing, or when `most_moved` of a layer's slots hold
    another expert than before: weights are moved beside the traffic, so a rebalance has to be short; the next one goes
    on from there. Where swaps do not lead to the goal, copies that are not worth their slot any more make way first.
    """
    load = np.asarray(load, np.float64)
    _, ranks, slots = old.experts.shape
    fresh = place(load, ranks, ranks * slots - old.expert_count)
    goal = fresh.imbalance(load) * (1.0 + tolerance) * load.sum(1) / ranks
    budget = int(most_moved * ranks * slots)
    made = Placement(_swapped(old.experts, load, old.copies, goal, budget // 2), old.expert_count)
    reached = made.rank_loads(load).max(1)
    behind = np.flatnonzero(reached > goal)
    if not behind.size or ranks * slots == old.expert_count:
        return made
    held, part = Placement(old.experts[behind], old.expert_count), load[behind]
    recopied = _recopied(held.experts, part, held.copies, _wanted(fresh.copies[behind], held.copies, part, budget // 2))
    copies = Placement(recopied, old.expert_count).copies
    left = (budget - (recopied != held.experts).sum((1, 2))) // 2
    recopied = _swapped(recopied, part, copies, goal[behind], left)
    better = Placement(recopied, old.expert_count).rank_loads(part).max(1) < reached[behind]
    experts = made.experts.copy()
    experts[behind[better]] = recopied[better]
    return Placement(experts, old.expert_count)


def _wanted(fresh: Ints, held: Ints, load: Floats, most: int) -> Ints:
    """Numbers of copies on the way from those held to the fresh ones: at most so many changes, largest loads first."""
    wanted = held.copy()
    for layer in range(held.shape[0]):
        missing, spare = np.maximum(fresh[layer] - held[layer], 0), np.maximum(held[layer] - fresh[layer], 0)
        gains = np.repeat(np.arange(missing.size), missing)
        gains = gains[np.argsort(-(load[layer] / held[layer])[gains], kind="stable")][:most]
        losses = np.repeat(np.arange(spare.size), spare)
        losses = losses[np.argsort((load[layer] / held[layer])[losses], kind="stable")][: gains.size]
        np.add.at(wanted[layer], gains, 1)
        np.subtract.at(wanted[layer], losses, 1)
    return wanted


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
        tried, rows = copies[at].copy(), np.arange(at.size)
        for _ in range(rng.integers(1, 3)):
            from_ = np.where(tried > 1, rng.random(tried.shape), -1.0).argmax(1)
            wanted = rng.random(tried.shape) * np.sqrt(load[at] / tried)  # large copies sooner than small ones
            wanted[(tried == ranks) | (np.arange(tried.shape[1]) == from_[:, None])] = -1.0
            tried[rows, from_] -= 1
            tried[rows, wanted.argmax(1)] += 1
        anew = _swapped(_filled(load[at], tried, ranks, slots), load[at], tried)
        now = Placement(anew, made.expert_count).imbalance(load[at])
        better = now < reached[at]
        placed[at[better]], copies[at[better]], reached[at[better]] = anew[better], tried[better], now[better]
    return Placement(placed, made.expert_count)


def _filled(load: Floats, copies: Ints, ranks: int, slots: int) -> Ints:
    """[layer, rank, slot]: the largest copy first, each to the least loaded rank with a slot left (Graham's LPT)."""
    layers, experts = load.shape
    rows = np.arange(layers)
    ids = np.repeat(np.tile(np.arange(experts), layers), copies.ravel()).reshape(layers, ranks * slots)
    weights = np.take_along_axis(load / copies, ids, 1)
    order = np.argsort(-weights, axis=1, kind="stable")
    ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
    placed = np.zeros((layers, ranks, slots), np.int64)
    loads, taken = np.zeros((layers, ranks)), np.zeros((layers, ranks), np.int64)
    for i in range(ranks * slots):
        rank = loads.argmin(1)
        placed[rows, rank, taken[rows, rank]] = ids[:, i]
        taken[rows, rank] += 1
        loads[rows, rank] += np.where(taken[rows, rank] < slots, weights[:, i], np.inf)
    return placed


def _swapped(
    placed: Ints, load: Floats, copies: Ints, goal: Floats | None = None, most: int | Ints = MOST_SWAPS
) -> Ints:
    """Swaps between the fullest rank and another, the best one each time, until none helps or `goal` is reached.

    All layers at once. `goal` [layer]: the fullest rank's load that is low enough; `most` [layer] swaps.
    """
    placed = placed.copy()
    layers, ranks, slots = placed.shape
    each = load / copies
    weights = np.take_along_axis(each, placed.reshape(layers, -1), 1).reshape(placed.shape)
    loads = weights.sum(2)
    mean = loads.mean(1)
    goal = mean if goal is None else goal
    rank_of = np.repeat(np.arange(ranks), slots)
    active = np.flatnonzero(loads.max(1) > np.maximum(goal, mean * (1 + LEAST_GAIN)))
    allowed = np.broadcast_to(np.asarray(most), (layers,))
    for done in range(MOST_SWAPS):
        active = active[allowed[active] > done]
        if not active.size:
            break
        rows = np.arange(active.size)
        hot = loads[active].argmax(1)
        top = loads[active, hot]
        gives = weights[active, hot]  # [layer, slot]
        takes = weights[active].reshape(active.size, 1, -1)
        less = gives[:, :, None] - takes  # what the hot rank loses, and the other gains
        after = np.maximum(top[:, None, None] - less, loads[active][:, rank_of][:, None, :] + less)
        after[rows[:, None], :, hot[:, None] * slots + np.arange(slots)] = np.inf
        best = after.reshape(active.size, -1).argmin(1)
        reached = after.reshape(active.size, -1)[rows, best]
        helps = reached < top * (1 - LEAST_GAIN)
        at, ranks_hot, choice = active[helps], hot[helps], best[helps]
        ours, theirs = choice // (ranks * slots), choice % (ranks * slots)
        other, slot = theirs // slots, theirs % slots
        change = weights[at, ranks_hot, ours] - weights[at, other, slot]
        loads[at, ranks_hot] -= change
        loads[at, other] += change
        for table in (placed, weights):
            held = table[at, ranks_hot, ours].copy()
            table[at, ranks_hot, ours] = table[at, other, slot]
            table[at, other, slot] = held
        enough = np.maximum(goal[at], mean[at] * (1 + LEAST_GAIN))
        active = at[loads[at].max(1) > enough]
    return placed


def _recopied(placed: Ints, load: Floats, copies: Ints, wanted: Ints) -> Ints:
    """Has copies that are one too many make way for those that are missing: one expert moved for each."""
    placed = placed.copy()
    for layer in range(placed.shape[0]):
        counts, missing = copies[layer].copy(), np.maximum(wanted[layer] - copies[layer], 0)
        here = placed[layer]
        for expert in np.repeat(np.arange(missing.size), missing)[np.argsort(-np.repeat(load[layer], missing))]:
            loads = (load[layer] / counts)[here].sum(1)
            spare = counts[here] > wanted[layer][here]
            has_it = (here == expert).any(1)
            cost = np.where(spare, (loads - 1e12 * ~has_it)[:, None], np.inf)
            rank, slot = np.unravel_index(cost.argmin(), cost.shape)
            counts[here[rank, slot]] -= 1
            counts[expert] += 1
            here[rank, slot] = expert
    return placed

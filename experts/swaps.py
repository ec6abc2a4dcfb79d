"""How a placement of experts is filled and made better, slot by slot: the steps of `balance.py`. Pure, numpy.

Arrays are those of `Placement`: `placed` [layer, rank, slot] holds experts, `load` and `copies` are [layer, expert].
`home` [layer, expert, node] says where an expert is wanted (`locality.py`); without it nodes do not matter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experts.plan import Floats, Ints

MOST_SWAPS = 400  # a layer; some tens are usual
LEAST_GAIN = 2e-5  # of the hottest rank's load, to go on
FROM_HOME = 0.1  # of a copy's load: how much worse a swap is that takes it from its home
AT_HOME = 1.2  # of the mean rank load: how full a rank gets with experts of its node before others are taken


def filled(load: Floats, copies: Ints, ranks: int, slots: int, home: Floats | None = None) -> Ints:
    """[layer, rank, slot]: the largest copy first, each to the least loaded rank with a slot left (Graham's LPT).

    With `home`, to the least loaded one of its home nodes as long as that is not filled to `AT_HOME`.
    """
    layers, experts = load.shape
    rows = np.arange(layers)
    ids = np.repeat(np.tile(np.arange(experts), layers), copies.ravel()).reshape(layers, ranks * slots)
    weights = np.take_along_axis(load / copies, ids, 1)
    order = np.argsort(-weights, axis=1, kind="stable")
    ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
    placed = np.zeros((layers, ranks, slots), np.int64)
    loads, taken = np.zeros((layers, ranks)), np.zeros((layers, ranks), np.int64)
    limit = AT_HOME * load.sum(1) / ranks
    for i in range(ranks * slots):
        rank = loads.argmin(1)
        if home is not None:
            here = np.repeat(home[rows, ids[:, i]] > 0, ranks // home.shape[2], axis=1)
            wanted = np.where(here, loads, np.inf).argmin(1)
            fits = here[rows, wanted] & (loads[rows, wanted] + weights[:, i] <= limit)
            rank = np.where(fits, wanted, rank)
        placed[rows, rank, taken[rows, rank]] = ids[:, i]
        taken[rows, rank] += 1
        loads[rows, rank] += np.where(taken[rows, rank] < slots, weights[:, i], np.inf)
    return placed


def swapped(
    placed: Ints,
    load: Floats,
    copies: Ints,
    goal: Floats | None = None,
    home: Floats | None = None,
) -> Ints:
    """Swaps between the fullest rank and another, the best one each time, until none helps or `goal` is reached.

    All layers at once. `goal` [layer]: the fullest rank's load that is low enough.
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
    cost = None if home is None else _cost_of_leaving(home, ranks)
    for _ in range(MOST_SWAPS):
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
        after = after.reshape(active.size, -1)
        if cost is None:
            best = after.argmin(1)
        else:
            paid = after + cost(placed, weights, active, hot).reshape(after.shape)
            paid[after >= top[:, None] * (1 - LEAST_GAIN)] = np.inf
            best = paid.argmin(1)
        reached = after[rows, best]
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


def _cost_of_leaving(home: Floats, ranks: int) -> Callable[[Ints, Floats, Ints, Ints], Floats]:
    """Of a swap of the hot rank's slot with another: [layer, hot slot, all slots], `FROM_HOME` of what leaves home."""
    each = ranks // home.shape[2]

    def cost(placed: Ints, weights: Floats, active: Ints, hot: Ints) -> Floats:
        layers, slots = active.size, placed.shape[2]
        rows, node = np.arange(layers), hot // each
        node_of = np.repeat(np.arange(home.shape[2]), each * slots)
        theirs, ours = placed[active].reshape(layers, -1), placed[active, hot]
        at = home[active]
        leave = at[rows[:, None], ours, node[:, None]][:, :, None] - at[rows[:, None], ours][:, :, node_of]
        come = at[rows[:, None], theirs, node_of] - at[rows[:, None], theirs, node[:, None]]
        lost: Floats = weights[active, hot][:, :, None] * leave
        lost += (weights[active].reshape(layers, -1) * come)[:, None]
        return FROM_HOME * lost

    return cost

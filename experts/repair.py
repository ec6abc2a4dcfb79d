"""Brings a placement in force back into balance, with as few experts moved as it takes. Pure, numpy.

The fullest rank is relieved again and again by what takes most of the load above the goal away *for each copy moved*,
from all ranks together: a swap of two slots moves two copies; a rotation of three moves three and can relieve two
ranks; putting another expert into the slot of one that has more copies moves one, and shifts load between all ranks
that hold either. One layer at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from experts.plan import Floats, Ints

FROM_HOME = 0.03  # of the load that leaves its home node, against load above the goal that goes
ACROSS = 0.002  # the same, of what a swap sends between nodes rather than within one
LEAST = 1e-9  # of the load above the goal


def repaired(placed: Ints, load: Floats, goal: float, most: int, nodes: int = 1, home: Floats | None = None) -> Ints:
    """`placed` [rank, slot] with at most `most` slots changed, no rank's load above `goal` if that can be reached.

    load: [expert]. home: [expert, node], 1 where its group is at home (`locality.py`).
    """
    layer = _Layer(placed, load, goal, nodes, home)
    while layer.loads.max() > goal and most >= 1:
        steps = [layer.put(), layer.swap(), layer.rotation()]
        gain, changes = min(step for step in steps if len(step[1]) <= most)
        if gain >= -LEAST * layer.above(layer.loads).sum():
            break
        layer.change(changes)
        most -= len(changes)
    return layer.placed


Change = tuple[int, int, int]  # rank, slot, the expert that comes there
Step = tuple[float, list[Change]]  # what becomes of the load above the goal for each copy moved, and how


class _Layer:
    def __init__(self, placed: Ints, load: Floats, goal: float, nodes: int, home: Floats | None) -> None:
        self.placed, self.load, self.goal = placed.copy(), load, goal
        ranks, slots = placed.shape
        self.rank_of = np.repeat(np.arange(ranks), slots)
        self.node_of = np.arange(ranks) // (ranks // nodes)
        self.home = np.zeros((load.size, nodes)) if home is None else home
        self.held = np.zeros((ranks, load.size))
        np.add.at(self.held, (np.arange(ranks)[:, None], placed), 1.0)
        self._weigh()

    def _weigh(self) -> None:
        self.copies = self.held.sum(0)
        self.each = self.load / self.copies
        self.loads = self.held @ self.each
        self.fewer = self.load / np.maximum(self.copies - 1.0, 1.0)  # a copy's load if there is one less
        self.more = self.load / (self.copies + 1.0)

    def above(self, loads: Floats) -> Floats:
        over: Floats = np.maximum(loads - self.goal, 0.0)
        return over

    def change(self, changes: list[Change]) -> None:
        for rank, slot, expert in changes:
            self.held[rank, self.placed[rank, slot]] -= 1.0
            self.held[rank, expert] += 1.0
            self.placed[rank, slot] = expert
        self._weigh()

    def _way(self, experts: Ints, ranks: Ints, targets: Ints) -> Floats:
        """[expert, target]: what it costs that a copy goes from its rank to another: its home, and the way."""
        here, there = self.node_of[ranks][:, None], self.node_of[targets]
        leaves = self.home[experts[:, None], here] - self.home[experts][:, there]
        cost: Floats = self.each[experts][:, None] * (FROM_HOME * leaves + ACROSS * (here != there))
        return cost

    def swap(self) -> Step:
        """The best swap between the fullest rank and another."""
        hot, slots = int(self.loads.argmax()), self.placed.shape[1]
        ours, theirs = self.placed[hot], self.placed.ravel()
        less = self.each[ours][:, None] - self.each[theirs]
        top, others = self.loads[hot], self.loads[self.rank_of]
        change = self.above(top - less) - self.above(top) + self.above(others + less) - self.above(others)
        change += self._way(ours, np.full(slots, hot), self.rank_of)
        change += self._way(theirs, self.rank_of, np.array([hot])).T
        change[:, self.rank_of == hot] = np.inf
        best = int(change.argmin())
        slot, (rank, other) = best // theirs.size, divmod(best % theirs.size, slots)
        changes = [(hot, slot, int(self.placed[rank, other])), (rank, other, int(ours[slot]))]
        return float(change.flat[best]) / 2, changes

    def rotation(self) -> Step:
        """The best rotation: a copy from the fullest rank to one that is not too full, one from there to another rank
        that is, and one from that to the fullest."""
        hot, slots, experts = int(self.loads.argmax()), self.placed.shape[1], self.placed.ravel()
        full = self.loads > self.goal
        second = np.flatnonzero(full[self.rank_of] & (self.rank_of != hot))
        third = np.flatnonzero(~full[self.rank_of])
        if not second.size or not third.size:
            return 0.0, []
        ours, theirs, lasts = self.each[self.placed[hot]], self.each[experts[second]], self.each[experts[third]]
        loads, last = self.loads[self.rank_of[second]], self.loads[self.rank_of[third]]
        # [slot of the fullest, of the second, of the third]: what becomes of each rank's load above the goal.
        top = self.above(self.loads[hot] - ours[:, None] + theirs) - self.above(self.loads[hot])
        other = self.above((loads - theirs)[:, None] + lasts) - self.above(loads)[:, None]
        change = top[:, :, None] + other + self.above(last - lasts + ours[:, None])[:, None]
        change += self._way(self.placed[hot], np.full(slots, hot), self.rank_of[third])[:, None]
        change += self._way(experts[second], self.rank_of[second], np.array([hot]))
        change += self._way(experts[third], self.rank_of[third], self.rank_of[second]).T
        slot, at, to = np.unravel_index(int(change.argmin()), change.shape)
        back, away = int(second[at]), int(third[to])
        changes = [
            (hot, int(slot), int(experts[back])),
            (*divmod(back, slots), int(experts[away])),
            (*divmod(away, slots), int(self.placed[hot, slot])),
        ]
        return float(change[slot, at, to]) / 3, changes

    def put(self) -> Step:
        """The best expert to put into a slot of one that has more copies: any into the fullest rank's slots, or one of
        its own into another's."""
        hot, experts = int(self.loads.argmax()), self.placed.ravel()
        slots = np.flatnonzero(self.copies[experts] > 1)
        if not slots.size:
            return 0.0, []
        ranks, leaving = self.rank_of[slots], experts[slots]
        # [slot, rank]: loads when that slot's copy is gone.
        without = self.loads + self.held.T[leaving] * (self.fewer - self.each)[leaving, None]
        without[np.arange(slots.size), ranks] -= self.fewer[leaving]
        stays = FROM_HOME * self.each[leaving] * self.home[leaving, self.node_of[ranks]]
        before, found = self.above(self.loads).sum(), []
        relief = self.held * (self.each - self.more)  # [rank, expert]: what a copy more takes from each rank
        for at in np.flatnonzero(ranks == hot):
            loads = without[at] - relief.T
            loads[:, hot] += self.more
            change = self.above(loads).sum(1) - before + stays[at]
            change -= FROM_HOME * self.more * self.home[:, self.node_of[hot]]
            least, expert = _least(change, np.arange(self.load.size) == leaving[at])
            found.append((least, int(slots[at]), expert))
        for expert in np.unique(self.placed[hot]):
            loads = without - relief[:, expert]
            loads[np.arange(slots.size), ranks] += self.more[expert]
            change = self.above(loads).sum(1) - before + stays
            change -= FROM_HOME * self.more[expert] * self.home[expert, self.node_of[ranks]]
            least, at = _least(change, (leaving == expert) | (ranks == hot))
            found.append((least, int(slots[at]), int(expert)))
        gain, slot, comes = min(found)
        return gain, [(*divmod(slot, self.placed.shape[1]), comes)]


def _least(change: Floats, never: NDArray[np.bool_]) -> tuple[float, int]:
    """The least change that is allowed, and its place; infinite if there is none."""
    change = np.where(never, np.inf, change)
    at = int(change.argmin())
    return float(change[at]), at

"""Which expert is in each slot of each rank: the value, its checks, its moves from another, and its JSON form. Pure.

`balance.place` and `balance.replace` make a `Placement`; a `PlacementPlan` says beside it which model it is for and how
ranks lie on nodes, so that it can be written to a file, read elsewhere, and refused where it does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class BadPlan(ValueError):
    """The numbers admit no plan, or a plan is none. The message says which and why."""


@dataclass(frozen=True)
class Placement:
    """Which expert is in each slot: `experts` [layer, rank, slot]."""

    experts: Ints
    expert_count: int

    def __post_init__(self) -> None:
        if self.experts.ndim != 3:
            raise BadPlan(f"a placement has layers, ranks and slots, not {self.experts.ndim} dimensions")
        _, ranks, slots = self.experts.shape
        if self.experts.min(initial=0) < 0 or self.experts.max(initial=0) >= self.expert_count:
            raise BadPlan(f"a slot holds none of the {self.expert_count} experts")
        if (missing := np.argwhere(self.copies == 0)).size:
            layer, expert = missing[0]
            raise BadPlan(f"expert {expert} of layer {layer} is on none of {ranks} ranks with {slots} slots")

    @property
    def copies(self) -> Ints:
        """[layer, expert]."""
        return self.held(1)[:, 0]

    def held(self, parts: int) -> Ints:
        """Copies by [layer, part, expert], the ranks divided evenly into so many parts: nodes, or ranks themselves."""
        layers = self.experts.shape[0]
        flat = self.experts.reshape(layers, parts, -1)
        flat = flat + self.expert_count * np.arange(layers * parts).reshape(layers, parts, 1)
        counts: Ints = np.bincount(flat.ravel(), minlength=layers * parts * self.expert_count)
        return counts.reshape(layers, parts, self.expert_count)

    def rank_loads(self, load: Floats) -> Floats:
        """Tokens by [layer, rank]."""
        layers = self.experts.shape[0]
        each = load / self.copies
        slots: Floats = np.take_along_axis(each, self.experts.reshape(layers, -1), 1).reshape(self.experts.shape)
        loads: Floats = slots.sum(2)
        return loads

    def imbalance(self, load: Floats) -> Floats:
        """The fullest rank's load over the mean, by layer; 1 is perfect, and a layer without load is."""
        return imbalance(self.rank_loads(load))

    def moved_from(self, old: Placement) -> Ints:
        """By layer, slots whose expert was not on their rank before: copies that have to be sent there."""
        ranks = self.experts.shape[1]
        moved: Ints = np.maximum(self.held(ranks) - old.held(ranks), 0).sum((1, 2))
        return moved

    def in_slots_of(self, old: Placement) -> Placement:
        """The same, with each expert that stays on its rank in the slot that it had there: it is not touched."""
        experts = slots_kept(self.experts, old.experts)
        return Placement(experts, self.expert_count)


def imbalance(load: Floats | Ints) -> Floats:
    """The largest over the mean, by layer, of loads by [layer, rank or expert]; 1 where there is none."""
    mean = load.mean(1)
    result: Floats = np.divide(load.max(1), mean, out=np.ones_like(mean), where=mean > 0)
    return result


def slots_kept(experts: Ints, old: Ints) -> Ints:
    """`experts` [layer, rank, slot], each rank's reordered so that what `old` held stays where it was.

    Slots of `old` that hold none (-1) take what is left, in order.
    """
    shape, slots = experts.shape, experts.shape[2]
    left, before = experts.reshape(-1, slots).copy(), old.reshape(-1, slots)
    kept = np.full_like(left, -1)
    rows = np.arange(len(left))
    for slot in range(slots):
        matches = (left == before[:, slot, None]) & (before[:, slot, None] >= 0)
        found, at = matches.any(1), matches.argmax(1)
        kept[found, slot] = before[found, slot]
        left[rows[found], at[found]] = -1
    kept[kept < 0] = left[left >= 0]  # row by row both have the same number
    return kept.reshape(shape)


class Move(NamedTuple):
    """One copy of an expert's weights that has to be sent, and where from. Ranks are of the whole group."""

    layer: int
    expert: int
    source: int
    target: int
    slot: int  # of the target


class Sent(NamedTuple):
    """Bytes of the rank that sends or takes most, over each kind of link."""

    most_within_nodes: float
    most_between_nodes: float


@dataclass(frozen=True)
class PlacementPlan:
    """A placement, the model that it is for, and the nodes that its ranks lie on, equally many on each, in order."""

    model: str
    placement: Placement
    nodes: int = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise BadPlan("a plan names the model that it is for")
        if self.nodes < 1 or self.ranks % self.nodes:
            raise BadPlan(f"{self.ranks} ranks do not lie evenly on {self.nodes} nodes")

    @property
    def layers(self) -> int:
        return len(self.placement.experts)

    @property
    def experts(self) -> int:
        return self.placement.expert_count

    @property
    def ranks(self) -> int:
        return len(self.placement.experts[0])

    @property
    def slots(self) -> int:
        """A rank's, in each layer."""
        return len(self.placement.experts[0, 0])

    def node_of(self, rank: int) -> int:
        return rank // (self.ranks // self.nodes)

    def check(self, model: str, layers: int, experts: int, ranks: int) -> None:
        """Raises BadPlan unless the plan is for such a group."""
        if model != self.model:
            raise BadPlan(f"the plan is for {self.model}, not for {model}")
        have = {"MoE layers": self.layers, "experts": self.experts, "ranks": self.ranks}
        want = {"MoE layers": layers, "experts": experts, "ranks": ranks}
        if wrong := [f"{have[name]} {name}, not {want[name]}" for name in have if have[name] != want[name]]:
            raise BadPlan(f"the plan is for {' and '.join(wrong)}: make one for this layout with `balance.place`")

    def moves_from(self, old: PlacementPlan) -> list[Move]:
        """What has to be sent to get here from there, each copy from a rank of the same node if one holds it.

        Of several such ranks the one that has least to send is taken. What stays on its rank is no move; `slot` counts
        in the order of `in_slots_of`. Raises BadPlan if the two are not for the same group.
        """
        self.check(old.model, old.layers, old.experts, old.ranks)
        if (self.slots, self.nodes) != (old.slots, old.nodes):
            raise BadPlan(
                f"from {old.slots} slots a rank on {old.nodes} nodes no moves lead to {self.slots} on {self.nodes}"
            )
        before, after = old.placement.experts, self.placement.in_slots_of(old.placement).experts
        sends, moves = [0] * self.ranks, []
        for layer, target, slot in np.argwhere(before != after).tolist():
            expert = int(after[layer, target, slot])
            holders = np.flatnonzero((before[layer] == expert).any(1)).tolist()
            if target in holders:  # a second copy on the same rank: copied there
                continue
            source = min(holders, key=lambda rank: (self.node_of(rank) != self.node_of(target), sends[rank], rank))
            sends[source] += 1
            moves.append(Move(layer, expert, source, target, slot))
        return moves

    def bytes_sent(self, moves: Sequence[Move], expert_bytes: float) -> Sent:
        """What the moves send, `expert_bytes` each: one expert's weights and scales in one layer."""
        traffic = np.zeros((2, 2, self.ranks))  # [between nodes, received, rank]
        for move in moves:
            between = int(self.node_of(move.source) != self.node_of(move.target))
            traffic[between, 0, move.source] += expert_bytes
            traffic[between, 1, move.target] += expert_bytes
        within, between = traffic.max((1, 2)).tolist()
        return Sent(within, between)

    def to_json(self) -> bytes:
        document = _Document(VERSION, self.model, self.experts, self.nodes, self.placement.experts.tolist())
        return msgspec.json.encode(document)

    @classmethod
    def from_json(cls, text: bytes | str) -> PlacementPlan:
        """Raises BadPlan for a text that is no plan, of another version, or whose plan is none."""
        try:
            read = msgspec.json.decode(text, type=_Document)
        except msgspec.DecodeError as error:
            raise BadPlan(f"this is no placement plan: {error}") from error
        if read.version != VERSION:
            raise BadPlan(f"the plan's version is {read.version}, and this program reads {VERSION}: write it anew")
        shapes = {len(slots) for layer in read.layers for slots in layer}
        if len({len(layer) for layer in read.layers}) != 1 or len(shapes) != 1 or not min(shapes):
            raise BadPlan("a plan has as many ranks in each layer and as many slots in each rank, and one at least")
        return cls(read.model, Placement(np.array(read.layers, np.int64), read.experts), read.nodes)


VERSION = 1


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    model: str
    experts: int
    nodes: int
    layers: list[list[list[int]]]
    """[layer][rank][slot]: expert."""

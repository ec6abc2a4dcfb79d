"""How many hidden states the dispatch to experts sends to other nodes, for a placement. Pure, numpy.

The model. Tokens lie evenly over the ranks, so each of N nodes has 1/N of every expert's. A token chooses `top_k`
experts; with group-limited routing (DeepSeek-V3's `n_group`, `topk_group`) it chooses `top_groups` of `groups` groups
first, group g with probability p_g = min(1, top_groups * its share of the load), and top_k / top_groups experts in
each, every one drawn by its share of the group's load. To a node it is sent once, however many of its experts are there
(so do DeepEP's normal kernels). With s the share of a group's tokens from node n that node m serves, n's token goes to
m with probability 1 - prod_g (1 - p_g (1 - (1 - s)^(top_k / top_groups))).

Which copy of an expert a token goes to decides what a placement can save:

- *by hash* (vLLM 0.32, `fused_moe/router/base_router.py`: the token's index modulo the copies): every copy serves every
  node alike, so without groups any balanced placement sends about the same, and copies save nothing. Groups do: with a
  group's experts on one node, a token that chose two of them goes there once.
- *own node first*: a token takes a copy of its own node if there is one. Then a copy on each node saves the expert's
  whole traffic. That needs a dispatch that looks at nodes; vLLM 0.32 has none. Copies' loads are uneven then where
  nodes hold different numbers of them: `rank_loads` says how much.

Both are counted, so that a plan made for one says what it comes to in the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experts.plan import BadPlan, Floats, Placement


@dataclass(frozen=True)
class Traffic:
    """The nodes that a group's ranks lie on, equally many on each and in order, and how tokens go to them."""

    nodes: int = 1
    groups: int = 1  # of experts, as many in each and in order (`n_group`)
    top_groups: int = 1  # that a token goes to (`topk_group`)
    top_k: int = 8
    own_node_first: bool = False

    def __post_init__(self) -> None:
        if self.nodes < 1 or not 1 <= self.top_groups <= self.groups or self.top_k < self.top_groups:
            raise BadPlan(
                f"{self.nodes} nodes, top {self.top_groups} of {self.groups} groups, top {self.top_k} experts: there "
                "is at least one node, and a token goes to one group at least and one expert of each"
            )

    def check(self, experts: int, ranks: int) -> None:
        """Raises BadPlan unless experts divide into the groups and ranks over the nodes."""
        if ranks % self.nodes:
            raise BadPlan(f"{ranks} ranks do not lie evenly on {self.nodes} nodes")
        if experts % self.groups:
            raise BadPlan(f"{experts} experts do not divide into {self.groups} groups")


def sent_across_nodes(placement: Placement, load: Floats, traffic: Traffic) -> Floats:
    """By layer, hidden states that all tokens of `load` [layer, expert] together send to other nodes than their own.

    Times the bytes of one (hidden size x 2 in bf16), and as much again for what comes back. Raises BadPlan.
    """
    load = np.asarray(load, np.float64)
    layers, experts = load.shape
    nodes, groups = traffic.nodes, traffic.groups
    traffic.check(experts, placement.experts.shape[1])
    held = placement.held(nodes).astype(np.float64)  # [layer, node, expert]
    evenly = held / held.sum(1, keepdims=True)
    by_group = load.reshape(layers, groups, -1)
    total, of_group = load.sum(1), by_group.sum(2)
    # [layer, group]; a layer without load sends nothing at all
    chosen = np.minimum(traffic.top_groups * _share(of_group, total[:, None]), 1.0)
    sent = np.zeros(layers)
    for node in range(nodes):
        served = evenly
        if traffic.own_node_first:
            here = np.zeros_like(held)
            here[:, node] = 1.0
            served = np.where(held[:, node, None] > 0, here, evenly)
        to_node = (served * load[:, None]).reshape(layers, nodes, groups, -1).sum(3)
        missed = (1.0 - np.minimum(_share(to_node, of_group[:, None]), 1.0)) ** (traffic.top_k / traffic.top_groups)
        goes = 1.0 - np.prod(1.0 - chosen[:, None] * (1.0 - missed), axis=2)  # [layer, node]
        sent += goes.sum(1) - goes[:, node]
    result: Floats = sent / nodes * total / traffic.top_k
    return result


def rank_loads(placement: Placement, load: Floats, traffic: Traffic) -> Floats:
    """Tokens by [layer, rank], as this dispatch spreads them; by hash it is `Placement.rank_loads`."""
    if not traffic.own_node_first:
        return placement.rank_loads(load)
    layers, ranks, _ = placement.experts.shape
    held = placement.held(traffic.nodes).astype(np.float64)
    without = (held == 0).sum(1, keepdims=True)  # nodes whose tokens go to all copies alike
    each = (np.divide(1.0, held, out=np.zeros_like(held), where=held > 0) + without / held.sum(1, keepdims=True)) * (
        load[:, None] / traffic.nodes
    )  # a copy's tokens, by [layer, node, expert]
    slots = np.take_along_axis(each, placement.experts.reshape(layers, traffic.nodes, -1), 2)
    loads: Floats = slots.reshape(layers, ranks, -1).sum(2)
    return loads


def _share(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)
    return shares

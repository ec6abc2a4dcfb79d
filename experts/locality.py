"""Keeps what a token goes to together on few nodes, without making any rank fuller. Pure, numpy.

What counts is `traffic.sent_across_nodes`; here are the steps that lower it. With group-limited routing each group of
experts gets home nodes, one if there are as many groups as nodes, and its copies are drawn there. With a dispatch that
takes a token's own node first, copies of one expert are drawn apart, to as many nodes as there are copies.
"""

from __future__ import annotations

import numpy as np

from experts.plan import Floats, Ints, Placement
from experts.traffic import Traffic

MOST_ROUNDS = 30  # of exchanges a layer, each of up to one with every rank


def homes(load: Floats, traffic: Traffic) -> Floats | None:
    """[layer, expert, node]: 1 where the expert's group is at home; None if routing knows no groups, or one node.

    Nodes get whole groups, the heaviest first to the least loaded node with room for another; when there are more nodes
    than groups, groups get whole nodes, each further one going to the group with most tokens a node.
    """
    if traffic.groups == 1 or traffic.nodes == 1:
        return None
    layers, experts = load.shape
    nodes, groups = traffic.nodes, traffic.groups
    of_group = load.reshape(layers, groups, -1).sum(2)
    home = np.zeros((layers, groups, nodes))
    for layer in range(layers):
        if groups >= nodes:
            loads, room = np.zeros(nodes), np.full(nodes, -(-groups // nodes))
            for group in np.argsort(-of_group[layer], kind="stable"):
                node = int(np.where(room > 0, loads, np.inf).argmin())
                home[layer, group, node] = 1.0
                loads[node] += of_group[layer, group]
                room[node] -= 1
        else:
            count = np.ones(groups, np.int64)
            for _ in range(nodes - groups):
                count[(of_group[layer] / count).argmax()] += 1
            ends = np.cumsum(count)
            for group in range(groups):
                home[layer, group, ends[group] - count[group] : ends[group]] = 1.0
    return np.repeat(home, experts // groups, axis=1)


def homes_in(placement: Placement, load: Floats, traffic: Traffic) -> Floats | None:
    """The same, as a placement in force has them: nodes that serve at least half as much of a group as its first."""
    if traffic.groups == 1 or traffic.nodes == 1:
        return None
    layers, experts = load.shape
    served = placement.held(traffic.nodes) * (load / placement.copies)[:, None]
    of_group = served.reshape(layers, traffic.nodes, traffic.groups, -1).sum(3)
    home = (of_group >= 0.5 * of_group.max(1, keepdims=True)).transpose(0, 2, 1).astype(np.float64)
    return np.repeat(home, experts // traffic.groups, axis=1)


def exchanged(placement: Placement, load: Floats, traffic: Traffic, cap: Floats, home: Floats | None) -> Placement:
    """Exchanges copies between nodes as long as that lowers what is sent and leaves no rank above `cap` [layer].

    All exchanges of two slots are weighed in each round; the best are made, none touching a rank or an expert twice.
    """
    if home is None and not traffic.own_node_first:
        return placement
    placed = placement.experts.copy()
    each = load / placement.copies
    for layer in range(placed.shape[0]):
        for _ in range(MOST_ROUNDS):
            if not _exchange(placed[layer], load[layer], each[layer], traffic, cap[layer], home, layer):
                break
    return Placement(placed, placement.expert_count)


def _exchange(
    here: Ints, load: Floats, each: Floats, traffic: Traffic, cap: float, home: Floats | None, layer: int
) -> bool:
    """One round in one layer, in place: `here` [rank, slot]. Says whether anything was exchanged."""
    ranks, slots = here.shape
    experts = here.ravel()
    rank = np.repeat(np.arange(ranks), slots)
    node = rank // (ranks // traffic.nodes)
    weight = each[experts]
    loads = weight.reshape(ranks, slots).sum(1)
    # What is saved when the copy in a slot goes to a node: [slot, node].
    saved = np.zeros((experts.size, traffic.nodes))
    if home is not None:
        there = home[layer][experts]
        saved += weight[:, None] * (there - there[np.arange(experts.size), node, None])
    if traffic.own_node_first:
        held = np.zeros((traffic.nodes, each.size), np.int64)
        np.add.at(held, (node, experts), 1)
        only = held[node, experts] == 1
        saved += (load[experts] / traffic.nodes)[:, None] * ((held[:, experts].T == 0) * 1.0 - only[:, None])
    saved[np.arange(experts.size), node] = 0.0
    least = 1e-9 * loads.sum()
    first = np.flatnonzero(saved.max(1) > least)  # of two that are exchanged, one at least gets to a better place
    if not first.size:
        return False
    gain = saved[first][:, node] + saved[:, node[first]].T  # [first, slot]
    spread = weight[first, None] - weight  # what the first's rank loses
    fits = (spread >= loads[rank[first], None] - cap) & (spread <= cap - loads[rank]) & (node[first, None] != node)
    gain[~fits] = 0.0
    best = gain.argmax(1)
    value = gain[np.arange(first.size), best]
    touched_ranks, touched_experts, done = set[int](), set[int](), False
    for at in np.argsort(-value, kind="stable"):
        if value[at] <= least:
            break
        a, b = int(first[at]), int(best[at])
        between, moved = {int(rank[a]), int(rank[b])}, {int(experts[a]), int(experts[b])}
        if touched_ranks & between or touched_experts & moved:
            continue
        here.flat[a], here.flat[b] = experts[b], experts[a]
        touched_ranks |= between
        touched_experts |= moved
        done = True
    return done

"""Is a rebalance worth it? What the new placement saves of each step, against what moving to it costs. Pure.

Saved: the step of `sharding.step` with the imbalance that each placement has under the counted load. Where a step is
bound by reading weights, an even load saves next to nothing, and the answer says so. What the fullest rank's link has
more to carry is not in that model, so the saving is rather told too small.

Cost: the rank with most to send or take, at the reached bandwidth of its links, the two kinds one after the other.
vLLM's EPLB moves either at once, and the engine stands still (`use_async` off), or layer by layer beside the traffic,
which is slowed meanwhile.

Sampling: of n tokens counted in a layer, a rank of R gets n/R, give or take sqrt(n/R), and the fullest of R even ones
looks fuller than it is by about sqrt(2 ln R) of that, over the mean: noise = sqrt(2 R ln R / n). A placement fitted to
the count is better on it than it will be, by as much. So the answer is yes only if the gain less the noise pays, no if
the gain and the noise do not, and not enough data between. It pays if it saves more than the move costs, and at least
`LEAST_SAVED` of the time. Tokens of one request are alike, which this does not know: count over many requests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experts.model_spec import ModelSpec
from experts.plan import BadPlan, Floats, PlacementPlan
from experts.sharding import Demand, Layout, step, usual_efficiency
from experts.topology import Cluster

Answer = Literal["yes", "no", "not enough data"]
LEAST_SAVED = 0.002  # of the interval: less than that a roofline cannot tell
FINE = 0.01  # of imbalance: noise that small is none, and the estimate is taken as it is


@dataclass(frozen=True)
class Serving:
    """What the group runs, and how: `sequences` on each data-parallel rank, `interval_s` until the next rebalance."""

    spec: ModelSpec
    cluster: Cluster
    layout: Layout
    demand: Demand
    sequences: int
    interval_s: float
    stops: bool = False  # while weights move: vLLM's EPLB without `use_async`
    slowed: float = 0.1  # of the step rate, while weights move beside the traffic: assumed, not measured

    def __post_init__(self) -> None:
        if not self.layout.by_expert:
            raise BadPlan(f"{self.layout} cuts each expert over all ranks: there is nothing to place")
        if self.sequences < 1 or self.interval_s <= 0 or not 0.0 <= self.slowed <= 1.0:
            raise BadPlan("a group runs one sequence at least, for some time, and is slowed by 0 to 1 of its rate")

    def step_s(self, imbalance: float) -> float:
        demand = dataclasses.replace(self.demand, imbalance=imbalance)
        return step(self.spec, self.cluster, self.layout, demand, self.sequences, usual_efficiency()).seconds


@dataclass(frozen=True)
class Verdict:
    """The answer with its sentence, and what it rests on. Seconds are of serving, over the interval."""

    answer: Answer
    reason: str
    before: float  # imbalance under the counted load, mean of layers
    after: float
    noise: float  # of an imbalance, from counting so few tokens; infinite if a layer has none
    saved_s: float
    lost_s: float
    tokens_needed: int | None = None  # counted in each layer, for a yes or no; None: there are enough


def worth(load: Floats, old: PlacementPlan, new: PlacementPlan, serving: Serving) -> Verdict:
    """Whether to move from `old` to `new`. `load`: tokens counted in the window, by [layer, expert]. Raises BadPlan."""
    load = np.asarray(load, np.float64)
    if load.shape != (new.layers, new.experts):
        raise BadPlan(f"the load is of {load.shape} layers and experts, the plan of {(new.layers, new.experts)}")
    if serving.layout.group != new.ranks:
        raise BadPlan(f"the plan is for {new.ranks} ranks, the layout {serving.layout} has {serving.layout.group}")
    if serving.cluster.gpus_per_node * new.nodes < new.ranks:
        raise BadPlan(f"{new.ranks} ranks need more than {new.nodes} nodes of {serving.cluster}")
    before, after = _mean(old, load), _mean(new, load)
    counted = load.sum(1).min(initial=np.inf)
    noise = math.sqrt(_noise_times_tokens(new.ranks) / counted) if counted else math.inf
    moves = new.moves_from(old)
    if not moves:
        return Verdict("no", "The plan moves nothing: what is in force stays.", before, after, noise, 0.0, 0.0)
    lost = _lost_s(old, new, serving)
    if not math.isfinite(noise):
        needed = _tokens(new.ranks, 10 * FINE)
        reason = f"No token was counted in some layer; at least {needed:,} in each are needed."
        return Verdict("not enough data", reason, before, after, noise, 0.0, lost, needed)

    def saved_s(gain: float) -> float:
        """Over the interval: at the lower step time as many tokens as before take that much less."""
        slow = serving.step_s(before)
        return serving.interval_s * (1.0 - serving.step_s(max(before - gain, 1.0)) / slow)

    gain = before - after
    unsure = noise if noise > FINE else 0.0
    saved = saved_s(gain)
    figures = (
        f"imbalance {before:.3f} -> {after:.3f} saves {saved:.3g} s of {serving.interval_s:g} s, "
        f"moving {len(moves)} copies costs {lost:.3g} s"
    )
    worthwhile = max(lost, LEAST_SAVED * serving.interval_s)
    if saved_s(gain - unsure) > worthwhile:
        return Verdict("yes", f"Worth it: {figures}.", before, after, noise, saved, lost)
    if saved_s(gain + unsure) <= worthwhile:
        bound = gain > FINE and saved <= LEAST_SAVED * serving.interval_s
        why = "; the step is bound by reading weights, not by the fullest rank's work" if bound else ""
        return Verdict("no", f"Not worth it: {figures}{why}.", before, after, noise, saved, lost)
    needed = max(
        _tokens(new.ranks, max(abs(gain - _break_even(saved_s, worthwhile, before)), FINE)), math.ceil(counted) + 1
    )
    reason = (
        f"{counted:,.0f} tokens were counted in the emptiest layer, which leaves the imbalance unsure by {noise:.3f}; "
        f"{needed:,} are needed: {figures}."
    )
    return Verdict("not enough data", reason, before, after, noise, saved, lost, needed)


def _mean(plan: PlacementPlan, load: Floats) -> float:
    return float(plan.placement.imbalance(load).mean())


def _noise_times_tokens(ranks: int) -> float:
    return 2.0 * ranks * math.log(ranks)


def _tokens(ranks: int, noise: float) -> int:
    return math.ceil(_noise_times_tokens(ranks) / noise**2)


def _break_even(saved_s: Callable[[float], float], worthwhile: float, before: float) -> float:
    """The gain in imbalance that saves as much as it must; the whole imbalance if even that does not."""
    low, high = 0.0, before - 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if saved_s(middle) > worthwhile else (middle, high)
    return high


def _lost_s(old: PlacementPlan, new: PlacementPlan, serving: Serving) -> float:
    """Seconds of serving that moving takes."""
    spec, cluster, reached = serving.spec, serving.cluster, usual_efficiency().link
    sent = new.bytes_sent(new.moves_from(old), spec.expert_parameters * serving.demand.weight_bytes)
    seconds = sent.most_within_nodes / (cluster.gpu.link * reached) + sent.most_between_nodes / (
        cluster.network * reached
    )
    return seconds * (1.0 if serving.stops else serving.slowed)

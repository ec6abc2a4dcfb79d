"""From measured steps to the costs of a step: least relative errors, outliers bounded, no cost below zero. Pure.

A step's seconds are linear in its costs, once two things are known. Which experts it touches: that takes one number for
each data set, the `spread` of its decoding sequences over the experts. And which of the steps that no CUDA graph holds
take their launches and no longer: those that compute less than some limit. Both are searched. Several data sets share
all costs: they are one machine and model, and differ in how their tokens are routed.

What rows hardly tell (one stream says little about the pairs of a prompt's attention) is held near what the data sheet
leads one to expect, so weakly that a few rows overrule it; `Cost.uncertainty` says how much is left of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experts.model_spec import ModelSpec
from experts.sharding import passed_parameters
from experts.step_model import StepTime, padded, touched
from experts.topology import GPUS, Gpu
from ops.calibrate.rows import DataSet, Measured

Floats = NDArray[np.float64]

COSTS = (
    "base_s",
    "experts_s",
    "sequence_s",
    "kv_token_s",
    "prefill_token_s",
    "prefill_pair_s",
    "launch_s",
    "request_s",
)
MEASURED_SD = 0.03  # relative: what two measurements of the same step differ by
OUTLIER = 1.5  # standard deviations
EXPECTED_SD = 0.5  # relative: how far a cost may be from what is expected of it
# What engines reach of a data sheet, roughly: of the bandwidth, of the FLOP/s in matrices and in a prompt's attention;
# and what a layer's launches and a request's way take.
_BANDWIDTH, _MATRICES, _ATTENTION = 0.9, 0.45, 0.6
_LAYER_S, _LAUNCH_S, _REQUEST_S = 60e-6, 1e-3, 2e-3
_REWEIGHTED = 8  # times: it settles in a few
_ROUNDS = 6  # of looking where that floor ends: two are usual
_FLOORED = 9.0  # by which a floor has to lower the loss: three standard deviations of a measurement


class Cost(NamedTuple):
    """One cost, in seconds, and how far off it may be, relative to it (one standard deviation)."""

    seconds: float
    uncertainty: float


class Residual(NamedTuple):
    """One row: seconds."""

    measured: Measured
    fitted_s: float

    @property
    def error(self) -> float:
        return self.fitted_s / self.measured.seconds - 1.0


@dataclass(frozen=True)
class Fit:
    """Costs of all data sets together; of each its step time and its rows, in their order."""

    costs: dict[str, Cost]
    steps: tuple[StepTime, ...]
    residuals: tuple[tuple[Residual, ...], ...]

    @property
    def request_s(self) -> float:
        return self.costs["request_s"].seconds


def fit(data_sets: Sequence[DataSet], spec: ModelSpec) -> Fit:
    """`spec`: the model that all of them ran."""
    share = spec.top_k / spec.experts
    expected = _expected(spec, data_sets)
    seconds = np.array([row.seconds for each in data_sets for row in each.measured])

    def design(spreads: Sequence[float], floor: _Floor) -> Floats:
        of_all = zip(data_sets, spreads, strict=True)
        return np.array(
            [_features(r, share, spread, each.graph_sizes, floor) for each, spread in of_all for r in each.measured]
        )

    def solved(spreads: Sequence[float], floor: _Floor) -> tuple[float, Floats]:
        """(loss, costs in units of what is expected)"""
        return robust(*_weighted(design(spreads, floor) * expected, seconds))

    def floored(spreads: Sequence[float], by: Floats) -> _Floor:
        """Where the floor ends, for steps in the order of what they compute `by` those costs."""
        computed = design(spreads, _Floor(by, 0.0))[:, : COSTS.index("launch_s")] @ by[: COSTS.index("launch_s")]
        tried = [_Floor(by, most_s) for most_s in (0.0, *sorted(set(computed.tolist())))]
        return min(tried, key=lambda floor: solved(spreads, floor)[0] + _FLOORED * _launches(design(spreads, floor)))

    def searched(floor: _Floor) -> list[float]:
        return _search(lambda tried: solved(tried, floor)[0], len(data_sets))

    floor = _Floor(expected, 0.0)
    spreads = searched(floor)
    for _ in range(_ROUNDS):
        before = design(spreads, floor)
        floor = floored(spreads, solved(spreads, floor)[1] * expected)
        spreads = searched(floor)
        if (design(spreads, floor) == before).all():
            break
    rows, _ = _weighted(design(spreads, floor) * expected, seconds)
    found = solved(spreads, floor)[1]
    if not _launches(design(spreads, floor)):
        found[COSTS.index("launch_s")] = 0.0
    deviation = np.sqrt(np.diag(np.linalg.inv(rows.T @ rows)))
    relative = np.divide(deviation, found, out=np.full_like(found, math.inf), where=found > 0)
    costs = {
        name: Cost(float(value), float(off)) for name, value, off in zip(COSTS, found * expected, relative, strict=True)
    }
    of_step = {name: cost.seconds for name, cost in costs.items() if name != "request_s"}
    steps = tuple(
        StepTime(**of_step, expert_share=share, spread=spread, graph_sizes=each.graph_sizes)
        for each, spread in zip(data_sets, spreads, strict=True)
    )

    def told(row: Measured, step: StepTime) -> float:
        return sum(step.step_s(*shape) for shape in row.steps) + row.request * costs["request_s"].seconds

    residuals = tuple(
        tuple(Residual(row, told(row, step)) for row in each.measured)
        for each, step in zip(data_sets, steps, strict=True)
    )
    return Fit(costs, steps, residuals)


class _Floor(NamedTuple):
    """Steps that no CUDA graph holds, and that would compute `most_s` at most by these costs, take their launches."""

    by: Floats
    most_s: float


def _launches(design: Floats) -> bool:
    """Whether any of its steps is taken to be one of those."""
    return bool(design[:, COSTS.index("launch_s")].any())


def _features(row: Measured, share: float, spread: float, graph_sizes: tuple[int, ...], floor: _Floor) -> list[float]:
    """What the row has of each of `COSTS`."""
    of = np.zeros(len(COSTS))
    for prefill, attended, sequences, kv in row.steps:
        decoding = padded(prefill, sequences, graph_sizes)
        here = np.array([1.0, touched(prefill, decoding, share, spread), decoding, kv, prefill, attended, 0.0, 0.0])
        launched = graph_sizes and prefill + sequences > graph_sizes[-1]
        if launched and here @ floor.by <= floor.most_s:
            here = np.zeros(len(COSTS))
            here[COSTS.index("launch_s")] = 1.0
        of += here
    of[-1] = float(row.request)
    return list(of)


def _weighted(scaled: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Rows and what they should come to, each over its standard deviation: relative errors, then what is expected."""
    costs = scaled.shape[1]
    rows = np.vstack([scaled / seconds[:, None] / MEASURED_SD, np.eye(costs) / EXPECTED_SD])
    return rows, np.concatenate([np.full(len(seconds), 1 / MEASURED_SD), np.full(costs, 1 / EXPECTED_SD)])


def robust(rows: Floats, wanted: Floats) -> tuple[float, Floats]:
    """(loss, x >= 0) where what is off by more than OUTLIER counts linearly instead of squared (Huber, 1964).

    Here and there a step is measured at twice what it takes, as by a kernel that is compiled meanwhile.
    """
    weights = np.ones(len(wanted))
    for _ in range(_REWEIGHTED):
        found = non_negative(rows * weights[:, None], wanted * weights)
        off = np.abs(rows @ found - wanted)
        before, weights = weights, np.sqrt(np.minimum(1.0, OUTLIER / np.maximum(off, 1e-12)))
        if np.allclose(before, weights, atol=1e-3):
            break
    return float(np.where(off <= OUTLIER, off**2, OUTLIER * (2 * off - OUTLIER)).sum()), found


def non_negative(rows: Floats, wanted: Floats) -> Floats:
    """x >= 0 that makes |rows x - wanted| least. Rows are of full rank.

    Lawson and Hanson's active sets (Solving Least Squares Problems, 1974, chapter 23).
    """
    count = rows.shape[1]
    free: NDArray[np.bool_] = np.zeros(count, bool)
    found = np.zeros(count)
    while True:
        gain = np.where(free, 0.0, rows.T @ (wanted - rows @ found))
        if free.all() or gain.max() <= 1e-9 * np.abs(rows.T @ wanted).max():
            return found
        free[gain.argmax()] = True
        while True:
            tried = np.zeros(count)
            tried[free] = np.linalg.lstsq(rows[:, free], wanted, rcond=None)[0]
            below = free & (tried <= 0)
            if not below.any():
                break
            step = (found[below] / (found[below] - tried[below])).min()
            found += step * (tried - found)
            free &= found > 1e-12 * found.max()
            found[~free] = 0.0
        found = tried


def _search(loss: Callable[[list[float]], float], count: int) -> list[float]:
    """The spread of each data set in turn, coarsely and then finely, until none moves."""
    spreads = [1.0] * count
    for steps in (20, 200, 2000):
        moved = True
        while moved:
            moved = False
            for at in range(count):
                near = _grid(spreads[at], steps)
                best = min(near, key=lambda s: loss([*spreads[:at], s, *spreads[at + 1 :]]))
                moved |= best != spreads[at]
                spreads[at] = best
    return spreads


def _grid(around: float, steps: int) -> list[float]:
    """All of the coarsest grid, and of a finer one what lies within a step of the coarser; `around` comes first."""
    if steps == 20:
        return [around, *(round(1.0 - i / steps, 4) for i in range(steps + 1))]
    return [around, *(s for i in range(-10, 11) if 0.0 <= (s := round(around + i / steps, 4)) <= 1.0)]


def _expected(spec: ModelSpec, data_sets: Sequence[DataSet]) -> Floats:
    """Each cost by the data sheet of the data sets' GPU; of one that we do not know, an H200's, slower as a whole."""
    known = GPUS.get(data_sets[0].gpu)
    costs = _by_data_sheet(spec, known or GPUS["H200-141GB"])
    if known:
        return costs
    share = spec.top_k / spec.experts
    times = [
        math.log(row.seconds / float(np.dot(_features(row, share, 1.0, each.graph_sizes, _Floor(costs, 0.0)), costs)))
        for each in data_sets
        for row in each.measured
    ]
    return costs * math.exp(sum(times) / len(times))


def _by_data_sheet(spec: ModelSpec, gpu: Gpu) -> Floats:
    """In bf16, in the order of `COSTS`."""
    read_s, computed_s = 1 / (gpu.bandwidth * _BANDWIDTH), 1 / (gpu.bf16_flops * _MATRICES)
    token_s = 2 * passed_parameters(spec) * computed_s
    pair_s = spec.layers * spec.attention.prefill_flop_per_pair() / (gpu.bf16_flops * _ATTENTION)
    return np.array(
        [
            spec.layers * _LAYER_S,
            2 * spec.routed_parameters * read_s,
            token_s,
            spec.kv_bytes_per_token() * read_s,
            token_s,
            pair_s,
            spec.layers * _LAUNCH_S,
            _REQUEST_S,
        ]
    )

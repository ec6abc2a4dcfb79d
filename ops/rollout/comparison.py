"""Whether one sample is larger than another: statistics for few, skewed values that resemble their neighbours. Pure.

Latencies and lengths are compared by ranks, within a prompt size and within the same seconds, so that neither a long
tail nor another mix of sizes nor a burst misleads: van Elteren's stratified form of the test of Mann and Whitney. What
still makes requests resemble each other, as a slow moment of one replica, shows in how the seconds differ; the variance
is what that says, and never below that of independent requests.
"""

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ops.rollout.samples import Stratum

Floats = npt.NDArray[np.float64]

NORMAL = NormalDist()
FEWEST = 8  # values on each side below which ranks tell nothing
SLOTS = 24  # at most, that a window is cut into: the longer it is, the longer a moment may last
SLOTS_APART = 8  # where two times are compared, and a lasting moment of one of them is nowhere in the other
MOMENT_BINS = 8  # of a slot there at least: what is a moment long would look like a difference that lasts
PAIRED = 192  # values of a side of which all pairs are taken for the ratio


class Compared(NamedTuple):
    """How a sample compares with another."""

    z: float  # above 0: it is larger; as of a normal distribution
    larger: float  # the chance that one of it is larger than one of the other, ties halved
    ratio: float  # how many times as large it is (Hodges and Lehmann)
    n: int  # values compared
    n_other: int

    @property
    def p_larger(self) -> float:
        """The chance of such a difference, or a larger one, if it were not larger."""
        return NORMAL.cdf(-self.z)

    @property
    def p_smaller(self) -> float:
        return NORMAL.cdf(self.z)


def compare(
    one: Mapping[str, Stratum], other: Mapping[str, Stratum], factor: float = 1.0, same_time: bool = True
) -> Compared | None:
    """`one` over `factor`, compared with `other`. None: too few of either that are alike.

    `same_time`: bins of the same number are the same seconds. Else they are of two times and only sizes are alike.
    """
    pairs = _pairs(one, other, math.log(factor), same_time)
    n, n_other = sum(len(pair.x) for pair in pairs), sum(len(pair.y) for pair in pairs)
    if n < FEWEST or n_other < FEWEST:
        return None
    weights = np.array([len(pair.x) * len(pair.y) / (len(pair.x) + len(pair.y) + 1) for pair in pairs])  # van Elteren's
    weights /= weights.sum()
    below = [_below(pair.x, pair.y) for pair in pairs]
    chances = np.array([share.mean() for share in below])
    larger = float(weights @ chances)
    if same_time:
        moments = [
            (pair.slots[0], weight * (chance - larger))
            for pair, weight, chance in zip(pairs, weights, chances, strict=True)
        ]
        spread, freedom = _spread(moments)
    else:
        spread, freedom = _spread_apart(pairs, weights, below, larger)
    of_independent = [(len(x) + len(y) + 1) / (12.0 * len(x) * len(y)) for x, y, _, _ in pairs]
    t = (larger - 0.5) / math.sqrt(max(float(weights**2 @ np.array(of_independent)), spread))
    ratio = math.exp(float(weights @ np.array([_shift(pair.x, pair.y) for pair in pairs])) + math.log(factor))
    return Compared(_as_normal(t, freedom), larger, ratio, n, n_other)


class _Pair(NamedTuple):
    """Values that are alike but for the version."""

    x: Floats
    y: Floats
    slots: list[int]  # of each of x; of all alike where both are of the same time
    other_slots: list[int]


def _pairs(one: Mapping[str, Stratum], other: Mapping[str, Stratum], minus: float, same_time: bool) -> list[_Pair]:
    shared = sorted(one.keys() & other.keys())
    width, other_width = _width(one, shared, same_time), _width(other, shared, same_time)
    if same_time:
        width = other_width = max(width, other_width)
    pairs = []
    for size in shared:
        x, y = np.array(one[size].logs) - minus, np.array(other[size].logs)
        slots, other_slots = np.array(one[size].bins) // width, np.array(other[size].bins) // other_width
        if not same_time:
            pairs.append(_Pair(x, y, slots.tolist(), other_slots.tolist()))
            continue
        for slot in np.intersect1d(slots, other_slots).tolist():
            pairs.append(_Pair(x[slots == slot], y[other_slots == slot], [slot], [slot]))
    return [pair for pair in pairs if len(pair.x) and len(pair.y)]


def _width(of: Mapping[str, Stratum], sizes: list[str], same_time: bool) -> int:
    """Bins of a slot."""
    last = max((bin for size in sizes for bin in of[size].bins), default=0)
    return -(-(last + 1) // SLOTS) if same_time else max(-(-(last + 1) // SLOTS_APART), MOMENT_BINS)


def _spread(moments: Iterable[tuple[int, float]]) -> tuple[float, int]:
    """Variance of a sum by how its slots' parts differ from 0, and that figure's degrees of freedom."""
    sums: dict[int, float] = {}
    for slot, part in moments:
        sums[slot] = sums.get(slot, 0.0) + part
    if len(sums) < 2:
        return 0.0, 0
    return sum(part * part for part in sums.values()) * len(sums) / (len(sums) - 1), len(sums) - 1


def _spread_apart(pairs: list[_Pair], weights: Floats, below: list[Floats], larger: float) -> tuple[float, int]:
    """The same of two times: each has its own moments, and both count (Obuchowski 1997, clustered ROC curves)."""
    spreads = []
    for side in (0, 1):
        moments = []
        for pair, weight, shares in zip(pairs, weights, below, strict=True):
            of = shares if side == 0 else 1.0 - _below(pair.y, pair.x)
            slots = pair.slots if side == 0 else pair.other_slots
            moments += [
                (slot, weight * (share - larger) / len(of)) for slot, share in zip(slots, of.tolist(), strict=True)
            ]
        spreads.append(_spread(moments))
    return sum(spread for spread, _ in spreads), min(freedom for _, freedom in spreads)


def _below(of: Floats, among: Floats) -> Floats:
    """For each value the share of `among` that is below it, ties halved."""
    ordered = np.sort(among)
    below, up_to = np.searchsorted(ordered, of, "left"), np.searchsorted(ordered, of, "right")
    shares: Floats = (below + up_to) / (2.0 * len(among))
    return shares


def _shift(one: Floats, other: Floats) -> float:
    """The median of all pairs' differences."""
    x, y = one[:: -(-len(one) // PAIRED)], other[:: -(-len(other) // PAIRED)]
    return float(np.median(np.subtract.outer(x, y)))


def _as_normal(t: float, freedom: int) -> float:
    """The normal deviate that is as rare as `t` of Student's distribution (Wallace 1959)."""
    if freedom < 1:
        return 0.0
    size = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(size, t)


def more_often(strata: Iterable[tuple[int, int, int, int]]) -> float:
    """The chance of so many hits in all, or more, if both had the same share of them in each stratum.

    A stratum is hits, of how many, the other's hits, of how many. Fisher's exact test, over strata.
    """
    chances, hits_in_all = np.ones(1), 0
    for hits, of, other_hits, of_other in strata:
        total, everything = hits + other_hits, of + of_other
        if not total or not of or not of_other:
            continue  # it tells nothing
        logs = [
            _log_choose(total, count) + _log_choose(everything - total, of - count) - _log_choose(everything, of)
            if max(0, of - everything + total) <= count <= min(total, of)
            else -math.inf
            for count in range(total + 1)
        ]
        chances, hits_in_all = np.convolve(chances, np.exp(logs)), hits_in_all + hits
    return min(float(chances[hits_in_all:].sum()), 1.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def most_above(hits: int, of: int, other_hits: int, of_other: int, level: float) -> float:
    """By how much the share of hits is higher at most, with that one-sided level (Newcombe 1998, from Wilson's)."""
    z = NORMAL.inv_cdf(1.0 - level)
    share, other = hits / of, other_hits / of_other
    highest, lowest = _wilson(share, of, z), _wilson(other, of_other, -z)
    return share - other + math.sqrt((highest - share) ** 2 + (other - lowest) ** 2)


def _wilson(share: float, n: int, z: float) -> float:
    """One end of Wilson's interval: the upper one for z > 0."""
    middle = share + z * z / (2 * n)
    return (middle + z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)

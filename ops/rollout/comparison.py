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
    shared = sorted(one.keys() & other.keys())
    last = max((bin for size in shared for bin in (*one[size].bins, *other[size].bins)), default=0)
    width = -(-(last + 1) // SLOTS)
    strata = []
    for size in shared:
        xs, ys = _slots(one[size], width), _slots(other[size], width)
        if same_time:
            strata += [(slot, xs[slot], ys[slot]) for slot in sorted(xs.keys() & ys.keys())]
        elif xs and ys:
            strata.append((0, np.concatenate(list(xs.values())), np.concatenate(list(ys.values()))))
    n, n_other = sum(len(x) for _, x, _ in strata), sum(len(y) for _, _, y in strata)
    if n < FEWEST or n_other < FEWEST:
        return None
    weights = np.array([len(x) * len(y) / (len(x) + len(y) + 1) for _, x, y in strata])  # van Elteren's
    weights /= weights.sum()
    chances = np.array([_chance_larger(x - math.log(factor), y) for _, x, y in strata])
    larger = float(weights @ chances)
    of_independent = np.array([(len(x) + len(y) + 1) / (12.0 * len(x) * len(y)) for _, x, y in strata])
    variance = float(weights**2 @ of_independent)
    apart = np.zeros(SLOTS)
    np.add.at(apart, [slot for slot, _, _ in strata], weights * (chances - larger))
    slots = len({slot for slot, _, _ in strata})
    if slots > 1:
        variance = max(variance, float(apart @ apart) * slots / (slots - 1))
    ratio = math.exp(float(weights @ np.array([_shift(x, y) for _, x, y in strata])))
    freedom = slots - 1 if same_time else min(n, SLOTS) - 1
    return Compared(_as_normal((larger - 0.5) / math.sqrt(variance), freedom), larger, ratio, n, n_other)


def _slots(stratum: Stratum, width: int) -> dict[int, Floats]:
    """The values by slot of so many bins."""
    values: dict[int, list[float]] = {}
    for bin, value in zip(stratum.bins, stratum.logs, strict=True):
        values.setdefault(bin // width, []).append(value)
    return {slot: np.array(of) for slot, of in values.items()}


def _chance_larger(one: Floats, other: Floats) -> float:
    """That one of `one` is larger than one of `other`, ties halved."""
    ordered = np.sort(other)
    below, up_to = np.searchsorted(ordered, one, "left"), np.searchsorted(ordered, one, "right")
    return float((below + up_to).mean()) / (2.0 * len(other))


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

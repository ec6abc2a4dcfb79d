"""What a rollout's gates are told of each version's requests: bounded, by prompt size and time. Pure: times are passed.

A window takes requests that began within it, of all versions alike: what began before a change of shares, or before the
new version served at all, would be compared with nothing of the same kind.
"""

import math
import random
from bisect import bisect_left
from collections import Counter
from typing import NamedTuple

import msgspec

SIZES = (64, 256, 1024, 4096, 16384)  # prompt tokens; upper ends of the strata, the last is open
KEPT = 512  # requests of one version, metric and stratum: a random choice of all
BIN_S = 2.0  # requests of the same seconds resemble each other, so that they are compared with these
MAX_BINS = 512  # of a window; when it is longer they double
TTFT, TPOT, LENGTH = "ttft", "tpot", "length"


class Stratum(msgspec.Struct, frozen=True):
    """One metric of the requests of one prompt size. `logs[i]` fell into `bins[i]`."""

    seen: int  # requests in all, of which at most KEPT are kept
    bins: tuple[int, ...] = ()  # since the window's beginning, by when the request began; of all versions alike
    logs: tuple[float, ...] = ()  # natural logarithms of seconds or tokens


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """One version's requests of one window."""

    since_s: float  # the window's beginning
    ended: int = 0  # that tell something: served whole, or failed
    failed: int = 0  # of these
    counts: dict[int, tuple[int, int]] = {}  # by bin: how many ended, and how many of these failed
    running: int | None = None  # in flight now; None: not told, and then it is not known whether answers find an end
    mirrored: int = 0  # of `ended`: copies, which are in no latency
    ttft: dict[str, Stratum] = {}  # by stratum, "0" the smallest prompts
    tpot: dict[str, Stratum] = {}
    length: dict[str, Stratum] = {}  # of answers that the model ended, or that met their limit

    def metric(self, name: str) -> dict[str, Stratum]:
        found: dict[str, Stratum] = getattr(self, name)
        return found


class Request(NamedTuple):
    """One engine request that ended, and tells something of its version: neither shed nor given up by its client."""

    version: str
    began_s: float  # when it came to the gateway
    prompt_tokens: int
    ttft_s: float | None = None  # None: it had no token
    tpot_s: float | None = None  # mean of the further tokens; None: it had one, or none
    output_tokens: int = 0
    failed: bool = False
    mirror: bool = False  # a copy, which waits behind all others: its latency tells nothing


class _Reservoir:
    def __init__(self) -> None:
        self.seen, self.bins, self.logs = 0, list[int](), list[float]()

    def add(self, bin: int, value: float, rng: random.Random) -> None:
        self.seen += 1
        if len(self.logs) < KEPT:
            self.bins.append(bin)
            self.logs.append(math.log(value))
        elif (at := rng.randrange(self.seen)) < KEPT:
            self.bins[at], self.logs[at] = bin, math.log(value)

    def stratum(self) -> Stratum:
        return Stratum(self.seen, tuple(self.bins), tuple(self.logs))


class _Version:
    def __init__(self) -> None:
        self.mirrored = 0
        self.running: int | None = None
        self.ended: Counter[int] = Counter()  # by bin
        self.failed: Counter[int] = Counter()
        self.reservoirs: dict[tuple[str, int], _Reservoir] = {}

    def add(self, metric: str, size: int, bin: int, value: float, rng: random.Random) -> None:
        self.reservoirs.setdefault((metric, size), _Reservoir()).add(bin, value, rng)

    def coarsen(self) -> None:
        """Bins of twice the length."""
        for name in ("ended", "failed"):
            halved: Counter[int] = Counter()
            for bin, count in getattr(self, name).items():
                halved[bin // 2] += count
            setattr(self, name, halved)
        for reservoir in self.reservoirs.values():
            reservoir.bins = [bin // 2 for bin in reservoir.bins]

    def samples(self, since_s: float) -> Samples:
        by_metric: dict[str, dict[str, Stratum]] = {TTFT: {}, TPOT: {}, LENGTH: {}}
        for (metric, size), reservoir in sorted(self.reservoirs.items()):
            by_metric[metric][str(size)] = reservoir.stratum()
        return Samples(
            since_s=since_s,
            ended=self.ended.total(),
            failed=self.failed.total(),
            counts={bin: (count, self.failed[bin]) for bin, count in self.ended.items()},
            running=self.running,
            mirrored=self.mirrored,
            ttft=by_metric[TTFT],
            tpot=by_metric[TPOT],
            length=by_metric[LENGTH],
        )


class Window:
    """Collects the requests that began at `since_s` or later. A rollout's is made anew when its `watch_s` changes."""

    def __init__(self, since_s: float, seed: int = 0) -> None:
        self.since_s, self._bin_s = since_s, BIN_S
        self._rng = random.Random(seed)
        self._versions: dict[str, _Version] = {}

    def add(self, request: Request) -> None:
        """One that began before the window is left out."""
        if request.began_s < self.since_s:
            return
        while (bin := int((request.began_s - self.since_s) // self._bin_s)) >= MAX_BINS:
            self._bin_s *= 2.0
            for version in self._versions.values():
                version.coarsen()
        of, size = self._versions.setdefault(request.version, _Version()), bisect_left(SIZES, request.prompt_tokens)
        of.ended[bin] += 1
        of.mirrored += request.mirror
        if request.failed:
            of.failed[bin] += 1
            return
        if request.output_tokens > 0:
            of.add(LENGTH, size, bin, request.output_tokens, self._rng)
        for metric, value in ((TTFT, request.ttft_s), (TPOT, request.tpot_s)):
            if value is not None and value > 0.0 and not request.mirror:
                of.add(metric, size, bin, value, self._rng)

    def running(self, by_version: dict[str, int]) -> None:
        """Requests in flight now, as the gateways or the router count them; those before the window included.

        A version that is not named has none. To be told before each `samples`.
        """
        for name in by_version:
            self._versions.setdefault(name, _Version())
        for name, of in self._versions.items():
            of.running = by_version.get(name, 0)

    def samples(self) -> dict[str, Samples]:
        """By version; what nothing was told of is not there."""
        return {name: of.samples(self.since_s) for name, of in self._versions.items()}


def thinned(samples: Samples, kept: int) -> Samples:
    """The same with at most so many values of each metric and stratum, to be stored."""

    def thin(strata: dict[str, Stratum]) -> dict[str, Stratum]:
        return {
            size: Stratum(s.seen, s.bins[:: (step := -(-len(s.logs) // kept) or 1)], s.logs[::step])
            for size, s in strata.items()
        }

    return msgspec.structs.replace(
        samples, counts={}, ttft=thin(samples.ttft), tpot=thin(samples.tpot), length=thin(samples.length)
    )

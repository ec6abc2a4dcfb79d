"""What a rollout's gates are told of each version's requests: bounded, by prompt size and time. Pure: times are passed.

A window takes requests that began within it, of all versions alike: what began before a change of shares, or before the
new version served at all, would be compared with nothing of the same kind.
"""

import bisect
import math
import random
from typing import NamedTuple

import msgspec

SIZES = (64, 256, 1024, 4096, 16384)  # prompt tokens; upper ends of the strata, the last is open
KEPT = 512  # requests of one version, metric and stratum: a random choice of all
BIN_S = 5.0  # requests of the same seconds resemble each other; the gates count them by these
TTFT, TPOT, LENGTH = "ttft", "tpot", "length"


class Stratum(msgspec.Struct, frozen=True):
    """One metric of the requests of one prompt size. `logs[i]` fell into `bins[i]`."""

    seen: int  # requests in all, of which at most KEPT are kept
    bins: tuple[int, ...] = ()  # of BIN_S since the window's beginning, by when the request began
    logs: tuple[float, ...] = ()  # natural logarithms of seconds or tokens


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """One version's requests of one window."""

    since_s: float  # the window's beginning
    ended: int = 0  # that tell something: served whole, or failed
    failed: int = 0  # of these
    failed_bins: int = 0  # in so many different BIN_S: one mishap makes many at once
    running: int = 0  # not ended yet
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
        self.ended = self.failed = self.mirrored = self.running = 0
        self.failed_bins: set[int] = set()
        self.reservoirs: dict[tuple[str, int], _Reservoir] = {}

    def add(self, metric: str, size: int, bin: int, value: float, rng: random.Random) -> None:
        self.reservoirs.setdefault((metric, size), _Reservoir()).add(bin, value, rng)

    def samples(self, since_s: float) -> Samples:
        by_metric: dict[str, dict[str, Stratum]] = {TTFT: {}, TPOT: {}, LENGTH: {}}
        for (metric, size), reservoir in sorted(self.reservoirs.items()):
            by_metric[metric][str(size)] = reservoir.stratum()
        return Samples(
            since_s=since_s,
            ended=self.ended,
            failed=self.failed,
            failed_bins=len(self.failed_bins),
            running=self.running,
            mirrored=self.mirrored,
            ttft=by_metric[TTFT],
            tpot=by_metric[TPOT],
            length=by_metric[LENGTH],
        )


class Window:
    """Collects the requests that began at `since_s` or later. A rollout's is made anew when its `watch_s` changes."""

    def __init__(self, since_s: float, seed: int = 0) -> None:
        self.since_s = since_s
        self._rng = random.Random(seed)
        self._versions: dict[str, _Version] = {}

    def add(self, request: Request) -> None:
        """One that began before the window is left out."""
        if request.began_s < self.since_s:
            return
        of = self._versions.setdefault(request.version, _Version())
        bin, size = int((request.began_s - self.since_s) // BIN_S), bisect.bisect_left(SIZES, request.prompt_tokens)
        of.ended += 1
        of.mirrored += request.mirror
        if request.failed:
            of.failed += 1
            of.failed_bins.add(bin)
            return
        if request.output_tokens > 0:
            of.add(LENGTH, size, bin, request.output_tokens, self._rng)
        for metric, value in ((TTFT, request.ttft_s), (TPOT, request.tpot_s)):
            if value is not None and value > 0.0 and not request.mirror:
                of.add(metric, size, bin, value, self._rng)

    def running(self, by_version: dict[str, int]) -> None:
        """Requests in flight now, as the gateways or the router count them; those before the window included."""
        for name, running in by_version.items():
            self._versions.setdefault(name, _Version()).running = running

    def samples(self) -> dict[str, Samples]:
        """By version; what nothing was told of is not there."""
        return {name: of.samples(self.since_s) for name, of in self._versions.items()}

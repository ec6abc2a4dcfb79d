"""Carries out a `Swap`: another version's weights into a running engine core, or the old ones back if that fails.

finishing   what runs may end, for `finish_s` seconds; the rest is cut off and resumes elsewhere
verifying   the files are those that the manifest names (begun beside `finishing`)
loading     the core reloads its weights and forgets its caches; the checksum is compared
probing     golden prompts, straight in the core
done        or failed, with the weights that it had
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from experts.placement import ShardPlacement
from experts.versions import mismatch
from replicas.core import Probed
from replicas.core_host import ReloadEnded
from replicas.messages import Probe, Swap, SwapReport


class Host(Protocol):
    """What a swap needs of `engine_host.EngineHost`."""

    async def reload(self, directory: str, expected: str, limit_s: float) -> ReloadEnded: ...

    async def probe(self, probes: tuple[Probe, ...], limit_s: float) -> list[Probed]: ...


class Weights(NamedTuple):
    """What a core serves."""

    version: str
    directory: str
    checksum: str  # "": not known


class Outcome(NamedTuple):
    """How a swap ended."""

    report: SwapReport
    serves: Weights
    reloaded: ReloadEnded | None  # the last reload; None: the core was not touched


class Judged(NamedTuple):
    """What became of the golden prompts."""

    exact: int = 0  # that ended with their answer
    asked: int = 0  # that have one
    logprob_distance: float | None = None  # mean |difference| over all tokens that have a reference; None: none has

    def fails(self, swap: Swap) -> str:
        """Why the version is not to be served, a sentence; "" if it may."""
        if self.exact < swap.min_exact:
            return f"{self.exact} of {self.asked} golden prompts gave their answer, and {swap.min_exact} must"
        limit = swap.max_logprob_distance
        if limit is not None and any(probe.logprobs for probe in swap.probes):
            if self.logprob_distance is None:
                return "the core told no log-probabilities of the golden prompts"
            if not self.logprob_distance <= limit:  # nor if it is not a number
                return f"the golden prompts' log-probabilities are off by {self.logprob_distance:.4g}, over {limit:.4g}"
        return ""


def judge(probes: Sequence[Probe], probed: Sequence[Probed]) -> Judged:
    """Compares what a core made of the probes, in their order."""
    exact = asked = count = 0
    distance = 0.0
    for probe, (tokens, logprobs) in zip(probes, probed, strict=True):
        if probe.answer:
            asked += 1
            exact += tokens[-len(probe.answer) :] == probe.answer
        if probe.logprobs and logprobs:
            pairs = list(zip(probe.logprobs, logprobs, strict=True))
            distance += sum(abs(wanted - got) for wanted, got in pairs)
            count += len(pairs)
    return Judged(exact, asked, distance / count if count else None)


def damage(directory: str, digests: dict[str, str]) -> str:
    """What is wrong with the files, a sentence; "" if they have these SHA-256 digests. Reads them all; blocking."""
    found = (mismatch(Path(directory) / name, wanted) for name, wanted in digests.items())
    return next(filter(None, found), "")


class _Failed(Exception):
    """The swap fails, for this reason."""


class Swapping:
    """One swap."""

    def __init__(
        self, swap: Swap, host: Host, has: Weights, limit_s: float, tell: Callable[[SwapReport], None]
    ) -> None:
        """`limit_s`: seconds that one reload, or all probes, may take. `tell` is called as each phase begins."""
        self._swap, self._host, self._has, self._limit_s, self._tell = swap, host, has, limit_s, tell
        self._report = SwapReport(id=swap.id, version=swap.version, phase="finishing")
        self._reloaded: ReloadEnded | None = None

    async def run(self, until_idle: Callable[[float], Awaitable[None]]) -> Outcome:
        """`until_idle` returns when nothing runs, or after so many seconds. EngineFailed: the core is dead or hangs."""
        swap, serves = self._swap, self._has
        try:
            await self._finish(until_idle)
            checksum = await self._load()
            await self._probe()
        except _Failed as failure:
            self._report = msgspec.structs.replace(self._report, phase="failed", detail=str(failure))
            if self._reloaded is not None and (not self._reloaded.failure or self._reloaded.touched):
                await self._go_back()
        else:
            self._report = msgspec.structs.replace(self._report, phase="done")
            serves = Weights(swap.version, swap.directory, checksum)
        return Outcome(self._report, serves, self._reloaded)

    def _enter(self, phase: str) -> None:
        self._report = msgspec.structs.replace(self._report, phase=phase)
        self._tell(self._report)

    async def _finish(self, until_idle: Callable[[float], Awaitable[None]]) -> None:
        verifying = asyncio.ensure_future(asyncio.to_thread(damage, self._swap.directory, self._swap.sha256))
        self._enter("finishing")
        idle = asyncio.ensure_future(until_idle(self._swap.finish_s))
        try:
            await asyncio.wait([verifying, idle], return_when=asyncio.FIRST_COMPLETED)
            if not (verifying.done() and verifying.result()):  # damaged files: what runs here may as well go on
                await idle
            if not verifying.done():
                self._enter("verifying")
            if damaged := await verifying:
                raise _Failed(damaged)
        finally:
            idle.cancel()

    async def _load(self) -> str:
        self._enter("loading")
        began = time.monotonic()
        self._reloaded = await self._host.reload(self._swap.directory, self._swap.checksum, self._limit_s)
        if failure := self._reloaded.failure:
            raise _Failed(failure)
        seconds = time.monotonic() - began
        self._report = msgspec.structs.replace(self._report, seconds=seconds, checksum=self._reloaded.checksum)
        return self._reloaded.checksum

    async def _probe(self) -> None:
        if not self._swap.probes:
            return
        self._enter("probing")
        judged = judge(self._swap.probes, await self._host.probe(self._swap.probes, self._limit_s))
        exact, asked, distance = judged
        self._report = msgspec.structs.replace(self._report, exact=exact, asked=asked, logprob_distance=distance)
        if failure := judged.fails(self._swap):
            raise _Failed(failure)

    async def _go_back(self) -> None:
        self._reloaded = await self._host.reload(self._has.directory, self._has.checksum, self._limit_s)
        if failure := self._reloaded.failure:
            detail = f"{self._report.detail}; and the weights that it had cannot be loaded again: {failure}"
            self._report = msgspec.structs.replace(self._report, detail=detail, broken=True)


def placed(outcome: Outcome, before: tuple[ShardPlacement, ...]) -> tuple[ShardPlacement, ...]:
    """Which shard holds which experts after a swap."""
    return outcome.reloaded.shards if outcome.reloaded and outcome.reloaded.shards else before

"""Tiles of vLLM's fused-MoE kernel: which there are for a shape of experts, and which to time next. Pure.

vLLM looks its tiles up by the number of tokens in a step, in a file for the GPU and the experts' shape, and has a rule
of thumb where it brings no such file. For each of some numbers of tokens many tiles are timed a few times, the fastest
of them more often, the fastest of those long enough to be sure (successive halving); vLLM's own is timed beside them in
each round. As in `search`, nothing is remembered here: what is next follows from the runs that were made.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# In the order in which they are tuned: those that serve most first, so that a search cut off has those.
BATCHES = (64, 256, 16, 1024, 1, 4096, 128, 512, 32, 2048, 8, 8192, 96, 192, 4, 2, 24, 48, 384, 1536, 3072, 16384)
ROUNDS = ((5, 40), (20, 10), (100, 3))  # calls of each tile; tiles, vLLM's own not counted
WORTH = 1.02  # a tile has to be so much faster than vLLM's own to stand in its place
_MOST_ACCUMULATED = 128  # values of a tile's output in one thread: more would spill


class Tile(NamedTuple):
    """One configuration of the kernel."""

    block_m: int  # rows: an expert's tokens
    block_n: int
    block_k: int
    group_m: int  # blocks of rows that share the weights in L2
    warps: int
    stages: int

    def as_vllm(self) -> dict[str, int]:
        """As vLLM's files have it."""
        return {
            "BLOCK_SIZE_M": self.block_m,
            "BLOCK_SIZE_N": self.block_n,
            "BLOCK_SIZE_K": self.block_k,
            "GROUP_SIZE_M": self.group_m,
            "SPLIT_K": 1,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


class Experts(NamedTuple):
    """Those of one layer on one GPU. `weight_bytes`: 2 for bf16, 1 for int8 W8A8."""

    number: int
    width: int
    hidden: int
    top_k: int
    weight_bytes: int = 2


@dataclass(frozen=True)
class Run:
    """`calls` of the layer with so many tokens. `tile` None: vLLM's own. `us`: of a call; None: it does not run."""

    batch: int
    tile: Tile | None
    calls: int
    us: float | None


def tiles(experts: Experts, batch: int, shared_bytes: int) -> list[Tile]:
    """That can be worth a try, shuffled, always in the same order. `shared_bytes`: of memory that a block may use."""
    found = list(_fitting(experts, batch, shared_bytes))
    random.Random(0).shuffle(found)
    return found


def _fitting(experts: Experts, batch: int, shared_bytes: int) -> Iterator[Tile]:
    per_expert = batch * experts.top_k / experts.number
    for block_m in (16, 32, 64, 128, 256):
        if (block_m > 16 and block_m > 4 * per_expert) or 8 * block_m < per_expert:
            continue  # most of a block would be padding, or each expert's weights be read again and again
        for block_n in (32, 64, 128, 256):
            for block_k in (64, 128, 256):
                if block_n > 2 * experts.width or block_k > min(experts.hidden, experts.width):
                    continue
                for warps in (4, 8):
                    each = block_m * block_n / (32 * warps)
                    if not 4 <= each <= _MOST_ACCUMULATED:
                        continue
                    for stages in (2, 3, 4, 5):
                        staged = (block_m + block_n) * block_k * experts.weight_bytes * stages
                        if staged > shared_bytes:
                            continue
                        for group_m in (1, 16) if per_expert > block_m else (1,):
                            yield Tile(block_m, block_n, block_k, group_m, warps, stages)


def next_run(
    experts: Experts, runs: Sequence[Run], shared_bytes: int, batches: Sequence[int] = BATCHES
) -> tuple[int, Tile | None, int] | None:
    """Tokens, tile and calls to time next; None: all is known."""
    best: list[Tile] = []  # of the batches before, likely to be good for this one
    for batch in batches:
        of_batch = {(run.tile, run.calls): run.us for run in runs if run.batch == batch}
        field: list[Tile] = list(dict.fromkeys([*reversed(best), *tiles(experts, batch, shared_bytes)]))
        for calls, count in ROUNDS:
            field = field[:count]
            for tile in (None, *field):
                if (tile, calls) not in of_batch:
                    return batch, tile, calls
            timed = [(us, tile) for tile in field if (us := of_batch[tile, calls]) is not None]
            field = [tile for _, tile in sorted(timed)]
        best += field[:1]
    return None


def chosen(runs: Sequence[Run], batches: Sequence[int] = BATCHES) -> dict[int, tuple[Tile | None, float]]:
    """By tokens, for those that are known to the last round: the tile to take (None: vLLM's own), and how many times
    as fast as vLLM's own it is.
    """
    found: dict[int, tuple[Tile | None, float]] = {}
    calls, count = ROUNDS[-1]
    for batch in batches:
        last = {run.tile: run.us for run in runs if run.batch == batch and run.calls == calls}
        own = last.pop(None, None)
        before = [run for run in runs if run.batch == batch and run.calls == ROUNDS[-2][0] and run.tile is not None]
        if own is None or len(last) < min(count, sum(run.us is not None for run in before)):
            continue
        us, tile = min(((us, tile) for tile, us in last.items() if us is not None), default=(own, None))
        found[batch] = (tile, own / us) if tile is not None and own / us >= WORTH else (None, 1.0)
    return found

"""Static against continuous batching, on one running server: the same requests, so many at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ops.bench.direct_engine import BenchFailed
from ops.bench.gpu.http_load import HttpLoad, Run
from ops.bench.gpu.sides import Bench

IN_FLIGHT = 64
_MEDIAN, _SIGMA, _LONGEST = 130, 0.9, 600  # output tokens: a mean of some 190, as conversations have


def output_lengths(count: int, seed: int) -> list[int]:
    """As long as answers of conversations are: log-normal, cut at both ends."""
    chosen = random.Random(seed)
    return [min(_LONGEST, max(8, round(_MEDIAN * chosen.lognormvariate(0, _SIGMA)))) for _ in range(count)]


def static_and_continuous(bench: Bench, side: str, url: str) -> None:
    """Static: batches of IN_FLIGHT, each waited for as a whole. Continuous: whenever one ends, the next begins."""
    work = bench.scale.work(384, 256, 128)
    in_flight = min(IN_FLIGHT, max(2, work.requests // 4))
    lengths = output_lengths(work.requests, 5)
    for kind, seed, size in (("continuous", 21, work.requests), ("static", 22, in_flight)):
        bodies = bench.prompts.bodies(work, seed)
        bodies = [body | {"max_tokens": length} for body, length in zip(bodies, lengths, strict=True)]
        runs = _batches(bench, url, bodies, size, in_flight)
        seconds, tokens = sum(run.seconds for run in runs), sum(run.tokens for run in runs)
        if tokens != sum(lengths):
            raise BenchFailed(f"{kind} batching: {tokens:,} tokens came of {sum(lengths):,}")
        bench.notes.add(
            what="batching",
            side=side,
            kind=kind,
            in_flight=in_flight,
            requests=work.requests,
            seconds=round(seconds, 3),
            tok_s=round(tokens / seconds, 1),
        )


def _batches(bench: Bench, url: str, bodies: Sequence[dict[str, Any]], size: int, in_flight: int) -> list[Run]:
    load = HttpLoad(bench.scale.load_processes)
    return [load.run(url, bodies[at : at + size], in_flight) for at in range(0, len(bodies), size)]

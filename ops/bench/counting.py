"""`moray bench counting`: what it costs an engine to count what each of its experts is given.

One engine core, the embedded model on this machine's CPU, runs the same requests with counting and without, in turns.
That tells whether something was overlooked; what counting itself takes is too little for it, and is timed alone.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.app import engine_spec
from cluster.config import load
from experts.routed_tokens import KeptChoices
from experts.tiny_r1.tasks import Task
from ops.bench.direct_engine import DirectEngine, Result, Round
from ops.bench.measured_load import prompts_of
from replicas.core_host import ROUTED_INTERVAL_S

CONCURRENCIES = (1, 32)
OUTPUT_TOKENS = 128
ASKED = {1: 2, 32: 64}  # requests in a round


def measure(rounds: int, report: Callable[[str], None]) -> dict[str, Any]:
    """See `moray bench counting --help`."""
    settings = load(None, os.environ, {"experts.expert_parallel": "1"}).settings
    figures: dict[str, Any] = {"rounds": rounds}
    with DirectEngine(msgspec.json.encode(engine_spec(settings)).decode()) as engine:
        for concurrency in CONCURRENCIES:
            run(engine, concurrency, True)  # warm
            pairs = []
            for number in range(rounds):
                order = (True, False) if number % 2 else (False, True)
                done = {counted: run(engine, concurrency, counted) for counted in order}
                pairs.append((done[True], done[False]))
            figures |= _compared(concurrency, pairs)
            report(f"{concurrency} at a time: {figures[f'overhead_{concurrency}']:+.2%} of a step")
    return figures


def run(engine: DirectEngine, concurrency: int, counted: bool) -> Result:
    count = ASKED[concurrency]
    return engine.run(Round(prompts_of(Task.ADDITION, count), [OUTPUT_TOKENS] * count, concurrency, counted))


def counting_s(tokens: int) -> float:
    """Seconds that counting takes of a step with so many tokens, on the embedded model: the median of nine tries."""
    import torch

    layers, experts, top_k, steps = 4, 8, 2, 4096
    ids = [torch.randint(0, experts, (tokens, top_k), dtype=torch.int32) for _ in range(layers)]
    counter = KeptChoices(layers, experts)
    tells = [counter.of_layer(layer) for layer in range(layers)]
    tries = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(steps):
            for tell, chosen in zip(tells, ids, strict=True):
                tell(chosen)
            counter.step_issued(tokens)
        tries.append((time.perf_counter() - began) / steps)
    return statistics.median(tries)


def _compared(concurrency: int, pairs: list[tuple[Result, Result]]) -> dict[str, Any]:
    """What counting adds in CPU time, which is less noisy than the clock; and what it takes by itself."""
    overheads = sorted(counted.cpu_s / plain.cpu_s - 1 for counted, plain in pairs)
    asking = statistics.median(counted.routed_s for counted, _ in pairs)
    quarter = len(overheads) // 4
    step_s = statistics.median(plain.seconds * concurrency / plain.tokens for _, plain in pairs)
    return {
        f"counting_share_{concurrency}": round(counting_s(concurrency) / step_s, 5),
        f"step_ms_{concurrency}": round(1e3 * step_s, 3),
        f"overhead_{concurrency}": round(statistics.median(overheads), 5),
        f"overhead_{concurrency}_spread": [round(overheads[quarter], 5), round(overheads[-1 - quarter], 5)],
        f"asking_ms_{concurrency}": round(1e3 * asking, 3),
        f"asking_share_{concurrency}": round(asking / ROUTED_INTERVAL_S, 6),
    }

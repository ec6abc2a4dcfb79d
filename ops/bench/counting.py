"""`moray bench counting`: what it costs an engine to count what each of its experts is given.

One engine core, the embedded model on this machine's CPU, runs the same requests with counting and without, in turns.
"""

import os
import statistics
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.app import engine_spec
from cluster.config import load
from experts.tiny_r1.evaluate import single_turns
from experts.tiny_r1.tasks import Task
from experts.tiny_r1.tokenizer import THINK, TOKEN_ID, USER, encode_prompt
from ops.bench.direct_engine import DirectEngine, Result, Round
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
    prompts = [prompt_of(each.chat[0]["content"]) for each in single_turns(Task.ADDITION, count, seed=1)]
    return engine.run(Round(prompts, [OUTPUT_TOKENS] * count, concurrency, counted))


def prompt_of(text: str) -> list[int]:
    return [*encode_prompt([(USER, text)]), TOKEN_ID[THINK]]


def _compared(concurrency: int, pairs: list[tuple[Result, Result]]) -> dict[str, Any]:
    """What counting adds in CPU time, which is less noisy than the clock; and what asking for the counts takes."""
    overheads = sorted(counted.cpu_s / plain.cpu_s - 1 for counted, plain in pairs)
    asking = statistics.median(counted.routed_s for counted, _ in pairs)
    quarter = len(overheads) // 4
    return {
        f"overhead_{concurrency}": round(statistics.median(overheads), 5),
        f"overhead_{concurrency}_spread": [round(overheads[quarter], 5), round(overheads[-1 - quarter], 5)],
        f"asking_ms_{concurrency}": round(1e3 * asking, 3),
        f"asking_share_{concurrency}": round(asking / ROUTED_INTERVAL_S, 6),
    }

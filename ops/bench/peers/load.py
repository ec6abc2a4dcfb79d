"""The load that all sides get: like code completion, in bursts, in sizes that the embedded model can take. Pure.

Prompts are mostly short, some long, and share no beginning; answers have a fixed length. By seed always the same.
"""

import random
from itertools import accumulate, islice
from typing import Any

from ops.simulate.workloads import Lengths, gaps

GAP_CV = 4.0  # coefficient of variation of the gaps between arrivals; 1 would be a Poisson process
LONG_SHARE = 0.15  # of the prompts
SHORT_IN = Lengths(80, 60, 300)  # tokens, of which the embedded model has one for each character
LONG_IN = (600, 900)
OUT = Lengths(40, 28, 128)
LEAST_OUT = 8


def arrival_times(count: int, seconds: float, seed: int) -> list[float]:
    """Rising times from 0, exactly `count` within `seconds`: the rate is what was asked for, the bursts are drawn."""
    ends = list(accumulate(islice(gaps(random.Random(seed), 1.0, GAP_CV), count + 1)))
    return [seconds * end / ends[-1] for end in ends[:-1]]


def bodies(model: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Chat completions to send."""
    rng = random.Random(seed)
    return [_body(model, rng) for _ in range(count)]


def _body(model: str, rng: random.Random) -> dict[str, Any]:
    length = rng.randint(*LONG_IN) if rng.random() < LONG_SHARE else SHORT_IN.draw(rng)
    return {
        "model": model,
        "messages": [{"role": "user", "content": "".join(rng.choices("0123456789+-= ", k=length))}],
        "max_tokens": max(OUT.draw(rng), LEAST_OUT),
        "ignore_eos": True,
        "temperature": 0,
    }

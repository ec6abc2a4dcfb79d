"""Requests through the simulated engine, as a raw engine is given them: answered when, and in which steps. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from experts.step_model import StepTime
from replicas.messages import Capacity
from replicas.simulated_engine import SimulatedEngine
from replicas.simulated_request import SimulatedRequest

_BLOCK_TOKENS = 16
_NO_COSTS = (0.0,) * 7


class StepShape(NamedTuple):
    """What one step computes."""

    prefill_tokens: int
    prefill_pairs: float
    decoding: int
    kv_tokens: int


class Answered(NamedTuple):
    """Seconds from the first request: each first token, since its request came, in order of ending; the last token."""

    first_token_s: list[float]
    ended_s: float


@dataclass(frozen=True)
class _Recorder(StepTime):
    """Writes down each step instead of timing it."""

    steps: list[StepShape] = field(default_factory=list)

    def step_s(self, prefill_tokens: int, prefill_pairs: float, decoding: int, kv_tokens: int) -> float:
        self.steps.append(StepShape(prefill_tokens, prefill_pairs, decoding, kv_tokens))
        return 1.0


def arrivals(requests: int, rate: float | None, seed: int) -> list[float]:
    """Seconds at which requests come: Poisson at `rate` a second from 0 on, or all at 0."""
    if rate is None:
        return [0.0] * requests
    gaps, at = random.Random(seed), 0.0
    times = []
    for _ in range(requests):
        times.append(at)
        at += gaps.expovariate(rate)
    return times


def limits(max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int) -> Capacity:
    """An engine's, whose KV is never what is short: workloads to calibrate by are chosen so."""
    kv_tokens = max_num_seqs * max_model_len // _BLOCK_TOKENS * _BLOCK_TOKENS
    return Capacity(
        kv_tokens=kv_tokens,
        block_tokens=_BLOCK_TOKENS,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
    )


def answer(
    step: StepTime,
    capacity: Capacity,
    arrivals: Sequence[float],
    prompt: int,
    output: int,
    ahead: bool = True,
    jump: bool = True,
) -> Answered:
    """Requests that come at `arrivals` (seconds, ascending, the first at 0), all of one length, and no two alike.

    Of requests that come at the same moment the first is alone in its step: an engine begins as soon as it has one,
    while the next are on their way.
    """
    engine = SimulatedEngine(step, capacity, jump=jump, ahead=ahead)
    waiting = list(enumerate(arrivals))[::-1]
    first_token_s: list[float] = []
    ended_s = 0.0
    while waiting or engine.has_work:
        if waiting and waiting[-1][1] < engine.due:
            number, came = waiting.pop()
            engine.add(SimulatedRequest(str(number), prompt, output), came)
            if engine.due == math.inf:
                engine.begin(came)
            continue
        progress = engine.end()
        first_token_s += [progress.at_s - arrivals[int(r.request_id)] for r in progress.prefilled if r.generated == 1]
        ended_s = progress.at_s
        engine.begin(ended_s)
    return Answered(first_token_s, ended_s)


def steps_of(capacity: Capacity, prompts: int, prompt: int) -> tuple[StepShape, ...]:
    """The steps in which so many prompts are computed that are given at once, with one token of output each."""
    recorder = _Recorder(*_NO_COSTS)
    answer(recorder, capacity, [0.0] * prompts, prompt, 1, jump=False)
    return tuple(recorder.steps)

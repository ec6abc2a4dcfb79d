"""What a layout's plan means for an engine: how much one step may hold, and the memory of its KV cache. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experts.model_spec import ModelSpec
from experts.sharding import (
    LONG_CONTEXT,
    Assessment,
    Demand,
    Prefill,
    kv_bytes_per_token,
    step,
    usual_efficiency,
)
from experts.topology import Cluster

BLOCK_TOKENS = 16  # vLLM's KV blocks on CUDA; limits are whole blocks


@dataclass(frozen=True)
class Limits:
    """Of one engine core."""

    sequences: int  # vLLM's max_num_seqs
    batched_tokens: int  # max_num_batched_tokens: decoding and prompt tokens of a step
    prompt_chunk: int  # long_prefill_token_threshold: tokens of one prompt in a step, beside others
    kv_bytes: float  # on each GPU
    contexts: int  # of LONG_CONTEXT tokens, that fit at once
    full_step_s: float  # with all sequences, and prompts of the usual length in what is left of batched_tokens
    long_step_s: float  # with all sequences, and a chunk of a LONG_CONTEXT prompt: the mean over the prompt
    last_step_s: float  # and with the last of its chunks


class NoTime(ValueError):
    """Not even a block of a prompt can be computed within the TPOT, beside all sequences."""


def limits(spec: ModelSpec, cluster: Cluster, found: Assessment, demand: Demand) -> Limits:
    """Limits under which steps keep `demand.tpot_s`. `found` has a step. Raises NoTime.

    Two, for a prompt's tokens cost more the later they come: a step full of usual prompts, and one with a chunk of a
    long prompt. TPOT is a mean over a stream's tokens, so the chunk is that with which the mean over the long prompt's
    steps keeps it; the last of them take longer.
    """
    assert found.step is not None, "a layout that fits"
    sequences, efficiency = found.step.sequences, usual_efficiency()

    def seconds(tokens: int, earlier: float, cached: float) -> float:
        prefill = Prefill(tokens, earlier, cached)
        return step(spec, cluster, found.layout, demand, sequences, efficiency, prefill).seconds

    def usual(tokens: int) -> float:
        return seconds(tokens, demand.prompt / 2, 0.0)

    def long(tokens: int) -> float:
        return seconds(tokens, LONG_CONTEXT / 2, (LONG_CONTEXT - tokens) / 2)

    beside = _most(usual, demand.tpot_s)
    chunk = min(_most(long, demand.tpot_s), beside) // BLOCK_TOKENS * BLOCK_TOKENS
    if not chunk:
        raise NoTime(
            f"a step of {sequences} sequences leaves no time for a chunk of a {LONG_CONTEXT:,}-token prompt within "
            f"{1e3 * demand.tpot_s:g} ms"
        )
    batched = (sequences + beside) // BLOCK_TOKENS * BLOCK_TOKENS
    kv_bytes = found.kv_tokens * kv_bytes_per_token(spec, found.layout, demand)
    return Limits(
        sequences=sequences,
        batched_tokens=batched,
        prompt_chunk=chunk,
        kv_bytes=kv_bytes,
        contexts=found.kv_tokens // LONG_CONTEXT,
        full_step_s=usual(batched - sequences),
        long_step_s=long(chunk),
        last_step_s=seconds(chunk, LONG_CONTEXT - chunk / 2, LONG_CONTEXT - chunk),
    )


def _most(seconds: Callable[[int], float], limit: float) -> int:
    """The most tokens, up to 64K, of a step that only grows with them."""
    low, high = 0, 65_536
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= limit else (low, middle - 1)
    return low

"""What a step of decoding takes on the raw engine: by batch, and by the context of its sequences."""

from __future__ import annotations

from ops.bench.gpu.raw_engine import Ask, RawEngine
from ops.bench.gpu.scale import TINY
from ops.bench.gpu.sides import Bench
from ops.bench.gpu.workload import at_once

BATCHES = (1, 8, 32, 64, 128, 256, 512)
CONTEXTS = (1_024, 32_000)
_FEW, _MANY = 16, 144  # output tokens: the difference is so many steps of decoding alone


def decode_steps(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds of a step by the sequences that it decodes."""
    for batch in BATCHES:
        decode(bench, raw, batch, 128)


def contexts(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds a token of one stream, after a short and a long prompt."""
    for prompt in CONTEXTS:
        decode(bench, raw, 1, prompt)


def decode(bench: Bench, raw: RawEngine, batch: int, prompt: int, side: str = "raw") -> None:
    """Two runs that differ in their output only: what a step takes that decodes so many sequences.

    The prompts are computed before, and found in the prefix cache by both, where the engine has one.
    """
    if bench.scale is TINY:
        batch, prompt = min(batch, 8), min(prompt, 1024)
    prompts = bench.prompts.token_ids(at_once(batch, prompt, _MANY), 7)
    raw.run(Ask(prompts, [1] * batch))
    few, many = (raw.run(Ask(prompts, [n] * batch)).seconds for n in (_FEW, _MANY))
    ms = 1e3 * (many - few) / (_MANY - _FEW)
    context = prompt + (_FEW + _MANY) // 2
    bench.notes.add(what="decode", side=side, batch=batch, context=context, ms_per_step=round(ms, 3))

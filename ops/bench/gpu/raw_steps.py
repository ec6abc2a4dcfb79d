"""What one step of the raw engine takes: by batch, and by the context of one stream. Simulators fit to it."""

from __future__ import annotations

from ops.bench.gpu.raw_engine import RawEngine
from ops.bench.gpu.scale import TINY
from ops.bench.gpu.sides import Bench
from ops.bench.gpu.workload import at_once

BATCHES = (1, 8, 32, 64, 128, 256, 512)
CONTEXTS = (1_024, 32_000)
PREFILLS = ((8, 2_048), (32, 512), (4, 8_192))  # prompts, tokens each: 16,384 tokens, which is one step
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
    """Two runs that differ in their output only: what a step takes that decodes so many sequences."""
    if bench.scale is TINY:
        batch, prompt = min(batch, 8), min(prompt, 1024)
    few, many = (raw.run(bench.ask(at_once(batch, prompt, n), 7)).seconds for n in (_FEW, _MANY))
    ms = 1e3 * (many - few) / (_MANY - _FEW)
    context = prompt + (_FEW + _MANY) // 2
    bench.notes.add(what="decode", side=side, batch=batch, context=context, ms_per_step=round(ms, 3))


def prefills(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds of a step of prompts alone, its first tokens' sampling included."""
    for count, prompt in PREFILLS:
        work = bench.scale.work(count, prompt, 1)._replace(output=1)
        took = min(raw.run(bench.ask(work, seed)).seconds for seed in (11, 12, 13))
        bench.notes.add(what="prefill", prompts=work.requests, prompt=work.prompt, ms=round(1e3 * took, 2))

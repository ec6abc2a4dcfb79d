"""What `moray calibrate` fits a machine's step costs to, and the whole workloads that judge it: on one raw engine.

Each row is one kind of step, timed where it stands alone. Sizes lie between those of the CUDA graphs too, contexts are
long at large batches too: both are what a model of steps is wrong about first.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ops.bench.direct_engine import BenchFailed
from ops.bench.gpu.raw_engine import Ask, RawEngine
from ops.bench.gpu.raw_steps import decode
from ops.bench.gpu.sides import Bench, raw_side
from ops.bench.gpu.workload import Workload, at_once
from ops.calibrate.replay import arrivals

# Sequences, and prompt tokens of each: 600,000 tokens of KV at most.
SHORT = tuple((batch, 128) for batch in (1, 2, 4, 8, 16, 32, 48, 64, 100, 128, 192, 256, 300, 384, 512))
LONG = ((1, 1_024), (1, 32_000), (8, 4_096), (8, 32_000), (64, 1_024), (64, 8_192), (256, 2_048), (512, 1_024))
CHUNKS = (256, 512, 1_024, 2_048, 4_096, 8_192, 16_384)
CACHED = tuple((cached, chunk) for cached in (1_024, 8_192, 24_576) for chunk in (512, 2_048, 8_192))
MIXED = (8, 64, 256)  # sequences that decode beside a chunk
MIXED_CHUNKS = CHUNKS[:-1]
# Requests, prompt, output, and Poisson arrivals a second, of which an H200 answers about 65; None: all at once.
HELD_OUT = (
    (512, 512, 128, None),
    (1_024, 256, 128, None),
    (256, 1_024, 256, None),
    (200, 512, 128, 20.0),
    (400, 512, 128, 40.0),
)
_TURNS = 3  # of a chunk; one before them is not counted: kernels may be compiled on the way
_FIRST_CHUNK, _BETWEEN = 24, 12  # steps of decoding before a mixed step, and from one to the next
_DECODING_PROMPT = 512


def decoding(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds of a step that only decodes, by batch and context."""
    for batch, prompt in (*SHORT, *LONG):
        if batch <= bench.scale.args["max_num_seqs"] and prompt < bench.scale.args["max_model_len"] - 200:
            decode(bench, raw, batch, prompt)


def prefill(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds until one prompt has its first token: by its length, and by how much of it is in the cache.

    One prompt is one step. Many would be more, by how fast the engine gets them.
    """
    limits = bench.scale.args
    whole_prompts(bench, raw, CHUNKS)
    for cached, chunk in CACHED:
        if cached + chunk < limits["max_model_len"] and chunk <= limits["max_num_batched_tokens"]:
            prefix = bench.prompts.token_ids(at_once(1, cached, 1), 10)[0]
            raw.run(Ask([prefix], [1]))
            _prefill(bench, raw, prefix, chunk)


def whole_prompts(bench: Bench, raw: RawEngine, lengths: Sequence[int]) -> None:
    """Those of them that fit one step."""
    for length in lengths:
        if length <= bench.scale.args["max_num_batched_tokens"]:
            _prefill(bench, raw, [], length)


def _prefill(bench: Bench, raw: RawEngine, prefix: list[int], chunk: int) -> None:
    tails = [bench.prompts.token_ids(at_once(1, chunk, 1), 11 + turn)[0] for turn in range(1 + _TURNS)]
    took = [raw.run(Ask([prefix + tail], [1])).seconds for tail in tails][1:]
    ms = round(1e3 * statistics.median(took), 3)
    bench.notes.add(what="prefill", side="raw", prompts=1, prompt=len(prefix) + chunk, cached=len(prefix), ms=ms)


def mixed(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds of a step that computes a prompt beside sequences that decode."""
    limits = bench.scale.args
    for sequences in MIXED:
        chunks = [chunk for chunk in MIXED_CHUNKS if chunk + sequences <= limits["max_num_batched_tokens"]]
        if sequences >= limits["max_num_seqs"] or not chunks:
            continue
        turns = [_beside(bench, raw, sequences, chunks, seed) for seed in range(21, 22 + _TURNS)][1:]
        for number, chunk in enumerate(chunks):
            ms = round(1e3 * statistics.median(turn[number] for turn in turns), 3)
            context = _DECODING_PROMPT + _FIRST_CHUNK + number * _BETWEEN
            bench.notes.add(what="mixed", side="raw", decoding=sequences, context=context, prompt=chunk, ms=ms)


def _beside(bench: Bench, raw: RawEngine, sequences: int, chunks: Sequence[int], seed: int) -> list[float]:
    """Seconds of the step of each chunk."""
    output = _FIRST_CHUNK + len(chunks) * _BETWEEN + 2 * _BETWEEN
    prompts = bench.prompts.token_ids(at_once(sequences, _DECODING_PROMPT, output), seed)
    prompts += [bench.prompts.token_ids(at_once(1, chunk, 1), seed)[0] for chunk in chunks]
    after = [0] * sequences + [_FIRST_CHUNK + number * _BETWEEN for number in range(len(chunks))]
    took = raw.run(Ask(prompts, [output] * sequences + [1] * len(chunks), after_steps=after))
    return took.step_s[sequences:]


def held_out(bench: Bench, raw: RawEngine) -> None:
    """Throughput and time to the first token of whole workloads: no fit is made to them."""
    for number, (requests, prompt, output, rate) in enumerate(HELD_OUT):
        work = bench.scale.work(requests, prompt, output)
        seed = 31 + number
        due_s = arrivals(work.requests, rate, seed)
        took = raw.run(
            Ask(bench.prompts.token_ids(work, seed), [work.output] * work.requests, due_s=due_s),
        )
        if took.tokens != work.requests * work.output:
            raise BenchFailed(f"the raw engine made {took.tokens:,} tokens of {work.requests * work.output:,}")
        bench.notes.add(
            what="held_out",
            side="raw",
            **_asked(work),
            rate=rate,
            seed=seed,
            req_s=round(work.requests / took.seconds, 2),
            ttft_p50_ms=round(1e3 * statistics.median(took.first_s), 2),
        )


def _asked(work: Workload) -> dict[str, int]:
    return {"requests": work.requests, "prompt": work.prompt, "output": work.output}


MEASURES = (decoding, prefill, mixed, held_out)


def calibration_side(bench: Bench, ends: float) -> None:
    """All of them on one engine, after one turn of the main workloads, which are held out too."""
    raw_side(bench, ends, 1, MEASURES)

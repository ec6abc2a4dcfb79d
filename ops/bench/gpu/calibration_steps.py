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
TOGETHER = ((32, 512), (64, 256))  # prompts at once, and tokens of each: most of them are one step
MIXED = (8, 64, 256)  # sequences that decode beside a chunk
MIXED_CHUNKS = (256, 512, 1_024, 2_048, 8_192)
# Requests, prompt, output, and Poisson arrivals a second, of which an H200 answers about 65; None: all at once.
HELD_OUT = (
    (512, 512, 128, None),
    (1_024, 256, 128, None),
    (256, 1_024, 256, None),
    (200, 512, 128, 20.0),
    (400, 512, 128, 40.0),
)
_TURNS = 3  # of a chunk; one before them is not counted: kernels may be compiled on the way
# Of decoding beside chunks: its steps before the first, from one to the next, and how many there are in a run.
_FIRST_CHUNK, _BETWEEN, _REPEATED = 16, 8, 6
_DECODING_PROMPT = 512


def decoding(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds of a step that only decodes, by batch and context."""
    for batch, prompt in (*SHORT, *LONG):
        if batch <= bench.scale.args["max_num_seqs"] and prompt < bench.scale.args["max_model_len"] - 200:
            decode(bench, raw, batch, prompt)


def prefill(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds until one prompt has its first token: by its length, and by how much of it is in the cache. Then
    until many have, which come together.
    """
    limits = bench.scale.args
    for chunk in CHUNKS:
        if chunk <= limits["max_num_batched_tokens"]:
            _prefill(bench, raw, [], chunk)
    for cached, chunk in CACHED:
        if cached + chunk < limits["max_model_len"] and chunk <= limits["max_num_batched_tokens"]:
            prefix = bench.prompts.token_ids(at_once(1, cached, 1), 10)[0]
            raw.run(Ask([prefix], [1]))
            _prefill(bench, raw, prefix, chunk)
    for count, prompt in TOGETHER:
        work = bench.scale.work(count, prompt, 1)
        asks = [Ask(bench.prompts.token_ids(work, 11 + turn), [1] * work.requests) for turn in range(1 + _TURNS)]
        _note_prefill(bench, [raw.run(ask).seconds for ask in asks][1:], work.requests, work.prompt)


def _prefill(bench: Bench, raw: RawEngine, prefix: list[int], chunk: int) -> None:
    tails = [bench.prompts.token_ids(at_once(1, chunk, 1), 11 + turn)[0] for turn in range(1 + _TURNS)]
    took = [raw.run(Ask([prefix + tail], [1])).seconds for tail in tails][1:]
    _note_prefill(bench, took, 1, len(prefix) + chunk, len(prefix))


def _note_prefill(bench: Bench, took_s: Sequence[float], prompts: int, prompt: int, cached: int = 0) -> None:
    ms = round(1e3 * statistics.median(took_s), 3)
    bench.notes.add(what="prefill", side="raw", prompts=prompts, prompt=prompt, cached=cached, ms=ms)


def mixed(bench: Bench, raw: RawEngine) -> None:
    """Milliseconds of a step that computes a prompt beside sequences that decode.

    By runs with chunks and without: an engine that schedules ahead launches a step while the one before it computes, so
    from one token to the next there may be more than a step's time, or less.
    """
    limits = bench.scale.args
    for sequences in MIXED:
        chunks = [chunk for chunk in MIXED_CHUNKS if chunk + sequences <= limits["max_num_batched_tokens"]]
        if sequences >= limits["max_num_seqs"] or not chunks:
            continue
        output = _FIRST_CHUNK + (_REPEATED + 1) * _BETWEEN
        _beside(bench, raw, sequences, 1)  # their prompts are in the cache from now on
        plain_s, shorter_s = (_beside(bench, raw, sequences, n) for n in (output, output // 2))
        step_s = (plain_s - shorter_s) / (output - output // 2)
        for chunk in chunks:
            took_s = [_beside(bench, raw, sequences, output, chunk, seed) for seed in range(21, 22 + _TURNS)][1:]
            ms = 1e3 * (step_s + (statistics.median(took_s) - plain_s) / _REPEATED)
            context = _DECODING_PROMPT + output // 2
            bench.notes.add(
                what="mixed", side="raw", decoding=sequences, context=context, prompt=chunk, ms=round(ms, 3)
            )


def _beside(bench: Bench, raw: RawEngine, sequences: int, output: int, chunk: int = 0, seed: int = 0) -> float:
    """Seconds of the sequences, with chunks between their steps that nobody has computed before, or with none."""
    prompts = bench.prompts.token_ids(at_once(sequences, _DECODING_PROMPT, 1), 20)
    chunks = bench.prompts.token_ids(at_once(_REPEATED, chunk, 1), seed) if chunk else []
    after = [0] * sequences + [_FIRST_CHUNK + number * _BETWEEN for number in range(len(chunks))]
    return raw.run(Ask(prompts + chunks, [output] * sequences + [1] * len(chunks), after_steps=after)).seconds


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


# What a machine's older rows lack comes first: a run may be cut off.
MEASURES = (mixed, held_out, prefill, decoding)


def calibration_side(bench: Bench, ends: float) -> None:
    """All of them on one engine."""
    raw_side(bench, ends, 0, MEASURES)

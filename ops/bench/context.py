"""`moray bench context`: what a context of 32K costs on the embedded model's architecture, driven directly.

One stream with a long prompt and one with a short one, in turns, on one engine core without a prefix cache; the model's
positions are stretched by YaRN. Each engine step is timed: a prompt's steps compute one chunk each, at its position.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cluster.app import engine_spec
from cluster.config import load
from experts.model_spec import from_config
from ops.bench.direct_engine import BenchFailed, DirectEngine, Result, Round
from replicas.model_directory import stretched

LONG, SHORT = 32_768, 1_024
BLOCK_TOKENS = 128  # of vLLM's KV cache on a CPU; one is vLLM's own


def measure(rounds: int, output_tokens: int, chunk: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Runs it; returns its figures (see `moray bench context --help`)."""
    spec = msgspec.json.encode(engine_spec(_settings(chunk))).decode()
    report(f"starting an engine for {LONG:,} tokens of context")
    runs: dict[int, list[Result]] = {SHORT: [], LONG: []}
    with DirectEngine(spec) as engine:
        for number in range(-1, rounds):  # the first one warms up
            for context, results in runs.items():
                prompt = [40 + (i * i + 7 * i) % 60 for i in range(context - output_tokens)]
                result = engine.run(Round([prompt], [output_tokens], 1))
                if len(result.steps_s) != -(-len(prompt) // chunk) + output_tokens - 1:
                    raise BenchFailed(f"{len(result.steps_s)} steps for {len(prompt)} + {output_tokens} tokens")
                if number >= 0:
                    results.append(result)
                    tpot = 1e3 * _tpot(result, output_tokens)
                    report(f"round {number + 1}/{rounds}, {context:,} tokens: {tpot:.2f} ms a token")
    return _figures(runs[SHORT], runs[LONG], output_tokens, chunk)


def _settings(chunk: int) -> Any:
    """The embedded model's own, but for its context; nothing of the environment's."""
    directory = load(None, {}, {}).settings.model.directory
    config = json.loads((directory / "config.json").read_text())
    kv_bytes = (LONG + BLOCK_TOKENS) * from_config(config, directory.name).kv_bytes_per_token(value_bytes=4.0)
    overrides = {
        "engine.device": "cpu",
        "experts.expert_parallel": 1,
        "engine.own_cpu": False,  # the engine is driven in this session's absence
        "model.max_model_len": LONG,
        "engine.extra.hf_overrides": stretched(config, LONG),
        "engine.kv_cache_mib": -(-int(kv_bytes) >> 20),
        "engine.max_num_batched_tokens": chunk,
        "engine.enable_prefix_caching": False,
    }
    return load(None, {}, overrides).settings


def _tpot(result: Result, output_tokens: int) -> float:
    """Seconds a token after the first, mean."""
    return statistics.fmean(result.steps_s[-(output_tokens - 1) :])


def _figures(short: Sequence[Result], long: Sequence[Result], output_tokens: int, chunk: int) -> dict[str, Any]:
    """Medians over rounds; ratios are taken within a round, their spread is (least, greatest)."""
    tpots = [(_tpot(s, output_tokens), _tpot(n, output_tokens)) for s, n in zip(short, long, strict=True)]
    ratios = [n / s for s, n in tpots]
    whole = (LONG - output_tokens) // chunk  # the last chunk may be a shorter one
    last_over_first = [n.steps_s[whole - 1] / n.steps_s[0] for n in long]
    return {
        "rounds": len(ratios),
        "output_tokens": output_tokens,
        "chunk": chunk,
        "tpot_ms_1k": round(1e3 * statistics.median(s for s, _ in tpots), 3),
        "tpot_ms_32k": round(1e3 * statistics.median(n for _, n in tpots), 3),
        "tpot_ratio_32k_vs_1k": round(statistics.median(ratios), 3),
        "tpot_ratio_32k_vs_1k_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "ttft_s_32k": round(statistics.median(n.ttft_s[0] for n in long), 3),
        "prefill_tok_s_at": {
            str(i * chunk): round(statistics.median(chunk / n.steps_s[i] for n in long)) for i in _shown(whole)
        },
        "last_chunk_ratio_vs_first": round(statistics.median(last_over_first), 3),
        "last_chunk_ratio_vs_first_spread": [round(min(last_over_first), 3), round(max(last_over_first), 3)],
    }


def _shown(chunks: int) -> list[int]:
    """Eight positions at most, the first and the last among them."""
    return sorted({round(i * (chunks - 1) / 7) for i in range(8)})

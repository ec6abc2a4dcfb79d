"""What `moray tune` chooses among, and what a choice means for an engine: limits, arguments, settings. Pure.

Options have vLLM's names. None stands for what the engine has by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ops.tune.search import Option, Setting

TOKENS, SEQS, CHUNK = "max_num_batched_tokens", "max_num_seqs", "long_prefill_token_threshold"
GRAPHS, KERNELS = "cudagraph_capture_sizes", "tuned_kernels"

# Settings of their own; everything else goes to vLLM by `engine.extra`.
_KEYS = {TOKENS: f"engine.{TOKENS}", SEQS: f"engine.{SEQS}", KERNELS: f"engine.{KERNELS}"}
_ON_GPU = {TOKENS: (1024, 2048, 4096, 8192, 16384), SEQS: (128, 256, 512, 1024)}
_LEAST_CHUNK = 64  # tokens of a prompt in a step: less would only be overhead
_MOST_GRAPHS = 1024


class Default(NamedTuple):
    """What an engine has whose settings nobody tuned."""

    batched_tokens: int
    seqs: int
    prompt_chunk: int = 0  # of one prompt in a step, beside others; 0: no limit


class Load(NamedTuple):
    """What an engine is loaded with: limits that can be lowered while it runs, and the rest."""

    batched_tokens: int
    seqs: int
    fixed: tuple[tuple[str, Any], ...] = ()  # option -> value, those that are not None

    def serves(self, wanted: Load) -> bool:
        """Whether an engine that is loaded so can be measured as one that is loaded as `wanted`."""
        return self.fixed == wanted.fixed and self.batched_tokens >= wanted.batched_tokens and self.seqs >= wanted.seqs


def options(
    default: Default, prompt: int, on_gpu: bool, fp8_kv: bool = False, kernels: str | None = None
) -> tuple[Option, ...]:
    """The default first in each. Limits of a step are there always, others where there is a choice. `kernels`: a folder
    of tuned fused-MoE configurations to try.
    """
    tokens, seqs = (
        _around(name, own, on_gpu) for name, own in ((TOKENS, default.batched_tokens), (SEQS, default.seqs))
    )
    chunks = [default.prompt_chunk]
    chunks += [n for n in (prompt // 2, prompt // 4) if n >= _LEAST_CHUNK and n != default.prompt_chunk]
    found = [Option(TOKENS, tokens), Option(SEQS, seqs), Option(CHUNK, tuple(chunks))]
    found.append(Option("async_scheduling", (None, False), restarts=True))
    if on_gpu:
        if kernels is not None:
            found.append(Option(KERNELS, (None, kernels), restarts=True))
        found.append(Option(GRAPHS, (None, graph_sizes(min(max(seqs), _MOST_GRAPHS))), restarts=True))
        if fp8_kv:
            found.append(Option("kv_cache_dtype", (None, "fp8"), restarts=True))
        found.append(Option("block_size", (None, 32), restarts=True))
    return tuple(found)


def _around(name: str, own: int, on_gpu: bool) -> tuple[int, ...]:
    """The own value, then lower ones, then higher ones, for which an engine is loaded anew; the nearest first. On a CPU
    halves and quarters.
    """
    others = {n for n in (_ON_GPU[name] if on_gpu else (own // 2, own // 4)) if n > 0}
    return (own, *sorted((n for n in others if n < own), reverse=True), *sorted(n for n in others if n > own))


def graph_sizes(most: int) -> tuple[int, ...]:
    """Batches that CUDA graphs are captured for: dense where a padded sequence is a large part of the step."""
    dense = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(576, most + 1, 64)]
    return tuple(n for n in dense if n <= most)


def refused(setting: Setting) -> str:
    """Why vLLM would not load an engine that has the setting from the start; "": it would."""
    tokens, seqs = setting[TOKENS], setting[SEQS]
    return f"a step of {tokens} tokens cannot hold {seqs} sequences" if tokens < seqs else ""


def load_for(options: Sequence[Option], setting: Setting) -> Load:
    """With what an engine is loaded to measure `setting`.

    The first values' limits if they are enough: an engine whose limits are higher has less room for KV. Else the
    highest of all options, so that there is one more load and not one for each.
    """
    of = {option.name: option.values for option in options}
    enough = setting[TOKENS] <= of[TOKENS][0] and setting[SEQS] <= of[SEQS][0]
    limit: Callable[[tuple[int, ...]], int] = operator.itemgetter(0) if enough else max
    return exact(setting)._replace(batched_tokens=limit(of[TOKENS]), seqs=limit(of[SEQS]))


def exact(setting: Setting) -> Load:
    """As an engine is loaded that has the setting from the start."""
    live = (TOKENS, SEQS, CHUNK)
    fixed = sorted((name, value) for name, value in setting.items() if value is not None and name not in live)
    return Load(int(setting[TOKENS]), int(setting[SEQS]), tuple(fixed))


def engine_args(base: Mapping[str, Any], load: Load) -> dict[str, Any]:
    """vLLM's arguments of an engine that has `base` but for what is tried."""
    args = dict(base) | {TOKENS: load.batched_tokens, SEQS: load.seqs}
    for name, value in load.fixed:
        if name == GRAPHS:
            args["compilation_config"] = _with_graphs(base.get("compilation_config"), value)
        elif name != KERNELS:
            args[name] = value
    return args


def _with_graphs(config: Any, sizes: Sequence[int]) -> dict[str, Any]:
    """`max_cudagraph_capture_size` goes: vLLM refuses one that is not the greatest of the sizes."""
    kept = dict(config) if isinstance(config, Mapping) else {}
    kept.pop("max_cudagraph_capture_size", None)
    return kept | {GRAPHS: list(sizes)}


def settings(setting: Setting, base: Mapping[str, Any]) -> dict[str, Any]:
    """Moray's settings of it by dotted key, as in a profile; the two limits of a step always."""
    found: dict[str, Any] = {_KEYS[TOKENS]: setting[TOKENS], _KEYS[SEQS]: setting[SEQS]}
    for name, value in setting.items():
        if value is None or (name == CHUNK and not value):
            continue
        if name == GRAPHS:
            found["engine.extra.compilation_config"] = _with_graphs(base.get("compilation_config"), value)
        else:
            found[_KEYS.get(name, f"engine.extra.{name}")] = value
    return found

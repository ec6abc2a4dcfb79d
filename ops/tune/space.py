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
_MORE_GRAPHS = (1024, 2048)  # tokens of a step: prompts beside what decodes


class Default(NamedTuple):
    """What an engine has whose settings nobody tuned."""

    batched_tokens: int
    seqs: int
    prompt_chunk: int = 0  # of one prompt in a step, beside others; 0: no limit
    graphs: tuple[int, ...] = ()  # tokens of the steps that CUDA graphs are captured for; empty: none are


class Load(NamedTuple):
    """What an engine is loaded with: limits that can be lowered while it runs, and the rest."""

    batched_tokens: int
    seqs: int
    fixed: tuple[tuple[str, Any], ...] = ()  # option -> value, those that are not None
    graphs: tuple[int, ...] = ()  # empty: the engine's own

    def serves(self, wanted: Load) -> bool:
        """Whether an engine that is loaded so can be measured as one that is loaded as `wanted`."""
        enough = self.batched_tokens >= wanted.batched_tokens and self.seqs >= wanted.seqs
        return enough and self.fixed == wanted.fixed and self.graphs[-1:] >= wanted.graphs[-1:]


def options(
    default: Default, prompt: int, on_gpu: bool, fp8_kv: bool = False, kernels: str | None = None
) -> tuple[Option, ...]:
    """The default first in each. Limits of a step are there always, others where there is a choice. `kernels`: a folder
    of tuned fused-MoE configurations to try.

    Of those that need no restart CUDA graphs come first: a step that has none is launched kernel by kernel, which on a
    host with slow cores takes longer than what it computes (on an H200 90 ms for 600 tokens, where 500 in a graph
    took 23), so every other limit looks different with them.
    """
    tokens, seqs = (
        Option(name, values := _around(name, own, on_gpu), sum(n <= own for n in values))
        for name, own in ((TOKENS, default.batched_tokens), (SEQS, default.seqs))
    )
    chunks = [default.prompt_chunk]
    chunks += [n for n in (prompt // 2, prompt // 4) if n >= _LEAST_CHUNK and n != default.prompt_chunk]
    found = [tokens, seqs, Option(CHUNK, tuple(chunks))]
    if more := more_graphs(default.graphs):
        found.insert(0, Option(GRAPHS, (None, *more)))
    found.append(Option("async_scheduling", (None, False), live=1))
    if on_gpu:
        if kernels is not None:
            found.append(Option(KERNELS, (None, kernels), live=1))
        if fp8_kv:
            found.append(Option("kv_cache_dtype", (None, "fp8"), live=1))
        found.append(Option("block_size", (None, 32), live=1))
    return tuple(found)


def _around(name: str, own: int, on_gpu: bool) -> tuple[int, ...]:
    """The own value, then lower ones, then higher ones, for which an engine is loaded anew; the nearest first. On a CPU
    halves and quarters.
    """
    others = {n for n in (_ON_GPU[name] if on_gpu else (own // 2, own // 4)) if n > 0}
    return (own, *sorted((n for n in others if n < own), reverse=True), *sorted(n for n in others if n > own))


def own_graphs(args: Mapping[str, Any], seqs: int | None = None) -> tuple[int, ...]:
    """What vLLM's arguments make an engine capture (vllm/config/vllm.py): tokens of steps. `seqs`: its limit."""
    given = args.get("compilation_config")
    config = given if isinstance(given, Mapping) else {}
    if args.get("enforce_eager") or config.get("cudagraph_mode") in ("NONE", 0):
        return ()
    if sizes := config.get(GRAPHS):
        return tuple(sorted(n for n in sizes if n <= args.get(TOKENS, n)))
    seqs = seqs or args.get(SEQS) or max(_ON_GPU[SEQS])
    most = config.get("max_cudagraph_capture_size") or min(2 * seqs, 512)
    return tuple(n for n in (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)) if n <= most)


def more_graphs(own: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The engine's own sizes and larger ones: up to 1,024 tokens, or further, where padding is less of a step."""
    larger = (*range(576, 1025, 64), *range(1152, max(_MORE_GRAPHS) + 1, 128))
    return tuple((*own, *(n for n in larger if own[-1] < n <= most)) for most in _MORE_GRAPHS if own and own[-1] < most)


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
    return exact(setting)._replace(
        batched_tokens=limit(of[TOKENS]), seqs=limit(of[SEQS]), graphs=of.get(GRAPHS, ((),))[-1]
    )


def exact(setting: Setting) -> Load:
    """As an engine is loaded that has the setting from the start."""
    live = (TOKENS, SEQS, CHUNK, GRAPHS)
    fixed = sorted((name, value) for name, value in setting.items() if value is not None and name not in live)
    return Load(int(setting[TOKENS]), int(setting[SEQS]), tuple(fixed), tuple(setting.get(GRAPHS) or ()))


def engine_args(base: Mapping[str, Any], load: Load) -> dict[str, Any]:
    """vLLM's arguments of an engine that has `base` but for what is tried."""
    args = dict(base) | {TOKENS: load.batched_tokens, SEQS: load.seqs}
    if load.graphs:
        args["compilation_config"] = with_graphs(base, load.graphs)
    args |= {name: value for name, value in load.fixed if name != KERNELS}
    return args


def with_graphs(base: Mapping[str, Any], sizes: Sequence[int]) -> dict[str, Any]:
    """vLLM's `compilation_config`. `max_cudagraph_capture_size` goes: vLLM wants it to be the greatest size."""
    config = base.get("compilation_config")
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
            found["engine.extra.compilation_config"] = with_graphs(base, value)
        else:
            found[_KEYS.get(name, f"engine.extra.{name}")] = value
    return found

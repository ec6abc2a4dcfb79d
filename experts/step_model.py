"""How long one engine step takes: a model with six costs and a floor, and the machines that it was fitted to.

Pure, but for reading those that ship (`experts/machines`). `moray calibrate` fits the costs to what `moray bench gpu`
measured, and writes a machine's file.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from importlib.resources import files

import msgspec


@dataclass(frozen=True)
class StepTime:
    """Costs of a step, in seconds. Decoding is concave in the batch: each further token touches fewer new experts."""

    base_s: float  # a step with no token: launches, attention weights, sampling
    experts_s: float  # reading every expert's weights once
    expert_share: float  # of the experts, what one token uses: top-k / experts
    sequence_s: float  # each decoding sequence, its KV aside
    kv_token_s: float  # each token of a decoding sequence's KV that attention reads
    prefill_token_s: float  # each prompt token, its attention aside
    prefill_pair_s: float  # each pair of prompt token and earlier token that its attention covers
    # n decoding sequences touch as many experts as n ** spread that are routed independently: 1 where each goes its own
    # way, less where sequences are alike, as those of untrained weights are. Prompts count in full.
    spread: float = 1.0
    # Tokens that CUDA graphs were captured for, ascending: fewer are computed as the next of these. (): as they are.
    graph_sizes: tuple[int, ...] = ()
    # A step of more tokens than those is launched kernel by kernel, which takes a CPU so long at least.
    launch_s: float = 0.0

    def step_s(self, prefill_tokens: int, prefill_pairs: float, decoding: int, kv_tokens: int) -> float:
        """Seconds of a step that computes so many prompt tokens and one token of each decoding sequence.

        `kv_tokens` is the sum of the decoding sequences' lengths; `prefill_pairs`: see `pairs`.
        """
        return max(
            self.floor_s(prefill_tokens + decoding),
            self._computed_s(prefill_tokens, prefill_pairs, decoding, kv_tokens),
        )

    def floor_s(self, tokens: int) -> float:
        """Below which no step of so many tokens comes."""
        return self.launch_s if self.graph_sizes and tokens > self.graph_sizes[-1] else 0.0

    def _computed_s(self, prefill_tokens: int, prefill_pairs: float, decoding: int, kv_tokens: int) -> float:
        decoding = padded(prefill_tokens, decoding, self.graph_sizes)
        return (
            self.base_s
            + self.experts_s * touched(prefill_tokens, decoding, self.expert_share, self.spread)
            + self.sequence_s * decoding
            + self.kv_token_s * kv_tokens
            + self.prefill_token_s * prefill_tokens
            + self.prefill_pair_s * prefill_pairs
        )


def touched(prefill_tokens: float, decoding: int, expert_share: float, spread: float) -> float:
    """The share of all experts that a step reads."""
    independent = prefill_tokens + decoding**spread if decoding else prefill_tokens
    return float(1.0 - (1.0 - expert_share) ** independent)


def padded(prefill_tokens: int, decoding: int, graph_sizes: tuple[int, ...]) -> int:
    """Decoding sequences with those that a CUDA graph adds: it computes as many tokens as it was captured for."""
    at = bisect_left(graph_sizes, prefill_tokens + decoding)
    return graph_sizes[at] - prefill_tokens if at < len(graph_sizes) else decoding


def pairs(computed: int, chunk: int) -> float:
    """Pairs of tokens in the causal attention of a chunk that begins after `computed` tokens."""
    return chunk * (computed + (chunk + 1) / 2)


@dataclass(frozen=True)
class Fitted:
    """A machine's file: what was fitted, to what, and how well it says what was not fitted."""

    gpu: str  # as in `experts.topology.GPUS`, or whatever the machine called it
    model: str  # a tier of `experts.model_spec.TIERS`
    step: StepTime
    request_s: float  # what a request takes besides its steps: to the engine, and its tokens back
    basis: str  # by what command or how, from which rows, and how far off it is, in words


def read(text: str | bytes) -> Fitted:
    """Raises ValueError: that is no machine's file."""
    return msgspec.json.decode(text, type=Fitted)


def shipped(name: str) -> Fitted:
    """A machine that ships with Moray. FileNotFoundError: there is no such one."""
    return read((files("experts") / "machines" / f"{name}.json").read_bytes())


def written(fitted: Fitted) -> str:
    """The text that `read` reads."""
    return msgspec.json.format(msgspec.json.encode(fitted), indent=1).decode() + "\n"

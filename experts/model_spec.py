"""What a mixture-of-experts model is made of, read from its Hugging Face config. Pure: counts and bytes, no weights.

The families that vLLM serves name the same numbers differently; `ModelSpec` has one name for each. Counts are those of
the checkpoint's language model, without multi-token-prediction layers (DeepSeek-R1's 671B, not its files' 685B).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

# Names of one number: Qwen and OLMoE, DeepSeek, Mixtral and gpt-oss.
_EXPERT_KEYS = ("num_experts", "n_routed_experts", "num_local_experts")
MATRICES = 3  # of a gated MLP: gate, up, down

# The tiers that are served, by the public shapes that stand for them, and the model that all this is named after.
TIERS: Mapping[str, str] = {
    "7b": "OLMoE-1B-7B",
    "16b": "DeepSeek-V2-Lite",
    "32b": "Qwen3-30B-A3B",
    "671b": "DeepSeek-R1",
}


class NotUnderstood(Exception):
    """The config is not that of a mixture-of-experts model whose sizes we can tell. The message is one sentence."""


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention. `kv_heads` <= `heads`; both of `head_dim`."""

    heads: int
    kv_heads: int
    head_dim: int

    def parameters(self, hidden: int) -> int:
        """Of one layer: projections of queries, keys, values and the output."""
        return 2 * hidden * (self.heads + self.kv_heads) * self.head_dim

    def kept_whole(self, hidden: int, shards: int) -> int:
        """Parameters of one layer that each of `shards` tensor-parallel ranks holds: KV heads are copied, not cut."""
        queries = 2 * hidden * self.heads * self.head_dim // shards
        return queries + 2 * hidden * self.kv_heads_on(shards) * self.head_dim

    def kv_heads_on(self, shards: int) -> int:
        return max(self.kv_heads // shards, 1)

    def kv_values(self, shards: int = 1) -> int:
        """Numbers in the KV cache for one token and layer, on one of `shards` ranks."""
        return 2 * self.kv_heads_on(shards) * self.head_dim

    def flop_per_pair(self) -> int:
        """Floating-point operations of one layer for a query token and a token that it attends to."""
        return 4 * self.heads * self.head_dim

    def prefill_flop_per_pair(self) -> int:
        return self.flop_per_pair()

    def flop_per_cached_token(self) -> int:
        """Of one layer and step, before a prompt's chunk can attend to a token that was cached before it."""
        return 0

    def can_split(self, shards: int) -> bool:
        """vLLM's rule: heads divide evenly, KV heads do or are copied evenly."""
        return self.heads % shards == 0 and (self.kv_heads % shards == 0 or shards % self.kv_heads == 0)


@dataclass(frozen=True)
class LatentAttention:
    """DeepSeek's multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one latent a token."""

    heads: int
    q_lora_rank: int | None  # None: queries are projected in one step
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def _down(self, hidden: int) -> int:
        """Projections to the latents, which every rank holds whole."""
        return hidden * ((self.q_lora_rank or 0) + self.kv_lora_rank + self.qk_rope_head_dim)

    def _per_head(self, hidden: int) -> int:
        query = (self.q_lora_rank or hidden) * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        return query + self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim) + self.v_head_dim * hidden

    def parameters(self, hidden: int) -> int:
        return self._down(hidden) + self.heads * self._per_head(hidden)

    def kept_whole(self, hidden: int, shards: int) -> int:
        return self._down(hidden) + self.heads * self._per_head(hidden) // shards

    def kv_values(self, shards: int = 1) -> int:
        """The latent has no heads to split: each rank caches all of it."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def flop_per_pair(self) -> int:
        """In the absorbed form, in which it decodes: heads attend to the latent itself."""
        return 2 * self.heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim)

    def prefill_flop_per_pair(self) -> int:
        """Prompts attend to keys and values of each head, as vLLM computes them."""
        return 2 * self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim + self.v_head_dim)

    def flop_per_cached_token(self) -> int:
        """A chunk makes those of all earlier tokens again, from their latents."""
        return 2 * self.heads * self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)

    def can_split(self, shards: int) -> bool:
        return self.heads % shards == 0


@dataclass(frozen=True)
class ModelSpec:
    """One model. Widths are of an MLP's hidden layer; `dense_layers` have an ordinary MLP in the experts' place."""

    name: str
    hidden: int
    layers: int
    dense_layers: int
    vocabulary: int
    tied_embeddings: bool
    experts: int
    top_k: int
    expert_width: int
    shared_width: int  # of the shared experts together; 0: none
    dense_width: int
    max_context: int
    attention: Attention | LatentAttention

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert in one layer."""
        return MATRICES * self.hidden * self.expert_width

    @property
    def routed_parameters(self) -> int:
        return self.moe_layers * self.experts * self.expert_parameters

    @property
    def shared_parameters(self) -> int:
        return self.moe_layers * MATRICES * self.hidden * self.shared_width

    @property
    def dense_parameters(self) -> int:
        return self.dense_layers * MATRICES * self.hidden * self.dense_width

    @property
    def router_parameters(self) -> int:
        return self.moe_layers * self.hidden * self.experts

    @property
    def attention_parameters(self) -> int:
        return self.layers * self.attention.parameters(self.hidden)

    @property
    def embedding_parameters(self) -> int:
        """The vocabulary's table, and the output's unless it is the same."""
        return self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)

    @cached_property
    def parameters(self) -> int:
        """All of them but for norms, which are a few in a hundred thousand."""
        mlps = self.routed_parameters + self.shared_parameters + self.dense_parameters + self.router_parameters
        return self.embedding_parameters + self.attention_parameters + mlps

    @cached_property
    def active_parameters(self) -> int:
        """Those that one token passes, as model cards count them: with both tables."""
        idle = self.moe_layers * (self.experts - self.top_k) * self.expert_parameters
        return self.parameters - idle

    def kv_bytes_per_token(self, value_bytes: float = 2.0, shards: int = 1) -> float:
        """Of KV cache over all layers, on one of `shards` tensor-parallel ranks."""
        return self.layers * self.attention.kv_values(shards) * value_bytes


def expert_count(config: Mapping[str, Any]) -> int:
    """Routed experts of one MoE layer; 0 for a dense model."""
    text = text_part(config)
    return next((n for key in _EXPERT_KEYS if isinstance(n := text.get(key), int) and n > 0), 0)


def expert_share(config: Mapping[str, Any]) -> float:
    """Of a layer's routed experts, the share that one token uses; 0 for a dense model. KeyError, ValueError."""
    experts, text = expert_count(config), text_part(config)
    return int(text.get("num_experts_per_tok") or text["top_k"]) / experts if experts else 0.0


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A multimodal config holds its language model's numbers one level down."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def tier(name: str) -> ModelSpec:
    """The public shape of a tier. KeyError: there is no such one."""
    config = json.loads((files("experts") / "tiers" / f"{name}.json").read_text()) if name in TIERS else None
    if config is None:
        raise KeyError(name)
    return from_config(config, TIERS[name])


def from_config(config: Mapping[str, Any], name: str) -> ModelSpec:
    """A checkpoint's `config.json`. Raises NotUnderstood, for a dense model too."""
    text = text_part(config)
    if not (experts := expert_count(config)):
        raise NotUnderstood(
            f"{name} is a dense model: its config names no number of experts ({', '.join(_EXPERT_KEYS)}), so there is "
            "nothing to place. vLLM serves it as it is; here tensor parallelism is all that could be planned"
        )
    try:
        hidden, layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
        width = int(text.get("moe_intermediate_size") or text["intermediate_size"])
        shared = int(text.get("n_shared_experts") or 0) * width
        return ModelSpec(
            name=name,
            hidden=hidden,
            layers=layers,
            dense_layers=_dense_layers(text, layers),
            vocabulary=int(text["vocab_size"]),
            tied_embeddings=bool(text.get("tie_word_embeddings", False)),
            experts=experts,
            top_k=int(text.get("num_experts_per_tok") or text["top_k"]),
            expert_width=width,
            shared_width=shared or int(text.get("shared_expert_intermediate_size") or 0),
            dense_width=int(text.get("intermediate_size") or 0),
            max_context=int(text["max_position_embeddings"]),
            attention=_attention(text, hidden),
        )
    except KeyError as missing:
        raise NotUnderstood(f"{name}: its config.json lacks {missing}, without which nothing can be planned") from None
    except (TypeError, ValueError) as error:
        raise NotUnderstood(f"{name}: its config.json holds what is no number: {error}") from None


def _attention(text: Mapping[str, Any], hidden: int) -> Attention | LatentAttention:
    heads = int(text["num_attention_heads"])
    if text.get("kv_lora_rank"):
        return LatentAttention(
            heads=heads,
            q_lora_rank=int(text["q_lora_rank"]) if text.get("q_lora_rank") else None,
            kv_lora_rank=int(text["kv_lora_rank"]),
            qk_nope_head_dim=int(text["qk_nope_head_dim"]),
            qk_rope_head_dim=int(text["qk_rope_head_dim"]),
            v_head_dim=int(text["v_head_dim"]),
        )
    return Attention(
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
    )


def _dense_layers(text: Mapping[str, Any], layers: int) -> int:
    """Layers without experts: DeepSeek's first ones, Qwen's by step and by name."""
    first, every = int(text.get("first_k_dense_replace") or 0), int(text.get("moe_layer_freq") or 1)
    step = int(text.get("decoder_sparse_step") or 1)
    only = set(text.get("mlp_only_layers") or ())
    sparse = [i for i in range(first, layers) if i % every == 0 and (i + 1) % step == 0 and i not in only]
    return layers - len(sparse)

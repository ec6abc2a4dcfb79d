"""Sizes from configs, against what the models' own pages publish."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from experts.model_spec import NotUnderstood, expert_share, from_config, tier
from experts.tiny_r1 import checkpoint_path

QWEN2_MOE = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "intermediate_size": 5632,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
}
MIXTRAL = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("7b", 6.92, 1.28), ("16b", 15.7, 2.66), ("32b", 30.5, 3.35), ("671b", 671.0, 37.6)],
)
def test_the_tiers_have_their_published_sizes(name: str, billions: float, active: float) -> None:
    """DeepSeek-V2-Lite's page says 15.7B and 2.4B active, R1's 671B and 37B: what is active there leaves tables out."""
    spec = tier(name)
    assert spec.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert spec.active_parameters / 1e9 == pytest.approx(active, rel=0.01)


@pytest.mark.parametrize(("config", "billions", "active"), [(QWEN2_MOE, 14.3, 2.7), (MIXTRAL, 46.7, 12.9)])
def test_other_families_too(config: dict[str, int], billions: float, active: float) -> None:
    spec = from_config(config, "x")
    assert spec.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert spec.active_parameters / 1e9 == pytest.approx(active, rel=0.01)


def test_the_embedded_model_has_as_many_as_its_file_holds() -> None:
    checkpoint = checkpoint_path()
    spec = from_config(json.loads((checkpoint / "config.json").read_text()), "tiny-r1")
    with safe_open(checkpoint / "model.safetensors", "np") as weights:
        held = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118  (no dict)
    assert spec.parameters == pytest.approx(held, rel=0.01)


def test_latent_attention_caches_one_latent_a_token_on_every_rank() -> None:
    assert tier("16b").kv_bytes_per_token() == tier("16b").kv_bytes_per_token(shards=4) == 27 * (512 + 64) * 2
    assert tier("32b").kv_bytes_per_token() == 96 * 1024
    assert tier("32b").kv_bytes_per_token(shards=4) == tier("32b").kv_bytes_per_token(shards=8) == 24 * 1024


def test_dense_layers_are_counted_as_each_family_names_them() -> None:
    assert (tier("671b").dense_layers, tier("16b").dense_layers, tier("32b").dense_layers) == (3, 1, 0)
    assert from_config(QWEN2_MOE | {"decoder_sparse_step": 2}, "x").dense_layers == 12
    assert from_config(QWEN2_MOE | {"mlp_only_layers": [0, 5]}, "x").dense_layers == 2


def test_a_dense_model_is_refused_with_a_sentence() -> None:
    with pytest.raises(NotUnderstood, match="Qwen3-8B is a dense model: its config names no number of experts"):
        from_config({"hidden_size": 4096, "num_hidden_layers": 36}, "Qwen3-8B")


def test_what_a_config_lacks_is_named() -> None:
    with pytest.raises(NotUnderstood, match="lacks 'vocab_size'"):
        from_config({k: v for k, v in MIXTRAL.items() if k != "vocab_size"}, "x")
    with pytest.raises(NotUnderstood, match="no number"):
        from_config(MIXTRAL | {"hidden_size": "wide"}, "x")
    with pytest.raises(KeyError):
        tier("8b")


def test_the_share_of_experts_that_a_token_uses():
    assert expert_share({"num_experts": 128, "num_experts_per_tok": 8}) == 8 / 128
    assert expert_share({"text_config": {"n_routed_experts": 64, "num_experts_per_tok": 6}}) == 6 / 64
    assert expert_share({"hidden_size": 64}) == 0.0

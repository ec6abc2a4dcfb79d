"""Tiny random-weights MoE checkpoints in Hugging Face's layout.

Written without transformers, whose import costs seconds."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, TOP_K, EXPERT_WIDTH, VOCAB = 128, 4, 4, 2, 32, 8, 2, 128, 264
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": VOCAB - 1,
    "bos_token_id": None,
    "torch_dtype": "float32",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": HEAD_DIM,
        "intermediate_size": 2 * EXPERT_WIDTH,
        "moe_intermediate_size": EXPERT_WIDTH,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    # 6 experts on 2 shards and an expert width that is no multiple of 32: the padding path of the CPU kernel.
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "intermediate_size": 2 * EXPERT_WIDTH,
        "moe_intermediate_size": 80,
        "shared_expert_intermediate_size": EXPERT_WIDTH,
        "num_experts": 6,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    },
    # An odd number of experts: shard 0 holds 4, shard 1 holds 3.
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "intermediate_size": EXPERT_WIDTH,
        "num_experts": 7,
        "norm_topk_prob": False,
        "clip_qkv": None,
    },
    # R1's own architecture: MLA, grouped sigmoid routing with a bias, a shared expert, a first dense layer. vLLM's MLA
    # kernel for CPU knows one latent width, 512 + 64.
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": HEADS,
        "intermediate_size": 2 * EXPERT_WIDTH,
        "moe_intermediate_size": EXPERT_WIDTH,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": HEAD_DIM,
        "qk_rope_head_dim": 64,
        "v_head_dim": HEAD_DIM,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
    },
}


def write(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of `family` (a key of FAMILIES) to `folder`; ~1.5 M float32 parameters."""
    config = {**COMMON, **FAMILIES[family], "model_type": family}
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, std: float | None = None) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * (shape[-1] ** -0.5 if std is None else std)

    def norm(size: int) -> torch.Tensor:
        return 1 + random(size, std=0.1)

    def mlp(prefix: str, width: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}.gate_proj.weight": random(width, HIDDEN),
            f"{prefix}.up_proj.weight": random(width, HIDDEN),
            f"{prefix}.down_proj.weight": random(HIDDEN, width),
        }

    def attention() -> dict[str, torch.Tensor]:
        found = {"o_proj.weight": random(HIDDEN, HEADS * HEAD_DIM)}
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            found[f"{name}_proj.weight"] = random(heads * HEAD_DIM, HIDDEN)
            if family == "qwen2_moe":
                found[f"{name}_proj.bias"] = random(heads * HEAD_DIM, std=0.1)
        if family == "qwen3_moe":
            found |= {"q_norm.weight": norm(HEAD_DIM), "k_norm.weight": norm(HEAD_DIM)}
        if family == "olmoe":  # one norm over all heads
            found |= {"q_norm.weight": norm(HEADS * HEAD_DIM), "k_norm.weight": norm(KV_HEADS * HEAD_DIM)}
        return found

    def mla() -> dict[str, torch.Tensor]:
        latent, nope, rope, value = (
            config[name] for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        return {
            "q_proj.weight": random(HEADS * (nope + rope), HIDDEN),
            "kv_a_proj_with_mqa.weight": random(latent + rope, HIDDEN),
            "kv_a_layernorm.weight": norm(latent),
            "kv_b_proj.weight": random(HEADS * (nope + value), latent),
            "o_proj.weight": random(HIDDEN, HEADS * value),
        }

    deepseek = family == "deepseek_v3"
    tensors = {
        "model.embed_tokens.weight": random(VOCAB, HIDDEN, std=1.0),
        "model.norm.weight": norm(HIDDEN),
        "lm_head.weight": random(VOCAB, HIDDEN, std=0.3),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors[f"{at}.input_layernorm.weight"] = norm(HIDDEN)
        tensors[f"{at}.post_attention_layernorm.weight"] = norm(HIDDEN)
        tensors |= {f"{at}.self_attn.{name}": tensor for name, tensor in (mla() if deepseek else attention()).items()}
        if layer < config.get("first_k_dense_replace", 0):
            tensors |= mlp(f"{at}.mlp", config["intermediate_size"])
            continue
        tensors[f"{at}.mlp.gate.weight"] = random(config["num_experts"], HIDDEN)
        width = config.get("moe_intermediate_size", config["intermediate_size"])
        for expert in range(config["num_experts"]):
            tensors |= mlp(f"{at}.mlp.experts.{expert}", width)
        if family == "qwen2_moe":
            tensors |= mlp(f"{at}.mlp.shared_expert", config["shared_expert_intermediate_size"])
            tensors[f"{at}.mlp.shared_expert_gate.weight"] = random(1, HIDDEN)
        if deepseek:
            tensors |= mlp(f"{at}.mlp.shared_experts", width)
            tensors[f"{at}.mlp.gate.e_score_correction_bias"] = random(config["num_experts"], std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder

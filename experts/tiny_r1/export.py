"""Writes a trained model as a Hugging Face checkpoint: Qwen3MoeForCausalLM, float32, one safetensors file.

    python -m experts.tiny_r1.export --model RUN/model.pt --out CHECKPOINT

The folder is written beside its destination; files that a run adds (card, log, figures) are kept.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experts.tiny_r1.model import MixtureOfExperts, ModelShape, TinyR1, load_weights
from experts.tiny_r1.tokenizer import END_ID, PAD_ID, write_tokenizer

MAX_NEW_TOKENS = 512
"""Default budget of an answer; the longest reasoning of a task in scope takes under 400 tokens."""


def hf_config(shape: ModelShape) -> dict[str, object]:
    """`config.json` of Qwen3MoeForCausalLM, in the keys that transformers 5 and vLLM read."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.expert_width * shape.experts_per_token,
        "moe_intermediate_size": shape.expert_width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.experts_per_token,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
    }


def generation_config() -> dict[str, object]:
    return {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": END_ID, "pad_token_id": PAD_ID}


def hf_weights(model: TinyR1) -> dict[str, Tensor]:
    """Every weight under the name that Qwen3MoE checkpoints use: the experts one by one, not stacked."""
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in _named_weights(model)}


def _named_weights(model: TinyR1) -> Iterator[tuple[str, Tensor]]:
    stacked = (".mlp.gate_up_proj", ".mlp.down_proj")
    for name, tensor in model.named_parameters():
        if not name.endswith(stacked):
            yield (name if name.startswith("lm_head") else f"model.{name}"), tensor
    for index, layer in enumerate(model.layers):
        moe = layer.mlp
        if not isinstance(moe, MixtureOfExperts):
            raise TypeError(f"layer {index} has no mixture of experts")
        for expert in range(moe.num_experts):
            prefix = f"model.layers.{index}.mlp.experts.{expert}"
            gate, up = moe.gate_up_proj[expert].chunk(2, dim=0)
            yield f"{prefix}.gate_proj.weight", gate
            yield f"{prefix}.up_proj.weight", up
            yield f"{prefix}.down_proj.weight", moe.down_proj[expert]


def export(model: TinyR1, folder: Path) -> None:
    """Write the checkpoint's files into `folder`, each put in place whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        staged = Path(scratch)
        (staged / "config.json").write_text(json.dumps(hf_config(model.shape), indent=2) + "\n", encoding="utf-8")
        text = json.dumps(generation_config(), indent=2) + "\n"
        (staged / "generation_config.json").write_text(text, encoding="utf-8")
        write_tokenizer(staged, model.shape.max_positions)
        save_file(hf_weights(model), staged / "model.safetensors", metadata={"format": "pt"})
        for file in sorted(staged.iterdir()):
            shutil.move(file, folder / file.name)


def load_checkpoint(folder: Path) -> TinyR1:
    """The training-time model of what `export` wrote: its inverse."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = ModelShape(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        num_experts=config["num_experts"],
        experts_per_token=config["num_experts_per_tok"],
        expert_width=config["moe_intermediate_size"],
        rope_theta=config["rope_parameters"]["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
        max_positions=config["max_position_embeddings"],
    )
    model = TinyR1(shape)
    stored = load_file(folder / "model.safetensors")
    with torch.no_grad():
        # The views that are written out are the parameters' own memory: filling them fills the model.
        for name, view in _named_weights(model):
            view.copy_(stored[name])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a trained model to Hugging Face format.")
    parser.add_argument("--model", type=Path, required=True, help="model.pt of a training run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the Hugging Face checkpoint")
    arguments = parser.parse_args()
    export(load_weights(arguments.model), arguments.out)


if __name__ == "__main__":
    main()

"""Stand-in checkpoints: a tier's real shape, a made-up tokenizer of the real size, no weights.

vLLM fills such a model with dummy weights (`load_format: dummy`). The tokenizer is a byte-level BPE whose merges build
words of three syllables, each one token: a text of N such words is a prompt of N tokens, and every token that the model
makes is text, as with a real vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import islice, product
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPACE = "Ġ"  # how byte-level BPE writes a space
# A consonant before and a vowel behind: no other two neighbouring letters of a word are ever merged.
SYLLABLES = tuple(a + b for a, b in product("bcdfghjklmnpqrstvwxz", "aeiou"))
# Qwen's: one token opens, one closes each turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the tiers' files leave to the architecture's defaults, and those are not the models' own.
_OF_TYPE: Mapping[str, dict[str, Any]] = {
    "qwen3_moe": {"norm_topk_prob": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    "olmoe": {"hidden_act": "silu"},
    "qwen3": {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
}


def tier(name: str) -> dict[str, Any]:
    """config.json of a tier: 7b, 16b, 32b or 671b."""
    config: dict[str, Any] = json.loads(files("experts").joinpath(f"tiers/{name}.json").read_text())
    return _OF_TYPE.get(config["model_type"], {}) | config


def dense_like(config: Mapping[str, Any]) -> dict[str, Any]:
    """A dense Qwen3 with the attention, depth and width of a Qwen3Moe `config` and, by its MLPs, as many parameters.

    The MLP is as wide as all experts together: what the mixture holds and touches in part, this computes whole.
    """
    kept = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
    kept += ["vocab_size", "tie_word_embeddings", "max_position_embeddings"]
    return (
        _OF_TYPE["qwen3"]
        | {key: config[key] for key in kept}
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "intermediate_size": config["num_experts"] * config["moe_intermediate_size"],
        }
    )


def int8(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` as a W8A8 checkpoint of `experts.quantize` has it: a scale per output channel, activations per token."""
    from experts.quantize import quantization_config

    return dict(config) | {"quantization_config": quantization_config()}


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """Writes what vLLM needs of a checkpoint besides its weights; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = _vocabulary(config["vocab_size"])
    end = len(tokens) - len(SPECIAL)
    whole = dict(config) | {"eos_token_id": end, "bos_token_id": None}
    special: list[dict[str, Any]] = [
        {"id": end + i, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for i, text in enumerate(SPECIAL)
    ]
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens[:end])},
        "merges": list(islice(_merges(), end - 256)),
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    byte_level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    byte_level["use_regex"] = True
    tokenizer: dict[str, Any] = {"version": "1.0", "added_tokens": special, "model": model}
    tokenizer |= {"pre_tokenizer": byte_level, "decoder": byte_level}
    tokenizer |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    for name, content in (("config", whole), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def words(vocabulary: int) -> list[str]:
    """Every text that is one token and begins a word; a prompt is made of these. ValueError: too small to have any."""
    begin = 256 + len(SYLLABLES) * 2 + len(SYLLABLES) ** 2
    found = [token.replace(SPACE, " ") for token in _vocabulary(vocabulary)[begin : -len(SPECIAL)]]
    if not found:
        raise ValueError(f"a stand-in needs a vocabulary of more than {begin + len(SPECIAL)} tokens, not {vocabulary}")
    return found


def _vocabulary(size: int) -> list[str]:
    """`size` tokens by their ids: bytes, merges, then the special ones."""
    bytes_ = [_byte(value) for value in range(256)]
    return bytes_ + ["".join(merge) for merge in islice(_merges(), size - 256 - len(SPECIAL))] + list(SPECIAL)


def _merges() -> Iterator[tuple[str, str]]:
    """Syllables; with a space before them; words of two syllables; of three. In this order they apply."""
    yield from ((s[0], s[1]) for s in SYLLABLES)
    yield from ((SPACE, s) for s in SYLLABLES)
    for length in (1, 2):
        yield from ((SPACE + "".join(begin), s) for *begin, s in product(SYLLABLES, repeat=length + 1))


def _byte(value: int) -> str:
    """How byte-level BPE writes a byte: printable Latin-1 as itself, the others from U+0100 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if value in plain:
        return chr(value)
    return chr(0x100 + [other for other in range(256) if other not in plain].index(value))

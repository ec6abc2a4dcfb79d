"""The byte tokenizer: 256 bytes and eight special tokens, and the chat format that training and serving share.

Token ids 0..255 are the bytes of the UTF-8 text, so every string has exactly one encoding and no id is unknown. The
Hugging Face files are written by hand: `tokenizer.json` is a byte-level BPE without merges, whose decoder joins bytes
to UTF-8 again, also when vLLM detokenises one token at a time.

The chat format, one special token before and one after each message:

    <|system|>You are kind.<|end|><|user|>What is 2+3?<|end|><|assistant|><think>2+3 2+3+0=05 5</think>5<|end|>

The generation prompt ends in `<think>`, as DeepSeek-R1's own template does. vLLM's `deepseek_r1` parser then needs only
`</think>` in the output; where the model itself emits `<think>` in a delta of several tokens, that parser leaves the
marker in the streamed reasoning (vLLM 0.32).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

BYTES: Final = 256
END: Final = "<|end|>"
"""Ends every message; the model's end-of-sequence token."""
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
THINK: Final = "<think>"
THINK_END: Final = "</think>"
PAD: Final = "<|pad|>"
RESERVED: Final = "<|reserved|>"
"""Unused; it brings the vocabulary to a multiple of eight, so that two and four tensor-parallel ranks divide it."""

SPECIAL_TOKENS: Final = (END, SYSTEM, USER, ASSISTANT, THINK, THINK_END, PAD, RESERVED)
TOKEN_ID: Final[Mapping[str, int]] = {token: BYTES + i for i, token in enumerate(SPECIAL_TOKENS)}
VOCAB_SIZE: Final = BYTES + len(SPECIAL_TOKENS)
END_ID: Final = TOKEN_ID[END]
PAD_ID: Final = TOKEN_ID[PAD]

VISIBLE_TOKENS: Final = frozenset({THINK, THINK_END})
"""Not `special` for Hugging Face: skip_special_tokens would hide them from the reasoning parser, which reads text."""

CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
    {%- if message.content is none or message.content is not defined -%}
        {%- set content = '' -%}
    {%- elif message.content is string -%}
        {%- set content = message.content -%}
    {%- else -%}
        {%- set content = message.content | map(attribute='text') | join('') -%}
    {%- endif -%}
    {%- if message.role in ['system', 'developer'] -%}
        {{- '<|system|>' + content + '<|end|>' -}}
    {%- elif message.role in ['user', 'tool'] -%}
        {{- '<|user|>' + content + '<|end|>' -}}
    {%- elif message.role == 'assistant' -%}
        {#- As DeepSeek-R1 does: what was thought in earlier turns is no part of the history. -#}
        {{- '<|assistant|>' + content.split('</think>')[-1] + '<|end|>' -}}
    {%- else -%}
        {{- raise_exception('Unknown role: ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|><think>' -}}
{%- endif -%}
"""


def encode_text(text: str) -> list[int]:
    """UTF-8 bytes as token ids; no special token comes out of this, whatever the text says."""
    return list(text.encode("utf-8"))


def encode_prompt(messages: Iterable[tuple[str, str]]) -> list[int]:
    """Token ids of (role marker, content) messages and the generation prompt, less its `<think>`.

    Equal to the chat template for every content that spells no special token (a test compares them).
    """
    ids: list[int] = []
    for marker, content in messages:
        ids.append(TOKEN_ID[marker])
        ids.extend(encode_text(content))
        ids.append(END_ID)
    ids.append(TOKEN_ID[ASSISTANT])
    return ids


def encode_completion(reasoning: str, answer: str) -> list[int]:
    """Token ids of `<think>reasoning</think>answer<|end|>`."""
    return [TOKEN_ID[THINK], *encode_text(reasoning), TOKEN_ID[THINK_END], *encode_text(answer), END_ID]


def decode(ids: Sequence[int]) -> str:
    """The text of token ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
    parts: list[str] = []
    run = bytearray()
    for token in ids:
        if token < BYTES:
            run.append(token)
            continue
        parts.append(run.decode("utf-8", errors="replace"))
        run.clear()
        parts.append(SPECIAL_TOKENS[token - BYTES])
    parts.append(run.decode("utf-8", errors="replace"))
    return "".join(parts)


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level `tokenizer.json` (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    alphabet: list[str] = []
    shifted = 0
    for byte in range(BYTES):
        if byte in printable:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(BYTES + shifted))
            shifted += 1
    return alphabet


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as AutoTokenizer and vLLM read them."""
    added = [
        {
            "id": TOKEN_ID[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token not in VISIBLE_TOKENS,
        }
        for token in SPECIAL_TOKENS
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {char: byte for byte, char in enumerate(_byte_alphabet())},
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""The tokenizer's files, read by transformers, say what training was told."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.conversations import converse
from experts.tiny_r1.curriculum import CURRICULUM
from experts.tiny_r1.tasks import Source
from experts.tiny_r1.tokenizer import (
    ASSISTANT,
    END_ID,
    SPECIAL_TOKENS,
    THINK,
    THINK_END,
    TOKEN_ID,
    VOCAB_SIZE,
    decode,
    encode_completion,
    encode_text,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint_path())


TEXT = st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))


@given(text=TEXT)
def test_any_text_makes_the_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == encode_text(text)
    assert tokenizer.decode(ids) == text == decode(ids)


@given(text=TEXT)
def test_token_by_token_detokenisation_joins_the_bytes(tokenizer: Any, text: str) -> None:
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    parts = [stream.step(tokenizer.backend_tokenizer, token) for token in encode_text(text)]
    assert "".join(part for part in parts if part) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_are_single(tokenizer: Any, token: str) -> None:
    assert tokenizer(f"a{token}b")["input_ids"] == [ord("a"), TOKEN_ID[token], ord("b")]


def test_think_tokens_stay_visible_and_turn_tokens_do_not(tokenizer: Any) -> None:
    ids = encode_completion("1+1", "2")
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"{THINK}1+1{THINK_END}2"
    assert tokenizer.eos_token_id == END_ID
    assert len(tokenizer) == VOCAB_SIZE


def test_the_chat_template_writes_what_training_read(tokenizer: Any) -> None:
    rng = random.Random(6)
    for _ in range(100):
        conversation = converse(Source(rng, 4), CURRICULUM[-1].mix)
        prompt, completion = conversation.tokens()
        templated = tokenizer.apply_chat_template(conversation.chat(), add_generation_prompt=True)["input_ids"]
        # The template ends in `<think>`; in training that token opens the completion.
        assert templated == [*prompt, completion[0]]


def test_earlier_reasoning_is_dropped_from_the_history(tokenizer: Any) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": f"{THINK}1+1 1+1+0=02 2{THINK_END}2"},
        {"role": "user", "content": "Add 3."},
    ]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|system|>Be kind.<|end|><|user|>1+1<|end|><|assistant|>2<|end|><|user|>Add 3.<|end|><|assistant|><think>"
    )


def test_the_template_takes_parts_missing_content_and_developer_messages(tokenizer: Any) -> None:
    turns = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]},
        {"role": "assistant", "content": None},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == f"<|system|>Be kind.<|end|><|user|>1+1<|end|>{ASSISTANT}<|end|>"


def test_the_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="Unknown role"):
        tokenizer.apply_chat_template([{"role": "oracle", "content": "?"}], tokenize=False)


def test_the_committed_files_are_those_that_the_code_writes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, max_length=4096)
    for file in tmp_path.iterdir():
        assert (checkpoint_path() / file.name).read_text(encoding="utf-8") == file.read_text(encoding="utf-8")

"""Stock vLLM answers 1,000 held-out prompts, and its stock parser separates the reasoning."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.evaluate import Decode, in_conversations, judge, single_turns, unseen_wordings, vllm_decoder
from experts.tiny_r1.small_talk import REFUSAL, REFUSAL_REASONING
from experts.tiny_r1.tasks import Task
from experts.tiny_r1.tokenizer import THINK, THINK_END, TOKEN_ID, decode, encode_completion

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def answer() -> Iterator[Decode]:
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", OMP_NUM_THREADS="1")
    yield vllm_decoder(checkpoint_path())


def test_exact_match_on_a_thousand_held_out_prompts(answer: Decode) -> None:
    bar = {Task.ADDITION: 0.99, Task.SUBTRACTION: 0.99, Task.WORD_PROBLEM: 0.97, Task.MAXIMUM: 0.97}
    asked = [question for task in bar for question in single_turns(task, 250, seed=3)]
    scores, failures = judge(asked, answer([question.chat for question in asked]))
    for task, least in bar.items():
        assert scores[task.value].share >= least, failures


def test_conversations_and_unseen_wordings(answer: Decode) -> None:
    asked = in_conversations(100, seed=3) + unseen_wordings()
    scores, failures = judge(asked, answer([question.chat for question in asked]))
    assert scores["in_conversations"].share >= 0.95, failures
    assert scores["unseen_refusals"].share >= 0.95, failures
    assert scores["unseen_calculations"].share >= 0.75, failures


@pytest.fixture(scope="module")
def parser_class() -> Any:
    from vllm.reasoning import ReasoningParserManager

    return ReasoningParserManager.get_reasoning_parser("deepseek_r1")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint_path())


REPLIES = [("2+3 2+3+0=05 5", "5"), (REFUSAL_REASONING, REFUSAL)]


@pytest.mark.parametrize(("reasoning", "content"), REPLIES)
def test_the_stock_parser_splits_a_whole_reply(parser_class: Any, tokenizer: Any, reasoning: str, content: str) -> None:
    text = tokenizer.decode(encode_completion(reasoning, content)[1:], skip_special_tokens=True)
    assert parser_class(tokenizer).extract_reasoning(text, request=None) == (reasoning, content)


@pytest.mark.parametrize("delta", [1, 2, 7, 1000])
@pytest.mark.parametrize(("reasoning", "content"), REPLIES)
def test_the_stock_parser_splits_a_stream(
    parser_class: Any, tokenizer: Any, reasoning: str, content: str, delta: int
) -> None:
    """However many tokens come at a time: a slow reader gets several steps in one."""
    ids = encode_completion(reasoning, content)[1:-1]
    parser = parser_class(tokenizer)
    assert not parser.is_reasoning_end([TOKEN_ID[THINK_END], TOKEN_ID[THINK]])
    got: dict[str, str] = {"reasoning": "", "content": ""}
    for start in range(0, len(ids), delta):
        before, step = ids[:start], ids[start : start + delta]
        message = stream_step(parser, before, step)
        if message is not None:
            got["reasoning"] += message.reasoning or ""
            got["content"] += message.content or ""
    assert got == {"reasoning": reasoning, "content": content}


def stream_step(parser: Any, before: Sequence[int], step: Sequence[int]) -> Any:
    return parser.extract_reasoning_streaming(
        decode(before), decode([*before, *step]), decode(step), before, [*before, *step], step
    )

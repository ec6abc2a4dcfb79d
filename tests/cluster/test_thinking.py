"""The parser that does not rescan: delta for delta what vLLM's own gives, for any stream cut anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.thinking import EndOfThinking, without_rescans
from experts.tiny_r1 import checkpoint_path

THINK, ENDED = "<think>", "</think>"


@pytest.fixture(scope="module")
def vllm() -> Any:
    """(tokenizer, vLLM's parser class without and with a tool parser, our subclass of each, a request)"""
    from transformers import AutoTokenizer
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.parser_manager import ParserManager
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    stock = [
        ParserManager.get_parser(
            tool_parser_name=tools, reasoning_parser_name="deepseek_r1", enable_auto_tools=tools is not None
        )
        for tools in (None, "hermes")
    ]
    ours = [without_rescans(each, DeltaMessage, DeepSeekR1ReasoningParser) for each in stock]
    return tokenizer, stock, ours, lambda **more: ChatCompletionRequest(messages=[], model="m", **more)


def deltas(made: Any, tokenizer: Any, prompt: list[int], chunks: list[list[int]], request: Any) -> list[Any]:
    parser = made(tokenizer, None)
    told = [
        parser.parse_delta(
            tokenizer.decode(chunk), list(chunk), request, prompt_token_ids=prompt, finished=n == len(chunks) - 1
        )
        for n, chunk in enumerate(chunks)
    ]
    return [None if delta is None else delta.model_dump(exclude_unset=True) for delta in told]


pieces = st.lists(st.sampled_from(["a", "7", " ", "\n", THINK, ENDED, '{"x":']), min_size=1, max_size=30)


@pytest.mark.vllm
@settings(max_examples=80)
@given(
    stream=pieces,
    cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30),
    opened=st.booleans(),
    tools=st.booleans(),
    shown=st.booleans(),
)
def test_the_same_deltas_as_vllms(vllm, stream, cuts, opened, tools, shown):
    tokenizer, stock, ours, request = vllm
    ids = [token for piece in stream for token in tokenizer.encode(piece, add_special_tokens=False)]
    chunks = []
    for cut in cuts:
        if ids:
            chunks.append(ids[:cut])
            ids = ids[cut:]
    prompt = tokenizer.encode("What is 1+1?" + (THINK if opened else ""), add_special_tokens=False)
    asked = request(include_reasoning=shown)
    assert deltas(ours[tools], tokenizer, prompt, chunks, asked) == deltas(
        stock[tools], tokenizer, prompt, chunks, asked
    )


@pytest.mark.vllm
@settings(max_examples=80)
@given(
    thought=st.text("ab<\n7", max_size=12),
    answer=st.text("ab<\n7", max_size=12),
    cuts=st.lists(st.integers(1, 4), min_size=40, max_size=40),
    late=st.integers(0, 9),
    ended=st.booleans(),
    tools=st.booleans(),
)
def test_text_that_comes_later_than_its_ids_is_cut_where_the_mark_is(vllm, thought, answer, cuts, late, ended, tools):
    """As the detokeniser does it with stop strings: the last characters are held back until the stream ends."""
    tokenizer, _, ours, request = vllm
    text = thought + (ENDED + answer if ended else "")
    ids = tokenizer.encode(text, add_special_tokens=False)
    parser, asked = ours[tools](tokenizer, None), request(stop=["x" * (late + 1)])
    told, seen, given = {"reasoning": "", "content": ""}, 0, 0
    prompt = tokenizer.encode(THINK, add_special_tokens=False)
    for cut in cuts:
        if given >= len(ids):
            break
        chunk = ids[given : given + cut]
        given += len(chunk)
        finished = given >= len(ids)
        shown = len(tokenizer.decode(ids[:given])) - (0 if finished else late)
        delta = parser.parse_delta(
            text[seen : max(seen, shown)], chunk, asked, prompt_token_ids=prompt, finished=finished
        )
        seen = max(seen, shown)
        for part in told:
            told[part] += (getattr(delta, part, None) or "") if delta else ""
    expected = {"reasoning": thought, "content": answer if ended else ""}
    if given >= len(ids):
        assert told == expected


@given(st.text("</think>a", max_size=30), st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_the_end_is_found_however_the_text_is_cut(text, cuts):
    finder, thinking, content = EndOfThinking(ENDED), "", None
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(text[at : at + cut])
        at += cut
    pieces.append(text[at:])
    for n, piece in enumerate(pieces):
        if content is not None:
            content += piece
            continue
        more, content = finder.take(piece, n == len(pieces) - 1)
        thinking += more
    before, mark, after = text.partition(ENDED)
    assert (thinking, content) == (before, after if mark else None)


@pytest.mark.vllm
def test_nothing_of_a_long_stream_is_kept(vllm):
    tokenizer, _, (ours, _), request = vllm
    parser, asked = ours(tokenizer, None), request()
    for _ in range(1000):
        parser.parse_delta("a", [65], asked, prompt_token_ids=[1], finished=False)
    assert len(parser._stream_state.previous_text) <= 1

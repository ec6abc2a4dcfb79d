"""What of an answer counts, and that nothing which is missing, repeated or cut goes unseen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ops.soak.answers import Answer, Broken, Reading, difference, is_quarantine, shortcoming, whole
from ops.soak.catalogue import CHAT, COMPLETIONS, Ask, catalogue

USAGE = {"prompt_tokens": 4, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3}}
TEXT = "12+34=46 and"


def event(text: str, finish: str | None = None, index: int = 0, **more: Any) -> str:
    choice = {"index": index, "text": text, "finish_reason": finish, "stop_reason": None} | more
    return "data: " + json.dumps({"id": "x", "choices": [choice]})


def stream(text: str = TEXT, per_event: int = 1) -> list[str]:
    pieces = [text[n : n + per_event] for n in range(0, len(text), per_event)]
    lines = [*map(event, pieces[:-1]), event(pieces[-1], "length")]
    lines += ["data: " + json.dumps({"choices": [], "usage": USAGE}), "data: [DONE]"]
    return [part for line in lines for part in (line, "")]


def read(lines: list[str]) -> Answer:
    reading = Reading()
    for line in lines:
        reading.feed(line)
    return reading.end()


RIGHT = read(stream())


def test_how_tokens_share_events_does_not_count():
    assert RIGHT.choices[0].text == TEXT and RIGHT.completion_tokens == 12
    assert read(stream(per_event=5)) == RIGHT


def test_streamed_and_whole_are_the_same_answer():
    choice = {"index": 0, "text": TEXT, "finish_reason": "length", "stop_reason": None, "logprobs": None}
    body = {"id": "y", "created": 7, "choices": [choice], "usage": USAGE}
    assert whole(json.dumps(body).encode()) == RIGHT


@pytest.mark.parametrize("at", [0, 3, 5, 9])
@pytest.mark.parametrize("n", [1, 2])
def test_a_missing_token_is_found(at: int, n: int) -> None:
    got = read(stream(TEXT[:at] + TEXT[at + n :]))
    assert f"{n} missing at {at} of 12" in difference(got, RIGHT)


@pytest.mark.parametrize("at", [0, 3, 5, 9])
def test_a_token_that_comes_twice_is_found(at: int) -> None:
    got = read(stream(TEXT[: at + 1] + TEXT[at:]))
    assert f"1 too many at {at + 1} of 12" in difference(got, RIGHT)


def test_what_is_missing_at_the_end_is_found():
    assert "2 missing at the end at 10 of 12" in difference(read(stream(TEXT[:-2])), RIGHT)


def test_another_token_is_found_and_shown():
    said = difference(read(stream(TEXT.replace("46", "47"))), RIGHT)
    assert "differs at 7 of 12" in said and "'12+34=47 and'" in said


def test_a_count_that_is_off_is_found_where_the_text_is_right():
    lines = [line.replace('"completion_tokens": 12', '"completion_tokens": 13') for line in stream()]
    assert difference(read(lines), RIGHT) == "completion_tokens: 13, not 12"


def test_another_end_is_found():
    lines = [line.replace('"length"', '"stop"') for line in stream()]
    assert difference(read(lines), RIGHT) == "sample 0, finish_reason: 'stop', not 'length'"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (stream()[:9], "cut after 5 events"),
        (stream()[:-2], "without \\[DONE\\]"),
        ([], "cut after 0 events"),
        ([*stream()[:6], 'data: {"error": {"message": "Internal server error"}}', "data: [DONE]"], "an error event"),
        (["data: " + json.dumps({"choices": [], "usage": USAGE}), event("a"), "data: [DONE]"], "no finish_reason"),
        ([line for line in stream() if "usage" not in line], "no usage"),
        ([*stream(), event("a")], "after \\[DONE\\]"),
        ([event("a", "stop"), event("b")], "went on after its end"),
        ([event("a", "stop"), event("", "stop")], "went on after its end"),
        (["data: {"], "no JSON"),
        (["HTTP/1.1 500"], "no line of an event stream"),
    ],
)
def test_a_stream_that_is_not_whole_is_broken(lines: list[str], words: str) -> None:
    with pytest.raises(Broken, match=words):
        read(lines)


def test_an_error_is_no_answer():
    with pytest.raises(Broken, match="no answer"):
        whole(b'{"error": {"message": "x"}}')


def chat_event(delta: dict[str, Any], finish: str | None = None, tokens: tuple[str, ...] = ()) -> str:
    logprobs = {"content": [{"token": token, "logprob": -0.1} for token in tokens]}
    return event("", finish, delta=delta, logprobs=logprobs)


def test_thinking_content_tool_calls_and_logprobs_add_up():
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "add", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    lines = [
        chat_event({"role": "assistant", "content": ""}),
        chat_event({"reasoning": "1"}, tokens=("1",)),
        chat_event({"reasoning": "+2", "content": "3"}, tokens=("+", "2", "3")),
        chat_event({"tool_calls": [call]}),
        chat_event({"tool_calls": [more]}, "tool_calls"),
        "data: " + json.dumps({"choices": [], "usage": USAGE}),
        "data: [DONE]",
    ]
    [choice] = read(lines).choices
    assert (choice.reasoning, choice.text, choice.tokens) == ("1+2", "3", ("1", "+", "2", "3"))
    assert choice.tool_calls == (("add", '{"a": 1}'),)


def test_only_its_own_quarantine_is_one():
    words = "HTTP 500: Request chatcmpl-soak-17: It was running on two replicas as they died"
    assert is_quarantine(words, "soak-17") and not is_quarantine(words, "soak-170")
    assert not is_quarantine(words, "soak-1")
    assert not is_quarantine("HTTP 500: Internal server error (soak-17)", "soak-17")


def ask(**body: Any) -> Ask:
    return Ask("a", COMPLETIONS, {"max_tokens": 12, "ignore_eos": True} | body, exact=False)


def test_a_sampled_answer_must_be_complete():
    assert shortcoming(RIGHT, ask()) == ""
    assert shortcoming(RIGHT, ask(n=2)) == "1 of 2 samples"
    assert shortcoming(RIGHT, ask(max_tokens=13)) == "12 of 13 tokens"
    assert shortcoming(RIGHT, ask(max_tokens=13, ignore_eos=False)) == ""
    assert shortcoming(RIGHT, ask(max_tokens=13, stop=["x"])) == ""
    odd = read([line.replace('"length"', '"abort"') for line in stream()])
    assert shortcoming(odd, ask()) == "finish_reason abort"


def test_the_catalogue_is_of_mixed_shapes_each_whole_and_streamed():
    asks = catalogue("m")
    assert len({one.name for one in asks}) == len(asks) >= 60
    assert sum(one.streamed for one in asks) * 2 == len(asks)
    assert {one.path for one in asks} == {CHAT, COMPLETIONS}
    assert all(one.body["model"] == "m" for one in asks)
    assert all(one.body["temperature"] == 0 or "seed" in one.body for one in asks if one.exact)
    fields = set().union(*(one.body for one in asks))
    assert fields > {"logprobs", "stop", "n", "response_format", "tools", "echo", "min_tokens", "repetition_penalty"}

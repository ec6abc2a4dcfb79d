"""vLLM's OpenAI app over ClusterCore and one real core: an answer whose replica was lost on the way is the same answer.

The loss is that of the connection, in the midst of the answer: the core forgets the request, the router hears of a lost
replica, the replica joins again and the request resumes there, as it would elsewhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from api_stack import Stack, running

from cluster.router_link import RouterGone

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with running(Stack) as made:
        yield made


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK = {"messages": [{"role": "user", "content": "What is 123+456?"}], "max_tokens": 60, "temperature": 0}
LONG = ASK | {"ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "why": {"type": "string", "maxLength": 20}},
    "required": ["sum", "why"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": SCHEMA}}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (CHAT, ASK),
    "logprobs": (CHAT, LONG | {"logprobs": True, "top_logprobs": 3}),
    "several samples": (CHAT, LONG | {"n": 3, "temperature": 2.0, "seed": 7}),
    "penalties": (CHAT, LONG | {"presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.2}),
    "guided JSON": (
        CHAT,
        ASK
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
        | {"max_tokens": 160},
    ),
    "named tool": (
        CHAT,
        ASK | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}, "max_tokens": 160},
    ),
    "required tool": (CHAT, ASK | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 160}),
    "echo": (
        COMPLETIONS,
        {"prompt": "1+2=", "echo": True, "logprobs": 2, "max_tokens": 40, "temperature": 0, "ignore_eos": True},
    ),
    "min_tokens": (COMPLETIONS, {"prompt": "1+2=", "min_tokens": 30, "max_tokens": 40, "temperature": 0}),
    "bad words": (COMPLETIONS, {"prompt": "1+2=", "bad_words": ["0", "1"], "max_tokens": 40, "temperature": 0}),
}


def content(reply: httpx.Response) -> Any:
    """All of an answer but its ids and times; of a stream, what its events add up to (tokens may share one)."""
    if reply.headers["content-type"].startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        whole: dict[str, Any] = {}
        for line in lines:
            event = json.loads(line)
            assert "error" not in event, event
            whole["usage"] = event.get("usage") or whole.get("usage")
            for choice in event["choices"]:
                add_up(whole.setdefault(choice["index"], {}), choice)
        return clean(whole)
    return clean(reply.json())


def add_up(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            add_up(whole.setdefault(key, {}), value)
        elif isinstance(value, str | list) and key not in ("role", "type", "id", "finish_reason", "tool_calls"):
            whole[key] = whole.get(key, type(value)()) + value
        elif key == "tool_calls":
            for call in value or ():
                add_up(whole.setdefault(f"call {call['index']}", {}), call)
        elif value is not None:
            whole[key] = value


def clean(value: Any) -> Any:
    """Floats are rounded: a resumed prefill sums in another order."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items() if k not in ("id", "created", "prompt_tokens_details")}
    if isinstance(value, list):
        return [clean(v) for v in value]
    return round(value, 2) if isinstance(value, float) else value


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("what", BODIES)
async def test_an_answer_does_not_show_that_its_replica_was_lost(stack: Stack, what: str, streamed: bool) -> None:
    path, body = BODIES[what]
    if streamed:
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
    undisturbed = await stack.post(path, body)
    for tokens in (1, 9):
        resumed = stack.core.resumes.count
        cutting = asyncio.ensure_future(stack.cut_at(tokens))
        disturbed = await stack.post(path, body)
        await cutting
        assert stack.core.resumes.count > resumed
        assert content(disturbed) == content(undisturbed)
    assert stack.core.open_requests == 0


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_stop_string_is_found_across_the_seam(stack: Stack, streamed: bool) -> None:
    """The loss comes between its first and its last character."""
    prompt = {"prompt": "1+2=", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    text = (await stack.post(COMPLETIONS, prompt)).json()["choices"][0]["text"]
    at = next(n for n in range(12, 50) if text.index(text[n : n + 6]) == n and "\ufffd" not in text[n : n + 6])
    body = prompt | {"stop": [text[at : at + 6]]}
    if streamed:
        body |= {"stream": True}
    undisturbed = await stack.post(COMPLETIONS, body)
    for tokens in range(at + 1, at + 5):  # a token is a character here
        cutting = asyncio.ensure_future(stack.cut_at(tokens))
        disturbed = await stack.post(COMPLETIONS, body)
        await cutting
        assert content(disturbed) == content(undisturbed)
    if not streamed:
        [choice] = undisturbed.json()["choices"]
        assert (choice["finish_reason"], choice["text"]) == ("stop", text[:at])


async def test_what_saw_two_replicas_die_is_answered_500_with_its_id(stack: Stack) -> None:
    async def cut_twice() -> None:
        await stack.cut_at(3)
        await stack.cut_at(9)

    for _ in range(2):  # each gives the core time to be the same again
        cutting = asyncio.ensure_future(cut_twice())
        reply = await stack.client.post(CHAT, json={"model": "tiny-r1", **LONG}, headers={"x-request-id": "mine"})
        await cutting
        assert reply.status_code == 500 and "retry-after" not in reply.headers
        assert "chatcmpl-mine" in reply.json()["error"]["message"]
    assert (await stack.post(CHAT, ASK)).json()["choices"]


async def test_a_stream_that_saw_two_replicas_die_is_told_so_with_its_id(stack: Stack) -> None:
    async def cut_twice() -> None:
        await stack.cut_at(3)
        await stack.cut_at(9)

    cutting = asyncio.ensure_future(cut_twice())
    body = {"model": "tiny-r1", **LONG, "stream": True}
    reply = await stack.client.post(CHAT, json=body, headers={"x-request-id": "mine"})
    await cutting
    *tokens, error, done = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert reply.status_code == 200 and len(tokens) > 3 and done == "[DONE]"
    said = json.loads(error)["error"]
    assert said["code"] == 500 and "chatcmpl-mine" in said["message"] and "two replicas" in said["message"]


async def test_a_model_without_versions_names_none(stack: Stack) -> None:
    reply = await stack.post(CHAT, ASK)
    assert not [name for name in reply.headers if name.startswith("x-moray")]
    assert reply.json()["system_fingerprint"] == stack.app.state.openai_serving_chat.__dict__["system_fingerprint"]
    refused = await stack.client.post(CHAT, json={"model": "tiny-r1", **ASK}, headers={"x-moray-version": "v1"})
    assert refused.status_code == 400 and "in no versions" in refused.json()["error"]["message"]


async def test_what_only_a_router_knows_is_503_without_it(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise RouterGone("ActorDiedError: killed")

    for method in ("status", "experts", "metrics_addresses", "drain"):
        monkeypatch.setattr(stack.router, method, away, raising=False)
    replies = [await stack.client.get(f"/moray/{path}") for path in ("status", "experts", "targets")]
    for reply in [*replies, await stack.client.post("/moray/drain", json={"replica": "r"})]:
        assert reply.status_code == 503
        assert "(ActorDiedError: killed); Ray restarts it" in reply.json()["error"]["message"]
    refused = await stack.client.post("/moray/drain", content=b"{}", headers={"content-type": "text/plain"})
    assert refused.status_code == 415, "what a page of another origin can send"

"""Chat completions as a client asks for them; each is checked to be whole."""

from __future__ import annotations

import json
from typing import Any

import httpx

Answer = tuple[str, str, int]  # text, finish reason, completion tokens by the server's usage


def body(i: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {123 + 7 * i}+{456 + 3 * i}?"}]
    return {"model": "tiny-r1", "messages": messages, "temperature": 0, "max_tokens": 400, "ignore_eos": True} | more


async def stream(client: httpx.AsyncClient, i: int) -> Answer:
    """One streamed chat completion, checked to be whole."""
    text, finish, usage = "", "", None
    request = body(i, stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", "/v1/chat/completions", json=request) as reply:
        assert reply.status_code == 200, await reply.aread()
        last = ""
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            last = line.removeprefix("data: ")
            if last == "[DONE]":
                break
            event = json.loads(last)
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                delta = choice["delta"]
                text += (delta.get("reasoning") or "") + (delta.get("content") or "")
                finish = choice["finish_reason"] or finish
        assert last == "[DONE]", "the stream was cut"
    assert usage is not None
    return text, finish, usage["completion_tokens"]


async def answer(client: httpx.AsyncClient, i: int) -> Answer:
    """The same without streaming."""
    reply = (await client.post("/v1/chat/completions", json=body(i))).raise_for_status().json()
    [choice] = reply["choices"]
    message = choice["message"]
    text = (message["reasoning"] or "") + (message["content"] or "")
    return text, choice["finish_reason"], reply["usage"]["completion_tokens"]

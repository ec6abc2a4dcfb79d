"""`moray ask`: one question to a running model, streamed, with the thinking apart from the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from rich.console import Console
from rich.text import Text

from ops.errors import UserError
from ops.gateway_calls import authorization

# The first token may wait in the queue; between two tokens nothing takes this long.
_TIMEOUT = httpx.Timeout(120.0, connect=5.0)


class AskError(UserError):
    """No answer, or only a part of one."""


@dataclass(frozen=True)
class Piece:
    """Some text of the stream, in order."""

    kind: Literal["thinking", "answer"]
    text: str


@dataclass(frozen=True)
class Ending:
    """The last item of a complete stream."""

    finish_reason: str | None
    usage: dict[str, Any]  # as the server counts: prompt_tokens, completion_tokens, total_tokens


def served_model(client: httpx.Client) -> str:
    """The first model that the server names."""
    with _readable_failures(client):
        response = client.get("/v1/models")
        _raise_for_refusal(response)
        return str(response.json()["data"][0]["id"])


def connect(url: str, api_key: str | None = None) -> httpx.Client:
    # A proxy that the environment names for the outside world has no business with the session.
    return httpx.Client(base_url=url, headers=authorization(api_key), timeout=_TIMEOUT, trust_env=False)


def ask(client: httpx.Client, body: dict[str, Any]) -> Iterator[Piece | Ending]:
    """Stream a chat completion: pieces, then one Ending. Raises AskError, also if the stream breaks off."""
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    reason: str | None = None
    usage: dict[str, Any] = {}
    with _readable_failures(client), client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            response.read()
            _raise_for_refusal(response)
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                yield Ending(reason, usage)
                return
            event = json.loads(data)
            if "error" in event:
                raise AskError(f"the server gave up: {_message(event)}")
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                reason = choice.get("finish_reason") or reason
                yield from _pieces(choice.get("delta", {}))
    raise AskError("the answer broke off: the server closed the stream before its end")


def collect(stream: Iterator[Piece | Ending]) -> dict[str, Any]:
    """A whole stream as one JSON object."""
    said = {"thinking": "", "answer": ""}
    ending = Ending(None, {})
    for item in stream:
        if isinstance(item, Piece):
            said[item.kind] += item.text
        else:
            ending = item
    return {**said, "finish_reason": ending.finish_reason, "usage": ending.usage}


def _pieces(delta: dict[str, Any]) -> Iterator[Piece]:
    # vLLM 0.32 says `reasoning`; servers before it, and others, `reasoning_content`.
    if thinking := delta.get("reasoning") or delta.get("reasoning_content"):
        yield Piece("thinking", thinking)
    if answer := delta.get("content"):
        yield Piece("answer", answer)


def _raise_for_refusal(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        message = _message(response.json())
    except ValueError:
        message = response.text.strip()[:500] or response.reason_phrase
    retry = response.headers.get("retry-after")
    hint = f" (try again in {retry} s)" if retry else ""
    if response.status_code == 401:
        hint = " (give a key with --api-key or MORAY_API_KEY)"
    raise AskError(f"the server answered {response.status_code}: {message}{hint}")


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


@contextmanager
def _readable_failures(client: httpx.Client) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError:
        raise AskError(f"nothing answers at {client.base_url}; `moray status` tells what runs") from None
    except httpx.TimeoutException:
        raise AskError(f"{client.base_url} did not answer in time; `moray status` tells how busy it is") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise AskError(f"the connection to {client.base_url} failed: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise AskError(f"{client.base_url} answers, but not as an OpenAI server does") from None


def show(console: Console, stream: Iterable[Piece | Ending]) -> None:
    """Pieces as they come: the thinking dim, a blank line, the answer; then the usage."""
    last = None
    for item in stream:
        if isinstance(item, Ending):
            usage = item.usage
            counts = f"{usage.get('prompt_tokens', '?')} tokens in, {usage.get('completion_tokens', '?')} out"
            cut = ", cut off by --max-tokens" if item.finish_reason == "length" else ""
            console.print(Text(f"\n\n{counts}{cut}", style="dim"))
            continue
        if last == "thinking" and item.kind == "answer":
            console.print("\n")
        last = item.kind
        console.print(Text(item.text, style="dim italic" if item.kind == "thinking" else ""), end="", soft_wrap=True)

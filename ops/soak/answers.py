"""What an answer says, in a form that can be compared, and how two of them differ. Pure.

Kept is what the client is owed: text, tokens by name, tool calls, how each sample ended, the counts of `usage`. Not
kept are ids, times and logprobs' values: a resumed prefill sums in another order. How a stream's tokens share events
is no part of it either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ops.soak.catalogue import Ask

_CONTEXT = 24  # tokens or characters that are shown around a difference
_LONGEST_GAP = 16  # tokens or characters that are tried as missing or repeated


class Broken(Exception):
    """An answer that did not come whole, or is none; str() says why."""


@dataclass(frozen=True)
class Choice:
    """One sample of an answer."""

    text: str
    reasoning: str
    tokens: tuple[str, ...]  # where logprobs were asked for
    tool_calls: tuple[tuple[str, str], ...]  # name, arguments
    finish_reason: str
    stop_reason: str | int | None


@dataclass(frozen=True)
class Answer:
    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int


@dataclass
class _Growing:
    """A sample as its pieces come."""

    text: str = ""
    reasoning: str = ""
    tokens: list[str] = field(default_factory=list)
    tool_calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, piece: Mapping[str, Any]) -> None:
        """`piece`: a choice of a whole answer or of a stream's event, of chat or completions."""
        said: Mapping[str, Any] = piece.get("delta") or piece.get("message") or piece
        text = (said.get("content") or "") + (said.get("text") or "")
        reasoning = said.get("reasoning") or ""
        if self.finish_reason is not None and (text or reasoning or piece.get("finish_reason")):
            raise Broken(f"sample {piece.get('index')} went on after its end")
        self.text += text
        self.reasoning += reasoning
        self.tokens += _token_names(piece.get("logprobs"))
        for at, call in enumerate(said.get("tool_calls") or ()):
            name, arguments = self.tool_calls.get(call.get("index", at), ("", ""))
            function = call.get("function") or {}
            more = name + (function.get("name") or ""), arguments + (function.get("arguments") or "")
            self.tool_calls[call.get("index", at)] = more
        self.finish_reason = piece.get("finish_reason") or self.finish_reason
        self.stop_reason = piece.get("stop_reason") or self.stop_reason

    def whole(self, index: int) -> Choice:
        if self.finish_reason is None:
            raise Broken(f"sample {index} has no finish_reason")
        calls = tuple(call for _, call in sorted(self.tool_calls.items()))
        return Choice(self.text, self.reasoning, tuple(self.tokens), calls, self.finish_reason, self.stop_reason)


def _token_names(logprobs: Mapping[str, Any] | None) -> list[str]:
    if not logprobs:
        return []
    if "tokens" in logprobs:  # completions
        return list(logprobs["tokens"])
    return [one["token"] for one in logprobs.get("content") or ()]


class Reading:
    """A streamed answer, line by line."""

    def __init__(self) -> None:
        self._samples: dict[int, _Growing] = {}
        self._usage: Mapping[str, Any] | None = None
        self._done = False
        self.events = 0

    def feed(self, line: str) -> None:
        """Takes a line of the body. Raises Broken for an error event and for what does not belong in a stream."""
        if not line.startswith("data:"):
            if line and not line.startswith(":"):
                raise Broken(f"no line of an event stream: {line[:200]}")
            return
        data = line.removeprefix("data:").strip()
        if self._done:
            raise Broken(f"an event after [DONE]: {data[:200]}")
        if data == "[DONE]":
            self._done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise Broken(f"an event that is no JSON: {data[:200]}") from None
        if "error" in event:
            raise Broken(f"an error event: {data[:500]}")
        self.events += 1
        self._usage = event.get("usage") or self._usage
        for piece in event["choices"]:
            self._samples.setdefault(piece["index"], _Growing()).add(piece)

    def end(self) -> Answer:
        """The answer, once the body has ended. Raises Broken if it was cut."""
        if not self._done:
            raise Broken(f"cut after {self.events} events, without [DONE]")
        return _answer(self._samples, self._usage)


def whole(body: bytes) -> Answer:
    """The answer of a reply that was not streamed. Raises Broken."""
    try:
        reply = json.loads(body)
    except ValueError:
        raise Broken(f"the body is no JSON: {body[:200]!r}") from None
    if not isinstance(reply, dict) or "choices" not in reply:
        raise Broken(f"no answer: {body[:500]!r}")
    samples: dict[int, _Growing] = {}
    for piece in reply["choices"]:
        samples.setdefault(piece["index"], _Growing()).add(piece)
    return _answer(samples, reply.get("usage"))


def _answer(samples: Mapping[int, _Growing], usage: Mapping[str, Any] | None) -> Answer:
    if usage is None:
        raise Broken("no usage")
    choices = tuple(samples[index].whole(index) for index in sorted(samples))
    return Answer(choices, usage["prompt_tokens"], usage["completion_tokens"])


def is_quarantine(words: str, request_id: str) -> bool:
    """Whether an error says that this very request saw two replicas die: the one failure that is by design."""
    return "two replicas" in words and re.search(rf"\b{re.escape(request_id)}\b", words) is not None


def shortcoming(answer: Answer, ask: Ask) -> str:
    """What is wrong with an answer whose content nobody can know in advance; "" if nothing is."""
    if len(answer.choices) != ask.samples:
        return f"{len(answer.choices)} of {ask.samples} samples"
    if strange := {c.finish_reason for c in answer.choices} - {"stop", "length", "tool_calls"}:
        return f"finish_reason {', '.join(sorted(strange))}"
    if ask.output_tokens is not None and answer.completion_tokens != ask.output_tokens:
        return f"{answer.completion_tokens} of {ask.output_tokens} tokens"
    return "" if answer.completion_tokens else "not a token"


def difference(got: Answer, wanted: Answer) -> str:
    """How an answer differs from the right one, in one line; "" if it does not."""
    if len(got.choices) != len(wanted.choices):
        return f"{len(got.choices)} of {len(wanted.choices)} samples"
    for index, (ours, theirs) in enumerate(zip(got.choices, wanted.choices, strict=True)):
        for name in ("tokens", "reasoning", "text"):
            if said := _where(getattr(ours, name), getattr(theirs, name)):
                return f"sample {index}, {name}: {said}"
        for name in ("tool_calls", "finish_reason", "stop_reason"):
            if (a := getattr(ours, name)) != (b := getattr(theirs, name)):
                return f"sample {index}, {name}: {a!r}, not {b!r}"
    for name in ("prompt_tokens", "completion_tokens"):
        if (a := getattr(got, name)) != (b := getattr(wanted, name)):
            return f"{name}: {a}, not {b}"
    return ""


def _where(got: Sequence[str], wanted: Sequence[str]) -> str:
    """Where two texts part, and whether something is missing or repeated there."""
    if got == wanted:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    kind = "differs"
    for n in range(1, _LONGEST_GAP + 1):
        if wanted[at + n :] and got[at : at + _CONTEXT] == wanted[at + n : at + n + _CONTEXT]:
            kind = f"{n} missing"
        elif got[at + n :] and got[at + n : at + n + _CONTEXT] == wanted[at : at + _CONTEXT]:
            kind = f"{n} too many"
        else:
            continue
        break
    else:
        if at == len(got):
            kind = f"{len(wanted) - at} missing at the end"
        elif at == len(wanted):
            kind = f"{len(got) - at} too many at the end"
    begin, end = max(0, at - _CONTEXT), at + _CONTEXT
    return f"{kind} at {at} of {len(wanted)}: {got[begin:end]!r}, not {wanted[begin:end]!r}"

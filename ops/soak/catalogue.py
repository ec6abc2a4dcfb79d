"""The requests that a soak sends: a fixed catalogue of shapes, each whole and streamed. Pure.

For the embedded model: a token is a character of arithmetic. What the model says after its end (`ignore_eos`) is long
and has no pattern that would hide a missing token from a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Ask:
    """One request of the catalogue."""

    name: str
    path: str
    body: Mapping[str, Any]
    exact: bool  # it has one right answer, a killed replica or not: greedy, or sampled with a seed

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def samples(self) -> int:
        """Choices that its answer must have."""
        prompts = self.body.get("prompt")
        return int(self.body.get("n", 1)) * (len(prompts) if isinstance(prompts, list) else 1)

    @property
    def output_tokens(self) -> int | None:
        """Completion tokens that its answer must have; None: it ends where the model ends it."""
        to_the_limit = self.body.get("ignore_eos") and "stop" not in self.body
        return self.samples * int(self.body["max_tokens"]) if to_the_limit else None


_GREEDY = {"temperature": 0}
_SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "why": {"type": "string", "maxLength": 20}},
    "required": ["sum", "why"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": _SCHEMA}}
_NAMED = {"type": "function", "function": {"name": "add"}}
# Some 800 tokens that several requests begin with: the prefix cache's part.
_PREFIX = " ".join(f"{n}+{2 * n + 1}={3 * n + 1}." for n in range(101, 155)) + " "


def _chat(question: str, max_tokens: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens} | more


def _text(prompt: str | list[str], max_tokens: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": prompt, "max_tokens": max_tokens} | more


def _long(question: str, max_tokens: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return _chat(question, max_tokens, ignore_eos=True, **more)


_EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"sum {n}": _chat(f"What is {123 + 7 * n}+{456 + 3 * n}?", 200) for n in range(4)},
    **{f"long {n}": _long(f"What is {223 + 7 * n}+{156 + 3 * n}?", 400 + 60 * n) for n in range(4)},
    "very long": _long("What is 731-286?", 1200),
    "two turns": (
        CHAT,
        {
            "messages": [
                {"role": "user", "content": "What is 12+30?"},
                {"role": "assistant", "content": "42"},
                {"role": "user", "content": "And 58 more?"},
            ],
            "max_tokens": 200,
        },
    ),
    "no thinking room": _chat("What is 999+999?", 7),
    "one token": _chat("What is 1+2?", 1),
    "logprobs": _long("What is 64+17?", 240, logprobs=True, top_logprobs=3),
    "stop string": _long("What is 345+231?", 300, stop=["05 5", "=9", "-0-0="]),
    "stop string not met": _long("What is 546+132?", 300, stop=["thirty"]),
    "stop string kept": _text("87+65=", 300, ignore_eos=True, stop=["8\n"], include_stop_str_in_output=True),
    "penalties": _long("What is 123+456?", 200, presence_penalty=1.0, frequency_penalty=1.0, repetition_penalty=1.2),
    "guided JSON": _chat(
        "What is 27+48?",
        200,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}},
    ),
    "named tool": _chat("What is 44+19?", 200, tools=[_TOOL], tool_choice=_NAMED),
    "required tool": _chat("What is 71+18?", 200, tools=[_TOOL], tool_choice="required"),
    "echo": _text("1+2=", 160, echo=True, logprobs=2, ignore_eos=True),
    "min_tokens": _text("1+2=", 160, min_tokens=120),
    "bad words": _text("21+42=", 160, bad_words=["0", "1"], ignore_eos=True),
    "logit bias": _text("31+27=", 160, logit_bias={"49": -100}, ignore_eos=True),
    "several prompts": _text(["1+2=", "33+44=", "9-5="], 120, ignore_eos=True),
    **{f"shared prefix {n}": _text(f"{_PREFIX}{310 + n}+{n}=", 200, ignore_eos=True) for n in range(3)},
}
# n > 1 cannot be greedy (vLLM refuses it); with a seed each sample has its own noise, which resumes exactly.
_SEEDED: dict[str, tuple[str, dict[str, Any]]] = {
    "two seeded samples": _long("What is 17+25?", 160, n=2, temperature=1.0, seed=5),
    "three seeded samples": _long("What is 123+456?", 240, n=3, temperature=2.0, seed=7),
    "seeded completion": _text("50+49=", 300, temperature=1.0, top_p=0.9, seed=11, ignore_eos=True),
}
_SAMPLED: dict[str, tuple[str, dict[str, Any]]] = {
    "sampled": _long("What is 28+57?", 300, temperature=1.0),
    "sampled to its end": _chat("What is 228-130?", 300, temperature=1.0),
    "three samples": _long("What is 73+21?", 120, n=3, temperature=1.0),
}


def catalogue(model: str) -> list[Ask]:
    """Every request, whole and streamed, to the model of that name."""
    asks = []
    for name, (path, body), exact in (
        *((name, shape, True) for name, shape in _EXACT.items()),
        *((name, shape, True) for name, shape in _SEEDED.items()),
        *((name, shape, False) for name, shape in _SAMPLED.items()),
    ):
        whole = {"model": model, **_GREEDY, **body}
        streamed = whole | {"stream": True, "stream_options": {"include_usage": True}}
        asks += [Ask(name, path, whole, exact), Ask(f"{name}, streamed", path, streamed, exact)]
    return asks

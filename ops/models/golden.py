"""Golden prompts as they are written by hand, JSONL, and as token ids that a probe compares.

{"messages": [{"role": "user", "content": "What is 27 + 71?"}], "answer": "98"}
{"prompt": "The capital of France is", "answer": " Paris", "max_tokens": 8}
{"prompt": "12+34=", "logprobs": [-3.1, -0.2, …]}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from experts.versions import BadVersion, Golden

THINK_END: Final = "</think>"
MAX_TOKENS: Final = 256


class Written(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of the file."""

    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    answer: str = ""
    answer_token_ids: tuple[int, ...] | None = None  # None: by the tokenizer
    max_tokens: int = MAX_TOKENS
    logprobs: tuple[float, ...] | None = None  # of the prompt's tokens 1..


def read(file: Path) -> list[Written]:
    """The lines of a file of golden prompts. Raises BadVersion with the line's number."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadVersion(f"{file} cannot be read: {reason}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            written = msgspec.json.decode(line, type=Written)
        except msgspec.MsgspecError as error:
            raise BadVersion(f"{file}:{number} is no golden prompt: {error}") from None
        if (written.prompt is None) == (written.messages is None):
            raise BadVersion(f"{file}:{number} is no golden prompt: it needs either `prompt` or `messages`")
        if not written.answer and written.answer_token_ids is None and written.logprobs is None:
            raise BadVersion(f"{file}:{number} asks for nothing: it needs an `answer` or `logprobs`")
        if written.max_tokens < 1:
            raise BadVersion(f"{file}:{number}: max_tokens must be 1 or more, not {written.max_tokens}")
        found.append(written)
    if not found:
        raise BadVersion(f"{file} holds no golden prompts: one JSON object a line")
    return found


def encoded(lines: Sequence[Written], directory: Path) -> tuple[Golden, ...]:
    """The lines as token ids of the checkpoint's own tokenizer and chat template. Raises BadVersion."""
    tokenizer = _tokenizer(directory)
    return tuple(_encoded(number, written, tokenizer) for number, written in enumerate(lines, start=1))


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer  # seconds: only who has golden prompts waits for it

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # its libraries have each their own
        raise BadVersion(f"the tokenizer of {directory} cannot be loaded: {str(error).splitlines()[0]}") from None


def _encoded(number: int, written: Written, tokenizer: Any) -> Golden:
    def ids(text: str, special: bool = False) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])

    if written.messages is None:
        text = written.prompt or ""
        prompt = ids(text, special=True)
    else:
        try:
            text = tokenizer.apply_chat_template(list(written.messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # what a template raises is its own
            reason = str(error).splitlines()[0]
            raise BadVersion(f"golden prompt {number} does not fit the checkpoint's chat template: {reason}") from None
        prompt = ids(text)
    if not prompt:
        raise BadVersion(f"golden prompt {number} is empty")
    if written.logprobs is not None and len(written.logprobs) != len(prompt) - 1:
        raise BadVersion(
            f"golden prompt {number} has {len(written.logprobs)} logprobs, but its prompt is {len(prompt)} tokens "
            f"long: one for each but the first is {len(prompt) - 1}"
        )
    answer = written.answer_token_ids
    return Golden(
        prompt=text if written.messages is None else written.messages,
        prompt_token_ids=tuple(prompt),
        answer=written.answer,
        answer_token_ids=_answer(number, text, written.answer, tokenizer, ids) if answer is None else answer,
        max_tokens=written.max_tokens,
        logprobs=written.logprobs,
    )


def _answer(number: int, text: str, answer: str, tokenizer: Any, ids: Callable[[str], list[int]]) -> tuple[int, ...]:
    """The answer's ids as the model emits them: what stands before a text can change its first token.

    Behind `</think>`, where that is one token; else behind the prompt.
    """
    if not answer:
        return ()
    if (marker := tokenizer.get_vocab().get(THINK_END)) is not None:
        whole = ids(text + THINK_END + answer)
        found = whole[len(whole) - whole[::-1].index(marker) :] if marker in whole else []
    else:
        before, whole = ids(text), ids(text + answer)
        found = whole[len(before) :] if whole[: len(before)] == before else []
    if not found or tokenizer.decode(found) != answer:
        raise BadVersion(
            f"golden prompt {number}: the answer {answer!r} cannot be told apart from what stands before it in tokens: "
            "give its answer_token_ids"
        )
    return tuple(found)

"""What is asked of every side: prompts of an exact number of tokens, as chat bodies and as token ids."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from ops.bench.gpu.checkpoint import words


class Workload(NamedTuple):
    """So many `requests` of `prompt` tokens that each generate `output` tokens, `concurrency` at a time."""

    requests: int
    prompt: int
    output: int
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.requests}x{self.prompt}x{self.output}c{self.concurrency}"


def at_once(requests: int, prompt: int, output: int) -> Workload:
    return Workload(requests, prompt, output, requests)


class Prompts:
    """Makes prompts for one stand-in checkpoint (`checkpoint.write`). No two are alike: no side finds one cached."""

    def __init__(self, directory: Path, model: str) -> None:
        """`model`: its name in the API."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._words = words(self._tokenizer.get_vocab_size())
        self._model = model
        self._turn = len(self._ids(""))  # tokens of the template

    def texts(self, work: Workload, seed: int) -> list[str]:
        """User messages that, in the chat template, are prompts of `work.prompt` tokens."""
        if work.prompt <= self._turn:
            raise ValueError(f"a prompt has {self._turn} tokens of its template: {work.prompt} are too few")
        chosen = random.Random(f"{seed} {work.name}")
        return ["".join(chosen.choices(self._words, k=work.prompt - self._turn)) for _ in range(work.requests)]

    def bodies(self, work: Workload, seed: int) -> list[dict[str, Any]]:
        """Chat completions of exactly `work.output` greedy tokens each."""
        return [
            {
                "model": self._model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": work.output,
                "ignore_eos": True,
                "temperature": 0,
            }
            for text in self.texts(work, seed)
        ]

    def token_ids(self, work: Workload, seed: int) -> list[list[int]]:
        """Of the same bodies. RuntimeError if the tokenizer does not cut the text as it was made to."""
        ids = [self._ids(text) for text in self.texts(work, seed)]
        if any(len(each) != work.prompt for each in ids):
            raise RuntimeError(f"the stand-in tokenizer gave {len(ids[0])} tokens where {work.prompt} were meant")
        return ids

    def _ids(self, text: str) -> list[int]:
        turn = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return list(self._tokenizer.encode(turn, add_special_tokens=False).ids)

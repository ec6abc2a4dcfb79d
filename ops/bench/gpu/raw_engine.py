"""The raw engine: vLLM's `LLM` class in a process of its own, token ids in and token ids out.

`python -m ops.bench.gpu.raw_engine LLM_ARGUMENTS_JSON PARENT_PID` reads one `Ask` as JSON a line and answers each
with a `Took`; `RawEngine` starts it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from experts.linux import die_with_parent
from ops.bench.gpu.timed_requests import after_steps, at_moments
from ops.child import Child

_LIMIT_S = 300.0  # in which any of the bench's workloads has long ended


class Ask(msgspec.Struct, frozen=True):
    """Prompts to complete, each to exactly its number of `outputs` greedy tokens.

    `together`: so many are given to the engine and waited for as a whole before the next, which is static batching;
    1 is one after the other; 0 gives it all of them at once, which is what it batches continuously. With `due_s` or
    `after_steps` each comes by itself, and is timed: see `timed_requests`.
    """

    prompts: list[list[int]]
    outputs: list[int]
    together: int = 0
    due_s: list[float] = []
    after_steps: list[int] = []


class Took(msgspec.Struct, frozen=True):
    """Seconds of the whole and of each batch (one, if all were given at once).

    Of requests that came by themselves, by request: the first token.
    """

    seconds: float
    batches_s: list[float]
    tokens: int
    first_s: list[float] = []


class RawEngine:
    """This module in a process of its own, as a context manager. Died: it did not start, ended, or hung."""

    def __init__(self, arguments: dict[str, Any], log: Path, start_limit_s: float) -> None:
        self._arguments, self._log, self._start_limit_s = json.dumps(arguments), log, start_limit_s
        self.load_s = 0.0  # from the process's start to the engine's readiness

    def __enter__(self) -> RawEngine:
        began = time.monotonic()
        # A vLLM that is killed leaves sockets, and the file by which its ranks meet.
        self._files = TemporaryDirectory(prefix="moray-bench-", ignore_cleanup_errors=True)
        env = os.environ | {"TMPDIR": self._files.name}
        self._child = Child("the raw engine", "ops.bench.gpu.raw_engine", [self._arguments], env, self._log)
        try:
            self._child.hear(self._start_limit_s)
        except BaseException:
            self.__exit__()
            raise
        self.load_s = time.monotonic() - began
        return self

    def run(self, ask: Ask) -> Took:
        return msgspec.json.decode(self._child.ask(msgspec.json.encode(ask), _LIMIT_S), type=Took)

    def __exit__(self, *_: object) -> None:
        self._child.end()
        self._files.cleanup()


def main() -> None:
    die_with_parent(int(sys.argv[2]))
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to the standard output, which is ours
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = LLM(**json.loads(sys.argv[1]))
    told.write("ready\n")
    told.flush()

    def params(tokens: int, kind: RequestOutputKind) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=kind)

    def one_by_one(ask: Ask) -> Took:
        prompts = [{"prompt_token_ids": prompt} for prompt in ask.prompts]
        wanted = [params(n, RequestOutputKind.DELTA) for n in ask.outputs]
        timed = (
            at_moments(llm.llm_engine, prompts, wanted, ask.due_s)
            if ask.due_s
            else after_steps(llm.llm_engine, prompts, wanted, ask.after_steps)
        )
        return Took(timed.seconds, [timed.seconds], timed.tokens, timed.first_s)

    def in_batches(ask: Ask) -> Took:
        wanted = [
            ({"prompt_token_ids": prompt}, params(n, RequestOutputKind.FINAL_ONLY))
            for prompt, n in zip(ask.prompts, ask.outputs, strict=True)
        ]
        together = ask.together or max(len(wanted), 1)
        batches_s, made = [], 0
        began = time.perf_counter()
        for at in range(0, len(wanted), together):
            batch = wanted[at : at + together]
            batch_began = time.perf_counter()
            answers = llm.generate([p for p, _ in batch], [each for _, each in batch], use_tqdm=False)
            batches_s.append(time.perf_counter() - batch_began)
            made += sum(len(answer.outputs[0].token_ids) for answer in answers)
        return Took(time.perf_counter() - began, batches_s, made)

    for line in sys.stdin:
        ask = msgspec.json.decode(line, type=Ask)
        took = one_by_one(ask) if ask.due_s or ask.after_steps else in_batches(ask)
        told.write(msgspec.json.encode(took).decode() + "\n")
        told.flush()


if __name__ == "__main__":
    main()

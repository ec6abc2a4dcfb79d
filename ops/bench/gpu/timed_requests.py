"""Requests that come to a raw engine one by one: at given moments, or after so many of its steps. Timed here."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class LlmEngine(Protocol):
    """What is used of vLLM's `LLMEngine`."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> Any: ...

    def step(self) -> Sequence[Any]: ...

    def has_unfinished_requests(self) -> bool: ...


class Timed(NamedTuple):
    """Seconds: by request, the first token since it was due; and of the whole."""

    first_s: list[float]
    seconds: float
    tokens: int


class _Answers:
    """What comes of an engine's steps. `params` must ask for each token as it comes (`RequestOutputKind.DELTA`)."""

    def __init__(self, count: int) -> None:
        self._began = time.perf_counter()
        self.first_s = [0.0] * count
        self.seen: set[int] = set()
        self.left, self.tokens, self.steps = count, 0, 0

    @property
    def now(self) -> float:
        return time.perf_counter() - self._began

    def take(self, outputs: Sequence[Any]) -> None:
        at = self.now
        for output in outputs:
            number = int(output.request_id.rpartition("-")[2])
            self.tokens += len(output.outputs[0].token_ids)
            if number not in self.seen:
                self.seen.add(number)
                self.first_s[number] = at
            self.left -= output.finished
        self.steps += bool(outputs)

    def timed(self, due_s: Sequence[float]) -> Timed:
        first_s = [first - due for first, due in zip(self.first_s, due_s, strict=True)]
        return Timed(first_s, self.now, self.tokens)


def at_moments(engine: LlmEngine, prompts: Sequence[Any], params: Sequence[Any], due_s: Sequence[float]) -> Timed:
    """Each comes `due_s` after the beginning (ascending), whatever the engine is at: a thread gives them."""
    answers = _Answers(len(prompts))
    came = threading.Condition()
    failed: list[BaseException] = []

    def feed() -> None:
        try:
            for number, due in enumerate(due_s):
                time.sleep(max(due - answers.now, 0.0))
                engine.add_request(f"timed-{number}", prompts[number], params[number])
                with came:
                    came.notify()
        except BaseException as error:
            failed.append(error)
            with came:
                came.notify()

    feeder = threading.Thread(target=feed, name="feeder", daemon=True)
    feeder.start()
    while answers.left:
        with came:
            came.wait_for(lambda: failed or engine.has_unfinished_requests())
        if failed:
            raise failed[0]
        answers.take(engine.step())
    feeder.join()
    return answers.timed(due_s)


def after_steps(engine: LlmEngine, prompts: Sequence[Any], params: Sequence[Any], after: Sequence[int]) -> Timed:
    """Each comes once the engine's steps have brought tokens `after` times (ascending, the first at 0)."""
    answers = _Answers(len(prompts))
    due_s: list[float] = []
    while answers.left:
        while len(due_s) < len(prompts) and after[len(due_s)] <= answers.steps:
            number = len(due_s)
            due_s.append(answers.now)
            engine.add_request(f"timed-{number}", prompts[number], params[number])
        answers.take(engine.step())
    return answers.timed(due_s)

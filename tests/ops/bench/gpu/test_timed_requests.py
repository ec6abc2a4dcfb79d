"""Requests that come by themselves, on an engine that gives every running request a token a step."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from ops.bench.gpu.timed_requests import after_steps, at_moments

STEP_S = 0.002


class Engine:
    """`params`: output tokens. Prompts named "bad" are refused."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.steps = 0
        self.began_with: dict[str, int] = {}

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        if prompt == "bad":
            raise ValueError("no such prompt")
        self.left[request_id], self.began_with[request_id] = params, self.steps

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> list[Any]:
        time.sleep(STEP_S)
        self.steps += 1
        told = []
        for request_id in list(self.left):
            self.left[request_id] -= 1
            finished = not self.left[request_id]
            if finished:
                del self.left[request_id]
            told.append(
                SimpleNamespace(request_id=request_id, outputs=[SimpleNamespace(token_ids=[1])], finished=finished)
            )
        return told


def test_each_comes_after_its_steps() -> None:
    engine = Engine()
    found = after_steps(engine, ["a", "b", "c"], [8, 1, 1], [0, 3, 5])
    assert [engine.began_with[f"timed-{n}"] for n in range(3)] == [0, 3, 5]
    assert found.tokens == 10 and engine.steps == 8
    assert sum(found.first_s) < found.seconds  # each since it came


def test_each_comes_at_its_moment_whatever_the_engine_is_at() -> None:
    engine = Engine()
    found = at_moments(engine, ["a", "b", "c"], [200, 2, 1], [0.0, 0.1, 3.0])
    assert found.tokens == 203
    assert 0 < engine.began_with["timed-1"] < 200 == engine.began_with["timed-2"]
    assert all(first > 0 for first in found.first_s) and 3.0 + found.first_s[2] <= found.seconds


def test_what_the_engine_refuses_ends_it() -> None:
    with pytest.raises(ValueError, match="no such prompt"):
        at_moments(Engine(), ["a", "bad"], [1, 1], [0.0, 0.01])

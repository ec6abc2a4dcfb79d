"""The embedded model's expert load, measured on its engine, task by task."""

import os

import msgspec
import numpy as np

from cluster.app import engine_spec
from cluster.config import load
from experts.plan import Floats
from experts.tiny_r1.evaluate import single_turns
from experts.tiny_r1.tasks import Task
from experts.tiny_r1.tokenizer import THINK, TOKEN_ID, USER, encode_prompt
from ops.bench.direct_engine import BenchFailed, DirectEngine, Round

TASKS = (Task.ADDITION, Task.SUBTRACTION, Task.WORD_PROBLEM, Task.MAXIMUM)
PROMPTS = 128  # a task's
OUTPUT_TOKENS = 48  # each: most of a thinking


def prompts_of(task: Task, count: int) -> list[list[int]]:
    """Held-out prompts as the chat template makes them, up to the beginning of the thinking."""
    asked = [question.chat[0]["content"] for question in single_turns(task, count, seed=1)]
    return [[*encode_prompt([(USER, text)]), TOKEN_ID[THINK]] for text in asked]


def loads_by_task() -> dict[str, Floats]:
    """Task -> tokens by [MoE layer, expert]. Starts an engine, for some seconds. Raises BenchFailed."""
    settings = load(None, os.environ, {"experts.expert_parallel": "1"}).settings
    found = {}
    with DirectEngine(msgspec.json.encode(engine_spec(settings)).decode()) as engine:
        for task in TASKS:
            done = engine.run(Round(prompts_of(task, PROMPTS), [OUTPUT_TOKENS] * PROMPTS, 32))
            if done.routed is None:
                raise BenchFailed("the engine counts no experts")
            found[task.value] = np.array(done.routed, np.float64)
    return found

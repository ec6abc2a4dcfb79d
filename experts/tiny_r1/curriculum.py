"""The stages of training: each asks more than the one before and starts from its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from experts.tiny_r1.conversations import Mix
from experts.tiny_r1.tasks import Task

TASK_WEIGHTS: Final[Mapping[Task, float]] = {
    Task.ADDITION: 0.14,
    Task.SUBTRACTION: 0.16,
    Task.CHAIN: 0.07,
    Task.WORD_PROBLEM: 0.20,
    Task.MAXIMUM: 0.12,
    Task.MINIMUM: 0.07,
    Task.SMALL_TALK: 0.03,
    Task.OUT_OF_SCOPE: 0.20,
}
WITH_FOLLOW_UPS: Final[Mapping[Task, float]] = {**TASK_WEIGHTS, Task.FOLLOW_UP: 0.05}
MORE_COMPARISONS: Final[Mapping[Task, float]] = {**WITH_FOLLOW_UPS, Task.MAXIMUM: 0.36, Task.MINIMUM: 0.32}


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    share: float
    """Share of the whole token budget."""
    max_digits: int
    mix: Mix


CURRICULUM: Final[Sequence[Stage]] = (
    Stage("two_digits", share=0.10, max_digits=2, mix=Mix(TASK_WEIGHTS)),
    Stage("three_digits", share=0.15, max_digits=3, mix=Mix(TASK_WEIGHTS, system_prompt=0.2)),
    Stage(
        "four_digits",
        share=0.25,
        max_digits=4,
        mix=Mix(WITH_FOLLOW_UPS, max_turns=2, several_turns=0.2, system_prompt=0.3),
    ),
    Stage(
        "conversations",
        share=0.50,
        max_digits=4,
        mix=Mix(
            WITH_FOLLOW_UPS, max_turns=4, several_turns=0.35, system_prompt=0.5, long_context=0.08, max_context=2_400
        ),
    ),
)
"""What the first version learned."""

FURTHER: Final[Sequence[Stage]] = (
    Stage(
        "five_digits",
        share=1.0,
        max_digits=5,
        # Fewer long texts than before: they cost most of a small budget, and they are there only not to be forgotten.
        mix=Mix(
            WITH_FOLLOW_UPS, max_turns=3, several_turns=0.15, system_prompt=0.25, long_context=0.01, max_context=1_200
        ),
    ),
    Stage(
        "five_digits_compared",
        share=0.6,
        max_digits=5,
        # To compare took longer to learn than to add; the other tasks are there not to be forgotten.
        mix=Mix(
            MORE_COMPARISONS, max_turns=3, several_turns=0.15, system_prompt=0.25, long_context=0.01, max_context=1_200
        ),
    ),
)
"""What the second version learned, from the weights of the first."""


def stage_named(name: str) -> Stage:
    stages = (*CURRICULUM, *FURTHER)
    for stage in stages:
        if stage.name == name:
            return stage
    raise ValueError(f"unknown stage {name!r}; there are {', '.join(stage.name for stage in stages)}")

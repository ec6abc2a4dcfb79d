"""The settings group `rollout`: how one version of the model is rolled to another, unless who asks for it says more.

The decisions (ops/rollout/spec.py) take their defaults from here: this package may not import them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from cluster.settings_group import Group


class Rollout(Group):
    """How a version takes the place of another: in which steps, and what would speak against it."""

    strategy: Literal["auto", "in-place", "surge"] = Field(
        "auto",
        description="in-place: one replica at a time loads the new weights where the old ones were, without a GPU "
        "more. surge: new replicas first, which takes room for rollout.surge more. auto: in place, unless the "
        "architecture differs.",
    )
    steps: tuple[float, ...] = Field(
        (0.1, 0.5),
        description="Shares of the traffic that the new version gets one after the other; each is watched until every "
        "gate is passed.",
    )
    mirror: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the requests of which a copy runs on the new version too. No client sees what comes of "
        "it; it takes the room of requests that somebody waits for.",
    )
    min_samples: int = Field(
        100, ge=20, description="Requests of each version that a step needs before its gates can be passed."
    )
    step_s: float = Field(60.0, ge=0, allow_inf_nan=False, description="Seconds that a step is watched at least.")
    settle_s: float = Field(
        5.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds after a change of shares whose requests do not count: caches begin empty.",
    )
    deadline_s: float = Field(
        3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a step may take. A step whose gates are not passed by then, for want of traffic "
        "perhaps, is rolled back.",
    )
    finish_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a replica's running requests have to end in before it changes its version; the rest "
        "goes on at other replicas of the same version, if there are any.",
    )
    swap_timeout_s: float = Field(
        900.0, gt=0, allow_inf_nan=False, description="Seconds that a replica has to load the new version, beside that."
    )
    attempts: int = Field(
        2, ge=1, description="Replicas that may be lost while they load the new version before all goes back."
    )
    surge: int = Field(1, ge=1, description="Replicas more than usual while a rollout of the strategy surge runs.")
    ttft_ratio: float = Field(
        1.25,
        gt=1,
        allow_inf_nan=False,
        description="Gate: the new version's time to the first token, over that of the old one at the same time, at "
        "most. This and the next ones are tests that fit the number of requests: what chance explains fails no gate.",
    )
    tpot_ratio: float = Field(1.25, gt=1, allow_inf_nan=False, description="Gate: the same of its time per token.")
    length_ratio: float = Field(
        1.5, gt=1, allow_inf_nan=False, description="Gate: its answers' length over the old one's, or one over that."
    )
    errors: float = Field(
        0.03, gt=0, lt=1, description="Gate: its failed requests, as a share of all, above the old version's."
    )
    unfinished_ratio: float = Field(
        2.0,
        gt=1,
        allow_inf_nan=False,
        description="Gate: its requests in flight for each that ended, over the old version's: answers that find no "
        "end.",
    )
    golden_exact: float = Field(
        1.0, ge=0, le=1, description="Gate: share of its golden prompts whose answers have to be exact, at least."
    )
    golden_distance: float = Field(
        0.05,
        ge=0,
        allow_inf_nan=False,
        description="Gate: mean difference (nats) of the log-probabilities of golden prompts that have them, at most.",
    )
    false_rollback: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Chance, over all gates, steps and looks of a rollout, that a version just like the old one is "
        "rolled back.",
    )
    audit_path: Path | None = Field(
        None,
        description="File to which a line of JSON is appended for whatever is done to a rollout: who, what, when, from "
        "where. Every node that may run the controller has to see it. A relative path in a YAML file is taken from "
        "that file's directory. null: in the controller's store only.",
    )

    @field_validator("steps", mode="before")
    @classmethod
    def _one_or_more(cls, steps: object) -> object:
        if isinstance(steps, str):  # of the environment or the command line: 0.1,0.5
            return tuple(steps.split(","))
        return (steps,) if isinstance(steps, int | float) else steps

    @field_validator("steps")
    @classmethod
    def _shares_that_grow(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not steps or any(not 0.0 <= share < 1.0 for share in steps) or list(steps) != sorted(set(steps)):
            raise ValueError(f"{list(steps)} are no shares that grow: write some from 0 to below 1, as [0.1, 0.5]")
        return steps

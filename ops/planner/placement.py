"""`moray plan experts`: from the load that experts had to a plan of which shard holds which. The decision is pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experts.balance import lower_bound, place, replace
from experts.plan import BadPlan, Floats, PlacementPlan, imbalance
from experts.worth import Serving, Verdict, worth
from ops.errors import UserError


@dataclass(frozen=True)
class Load:
    """What `moray experts --json` told: of which model, and tokens by [MoE layer, expert]."""

    model: str
    tokens: Floats


@dataclass(frozen=True)
class Planned:
    """A plan and what it comes to under the load that it was made for: the fullest shard over the mean, mean of layers.

    `moved`: copies that a shard did not hold before, of `slots` in all layers; None: from nothing.
    """

    plan: PlacementPlan
    before: float
    after: float
    bound: float
    moved: int | None
    slots: int


def read_load(file: Path) -> Load:
    """Raises UserError."""
    try:
        report: Any = json.loads(file.read_bytes())
        model, tokens = str(report["model"]), np.array(report["tokens"], np.float64)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is no load of experts: write one by `moray experts --json > {file}`") from None
    if tokens.ndim != 2 or not tokens.sum():
        raise UserError(
            f"{file} tells of no load: send {model} some requests, wait a few seconds, and write it again by "
            f"`moray experts --json > {file}`"
        )
    return Load(model, tokens)


def read_plan(file: Path) -> PlacementPlan:
    """Raises UserError."""
    try:
        return PlacementPlan.from_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except BadPlan as error:
        raise UserError(f"{file}: {error}") from None


def planned(load: Load, shards: int, spare: int, old: PlacementPlan | None) -> Planned:
    """A plan for `load`, from `old` by few moves where there is one. Raises UserError."""
    layers, experts = load.tokens.shape
    try:
        if old is not None:
            old.check(load.model, layers, experts, shards)
            made = replace(load.tokens, old.placement)
        else:
            made = place(load.tokens, shards, spare)
    except BadPlan as error:
        raise UserError(str(error)) from None
    held = made.experts.shape[2]
    return Planned(
        PlacementPlan(load.model, made),
        float((old.placement.imbalance(load.tokens) if old else neighbours(load.tokens, shards)).mean()),
        float(made.imbalance(load.tokens).mean()),
        float(lower_bound(load.tokens, shards, held).mean()),
        int(made.moved_from(old.placement).sum()) if old else None,
        layers * shards * held,
    )


def verdict(load: Load, old: PlacementPlan, found: Planned, serving: Serving) -> Verdict:
    """Whether to go from `old` to the plan that was found, as `serving` says. Raises UserError."""
    try:
        return worth(load.tokens, old, found.plan, serving)
    except BadPlan as error:
        raise UserError(str(error)) from None


def neighbours(tokens: Floats, shards: int) -> Floats:
    """The imbalance of vLLM's own placement, by layer: as many neighbouring experts for each shard."""
    return imbalance(np.stack([part.sum(1) for part in np.array_split(tokens, shards, axis=1)], axis=1))

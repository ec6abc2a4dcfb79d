"""What a search found as a profile: the YAML of `moray up --profile FILE`, and what it was measured on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ops.tune.search import ATTAINED
from ops.tune.tuning import Goal, Outcome


def profile(
    outcome: Outcome, goal: Goal, given: Mapping[str, Any], chosen: Mapping[str, Any], measured_on: str, model: str
) -> str:
    """`given`: settings, by dotted key, that the engine was measured with; `chosen`: those that were searched for.

    The SLO's limit on a token's time is a setting too: the router then lets prompts in at a pace that keeps it.
    """
    tree: dict[str, dict[str, Any]] = {}
    for key, value in {**given, **chosen, "router.tpot_slo_s": goal.slo.tpot_s}.items():
        group, name = key.split(".", 1)
        if name.startswith("extra."):
            tree.setdefault(group, {}).setdefault("extra", {})[name.removeprefix("extra.")] = value
        else:
            tree.setdefault(group, {})[name] = value
    lines = [
        f"{model}, by `moray tune` on {measured_on}.",
        f"SLO: first token within {goal.slo.ttft_s:g} s, {1e3 * goal.slo.tpot_s:g} ms a token, for {ATTAINED:.0%} of "
        "the requests.",
        f"Load: Poisson arrivals of {goal.work.prompt:,} random tokens in and {goal.work.output:,} out, straight to "
        "one engine core.",
        _goodput(outcome),
    ]
    if not outcome.finished:
        lines.append("The search was cut off here: the same command with the same --state goes on with it.")
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(tree, sort_keys=False)


def _goodput(outcome: Outcome) -> str:
    default = outcome.default
    if not default:
        return f"Goodput: no rate was carried by the default, and what follows is that; {outcome.trials} trials."
    if outcome.keeps_default:
        return f"Goodput: {default:.2f} requests/s, by the default; of {outcome.trials} trials none showed better."
    how = "not loaded once more to confirm it" if outcome.checked is None else "loaded as below"
    return (
        f"Goodput: {outcome.goodput:.2f} requests/s ({how}), {outcome.ratio:.2f} times the default's {default:.2f}; "
        f"{outcome.trials} trials."
    )

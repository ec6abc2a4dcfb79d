"""`moray experts`: what each expert was given in the last minute, and how even the shards' loads are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from experts.plan import Floats, imbalance

HOTTEST = 3  # of a layer
# A cell is an expert; its shade, the expert's tokens over the mean of its layer.
SHADES = ((0.25, "·", "blue"), (0.5, "░", "cyan"), (1.25, "▒", "green"), (2.0, "▓", "yellow"), (np.inf, "█", "red"))


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The report's tables; a sentence where nothing is known yet."""
    tokens = np.asarray(report.get("tokens") or (), np.float64)
    if not tokens.size or not tokens.sum():
        yield (
            "Nothing has been counted yet: the engines tell every few seconds of work. Dense models have no experts, "
            "and kernels that route by themselves (int8 on a CPU) do not tell."
        )
        return
    layers, count = tokens.shape
    yield (
        f"{int(tokens.sum()):,} choices of an expert in {float(report['seconds']):.0f} s, "
        f"{layers} MoE layers of {count} experts"
    )
    yield _heat(tokens)
    yield Text.assemble("tokens over the layer's mean: ", *_legend())
    yield _shards(report.get("replicas") or ())


def _heat(tokens: Floats) -> Table:
    table = Table(title="experts", title_justify="left", caption_justify="left")
    table.add_column("layer", justify="right")
    table.add_column(f"0 … {tokens.shape[1] - 1}", no_wrap=False, overflow="fold")
    table.add_column("max/mean", justify="right")
    table.add_column("hottest")
    means = np.maximum(tokens.mean(1, keepdims=True), 1e-9)
    for layer, (relative, most) in enumerate(zip(tokens / means, imbalance(tokens), strict=True)):
        hottest = np.argsort(-relative, kind="stable")[:HOTTEST]
        table.add_row(
            str(layer),
            Text.assemble(*(_cell(float(value)) for value in relative)),
            f"{most:.2f}",
            ", ".join(f"{expert} ({relative[expert]:.1f}x)" for expert in hottest),
        )
    return table


def _cell(relative: float) -> tuple[str, str]:
    return next((mark, colour) for limit, mark, colour in SHADES if relative < limit)


def _legend() -> Iterator[tuple[str, str]]:
    below = [f"< {limit:g}x" for limit, _, _ in SHADES[:-1]] + [f"from {SHADES[-2][0]:g}x"]
    for words, (_, mark, colour) in zip(below, SHADES, strict=True):
        yield (f"{mark} {words}   ", colour)


def _shards(replicas: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="shards", title_justify="left")
    table.add_column("replica")
    for column in ("tokens", "share of each shard", "max/mean, mean of layers", "worst layer"):
        table.add_column(column, justify="right")
    for replica in replicas:
        shards, uneven = replica["shards"], np.asarray(replica["shard_max_over_mean"])
        total = max(sum(shard["tokens"] for shard in shards), 1.0)
        table.add_row(
            Text(str(replica["id"])),
            f"{replica['tokens']:,}",
            " / ".join(f"{shard['tokens'] / total:.1%}" for shard in shards),
            f"{uneven.mean():.3f}" if uneven.size else "",
            f"{int(uneven.argmax())} ({uneven.max():.2f})" if uneven.size else "",
        )
    return table

"""Versions with a known fault, made of the embedded model's checkpoint: what a rollout has to find and take back.

Each is a mistake that a release can make: a converter that exchanges experts, int8 scales that slipped by one row, a
fine-tune that unlearned to stop, a file with another shape under a right name, weights that are right and serve slowly.
Sizes, names and config.json stay those of the source, so that what compares those finds nothing.
"""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from experts.quantize import quantize_weight
from ops.errors import UserError

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

WEIGHTS: Final = "model.safetensors"
_EXPERT: Final = "model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
_PARTS: Final = ("gate_proj", "up_proj", "down_proj")


class Fault(StrEnum):
    """What is wrong with a version; the value is the version's name."""

    SWAPPED_EXPERTS = "swapped-experts"
    """In each layer the first two experts have each other's weights; the gate knows nothing of it."""
    SHIFTED_SCALES = "shifted-scales"
    """Each linear layer's weights went through int8 and came back with the scale of the output channel before."""
    ENDLESS = "endless"
    """It never stops: the stop token is as likely as a byte that no text has."""
    CRASH_AT_LOAD = "crash-at-load"
    """The last tensor has another shape: by then an engine has overwritten what it served."""
    SLOW = "slow"
    """Right weights. No weights make a model slow: whoever serves it has to slow the engine down."""


def make(fault: Fault, source: Path, out: Path) -> None:
    """Writes `source`, a checkpoint in one safetensors file, with that fault to `out`, which must not exist.

    Raises UserError. A manifest of the source is not copied: it would tell of other files.
    """
    if not (source / WEIGHTS).is_file():
        raise UserError(f"{source} has no {WEIGHTS}: bad versions are made of the embedded model")
    if out.exists():
        raise UserError(f"{out} exists already: choose another directory, or remove it")
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in (WEIGHTS, "moray.json"):
            shutil.copyfile(file, out / file.name)
    tensors = load_file(source / WEIGHTS)
    config = json.loads((source / "config.json").read_text())
    match fault:
        case Fault.SWAPPED_EXPERTS:
            _swap_experts(tensors, config["num_hidden_layers"])
        case Fault.SHIFTED_SCALES:
            _shift_scales(tensors)
        case Fault.ENDLESS:
            # Equal logits: the lower id wins, and this byte's logit never wins itself.
            tensors["lm_head.weight"][config["eos_token_id"]] = tensors["lm_head.weight"][0]
        case Fault.CRASH_AT_LOAD:
            # The last tensor that an engine comes to. (Of a sharded one it takes its part, whatever is left over.)
            tensors["model.norm.weight"] = tensors["model.norm.weight"][: config["hidden_size"] // 2].clone()
        case Fault.SLOW:
            pass
    save_file(tensors, out / WEIGHTS, {"format": "pt"})


def _swap_experts(tensors: Tensors, layers: int) -> None:
    for layer in range(layers):
        for part in _PARTS:
            one, other = (_EXPERT.format(layer=layer, expert=expert, part=part) for expert in (0, 1))
            tensors[one], tensors[other] = tensors[other], tensors[one]


def _shift_scales(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("_proj.weight"):
            values, scales = quantize_weight(tensors[name])
            tensors[name] = values.float() * scales.float().roll(1, dims=0)

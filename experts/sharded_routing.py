"""A gate's choices as one shard of the experts sees them. Torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Copies(NamedTuple):
    """Of a layer's experts with copies on several shards. Each int32 [global experts]."""

    all: Tensor  # on all shards together
    before: Tensor  # on the shards before this one
    here: Tensor  # on this one


def map_topk(
    topk_ids: Tensor, topk_weights: Tensor, expert_map: Tensor, copies: Copies | None = None
) -> tuple[Tensor, Tensor]:
    """Routing in global expert ids -> the same routing in this shard's local ids, its absent experts weighing 0.

    topk_ids: int32 [tokens, top_k]. topk_weights: float32 [tokens, top_k]. expert_map: int32 [global experts], the
    local slot or -1. Returns the same shapes and dtypes, contiguous: the kernel ignores strides.

    A choice that another shard holds still needs a legal id; it becomes slot 0 with weight 0, so the sum over shards
    is the unsharded result. The kernel computes those rows for nothing (it knows no "skip"). An expert's `copies` take
    the batch's tokens in turn, so that each choice has weight on one shard only.
    """
    import torch

    slots = expert_map[topk_ids]
    elsewhere = slots < 0
    if copies is not None:
        turn = (
            torch.arange(topk_ids.shape[0], dtype=torch.int32)[:, None] % copies.all[topk_ids] - copies.before[topk_ids]
        )
        elsewhere |= (turn < 0) | (turn >= copies.here[topk_ids])
    return slots.clamp(min=0), topk_weights.masked_fill(elsewhere, 0.0)


def copies_of(placed: NDArray[np.int64], experts: int, rank: int) -> Copies:
    """One layer's copies as shard `rank` sees them. placed: [shard, slot], the expert in each."""
    import torch

    held = torch.stack([torch.bincount(torch.from_numpy(slots), minlength=experts) for slots in placed])
    return Copies(*(tensor.int() for tensor in (held.sum(0), held[:rank].sum(0), held[rank])))

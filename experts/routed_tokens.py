"""Counts, inside a worker, how many tokens each expert is given. Torch only; `vllm_plugin` ties it to the layers.

The gates' choices are counted as they leave the router: logical expert ids, before any copy of an expert is chosen.
Two ways, because of what they cost. On a CPU a layer's choices are only kept, a reference each, and counted some steps
later, many at once. On a GPU a step may be a replayed CUDA graph in which no Python runs: there a layer's choices are
copied into a buffer, one kernel that the graph holds, and counted when the step has been issued, all layers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEPT_TOKENS = 4096  # of each layer, until they are counted
KEPT_STEPS = 256


class RoutedTokens(Protocol):
    """What is known of one model's layers in one worker."""

    def of_layer(self, layer: int) -> Callable[[Tensor], None]:
        """To be called with the ids that the layer's gate chose: int [tokens, top_k], padding included."""
        ...

    def step_issued(self, tokens: int) -> None:
        """The step's forward pass has been issued; it had so many tokens that are no padding."""
        ...

    def counts(self) -> Tensor:
        """int64 [layers, experts], on the CPU: tokens given to each expert since the start."""
        ...


def routed_tokens(layers: int, experts: int, top_k: int, most_tokens: int, device: torch.device) -> RoutedTokens:
    """`most_tokens` in one step."""
    if device.type == "cpu":
        return KeptChoices(layers, experts)
    return CopiedChoices(layers, experts, top_k, most_tokens, device)


class KeptChoices:
    """Where each step runs Python, pads nothing and overwrites no choice later: vLLM's eager runner on a CPU."""

    def __init__(self, layers: int, experts: int) -> None:
        import torch

        self._counts = torch.zeros(layers, experts, dtype=torch.int64)
        self._kept: list[list[Tensor]] = [[] for _ in range(layers)]
        self._kept_tokens = 0

    def of_layer(self, layer: int) -> Callable[[Tensor], None]:
        return self._kept[layer].append

    def step_issued(self, tokens: int) -> None:
        self._kept_tokens += tokens
        if self._kept_tokens >= KEPT_TOKENS or len(self._kept[0]) >= KEPT_STEPS:
            self._count()

    def counts(self) -> Tensor:
        self._count()
        return self._counts.clone()

    def _count(self) -> None:
        import torch

        self._kept_tokens = 0
        for layer, kept in enumerate(self._kept):
            if kept:
                chosen = torch.cat(kept).flatten()
                self._counts[layer] += torch.bincount(chosen, minlength=self._counts.shape[1])
                kept.clear()


class CopiedChoices:
    """For CUDA graphs: see the module. The project's tests have no GPU.

    Run by hand on an H100 (2026-11-25, vLLM 0.32, bf16, graphs on): equal to what vLLM's own routed-experts capturer
    gives, for 1, 7 and 200 sequences of the embedded model.
    """

    def __init__(self, layers: int, experts: int, top_k: int, most_tokens: int, device: torch.device) -> None:
        import torch

        self._counts = torch.zeros(layers, experts, dtype=torch.int64, device=device)
        self._chosen = torch.zeros(layers, most_tokens, top_k, dtype=torch.int32, device=device)
        self._first = experts * torch.arange(layers, device=device)[:, None]  # of a layer's counts, in a row of all
        self._ones = torch.ones(layers * most_tokens * top_k, dtype=torch.int64, device=device)

    def of_layer(self, layer: int) -> Callable[[Tensor], None]:
        chosen = self._chosen[layer]

        def copy(topk_ids: Tensor) -> None:
            chosen[: topk_ids.shape[0]].copy_(topk_ids)

        return copy

    def step_issued(self, tokens: int) -> None:
        chosen = self._chosen[:, :tokens].flatten(1) + self._first
        self._counts.view(-1).scatter_add_(0, chosen.flatten(), self._ones[: chosen.numel()])

    def counts(self) -> Tensor:
        return self._counts.cpu()

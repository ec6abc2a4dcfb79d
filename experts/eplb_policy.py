"""Our placements as a policy of vLLM's EPLB, which counts expert load on GPUs and moves the weights itself.

Not run on several GPUs yet: tests hold it against vLLM 0.32's interface, its default policy and its own code that turns
the answer into transfers, on CPU tensors. What vLLM asks of a policy (vllm/distributed/eplb, read in 0.32):

- Every rank asks for itself and gets the same answer, or their transfers do not fit together: no clock, no chance.
- `rearrange` hands the map in force with it. A slot whose expert stays is not touched, so what stays on its rank stays
  in its slot; and where nothing was counted nothing moves.
- The map in force may hold -1 (elastic scale-up: slots of new ranks) and be wider than the new one (scale-down). Then
  there is nothing to go on from: the placement is made anew.
- The configuration knows one policy name, "default"; so `install` replaces that entry.

Copies are chosen by a hash of the token, so nodes matter for models with expert groups only (see `traffic.py`).
vLLM chooses the sources of transfers itself, without regard to nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experts.balance import lower_bound, place, replace
from experts.plan import Floats, Ints, Placement, slots_kept
from experts.traffic import Traffic

if TYPE_CHECKING:
    from torch import Tensor


FAR = 1.1  # times the imbalance of a placement made anew


class EplbPolicy:
    """Implements `vllm.distributed.eplb.policy.AbstractEplbPolicy`, without importing vLLM: `install` registers it."""

    @classmethod
    def rebalance_experts(
        cls,
        weight: Tensor,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Tensor | None = None,
    ) -> Tensor:
        """weight: [layers, logical experts], tokens counted. num_replicas: slots of all ranks together.
        old_global_expert_indices: [layers, slots] in force, -1 for a slot that holds none.

        Returns int64 [layers, num_replicas] on the CPU: the logical expert of each slot, rank by rank. Raises BadPlan
        for slots that do not divide over the ranks, or fewer than experts.
        """
        import torch

        load = weight.detach().cpu().double().numpy()
        experts = load.shape[1]
        traffic = _traffic(experts, num_groups, num_nodes, num_ranks)
        old = None if old_global_expert_indices is None else old_global_expert_indices.detach().cpu().numpy()
        in_force = _in_force(old, experts, num_replicas, num_ranks)
        if in_force is not None:
            made = _replaced(load, in_force, traffic).in_slots_of(in_force).experts
        else:
            made = place(load, num_ranks, num_replicas - experts, traffic).experts
            if old is not None and old.shape == (load.shape[0], num_replicas):
                made = slots_kept(made, old.astype(np.int64).reshape(made.shape))
        return torch.from_numpy(np.ascontiguousarray(made.reshape(load.shape[0], num_replicas)))


def _replaced(load: Floats, in_force: Placement, traffic: Traffic | None) -> Placement:
    """By few moves; by more, or anew, as long as those leave the balance far behind: vLLM's first map knows no load."""
    _, ranks, slots = in_force.experts.shape
    made = replace(load, in_force, traffic=traffic)
    if made.imbalance(load).mean() <= FAR * lower_bound(load, ranks, slots).mean():
        return made
    fresh = place(load, ranks, ranks * slots - in_force.expert_count, traffic)
    enough = FAR * fresh.imbalance(load).mean()
    if made.imbalance(load).mean() > enough:
        made = replace(load, in_force, most_moved=1.0, traffic=traffic)
    return made if made.imbalance(load).mean() <= enough else fresh


def _traffic(experts: int, groups: int, nodes: int, ranks: int) -> Traffic | None:
    """None where nodes make no difference. How many groups a token goes to is not said, and placing does not ask."""
    if nodes <= 1 or groups <= 1 or ranks % nodes or experts % groups:
        return None
    return Traffic(nodes, groups, top_groups=1, top_k=1)


def _in_force(old: Ints | None, experts: int, slots: int, ranks: int) -> Placement | None:
    """The map in force as a placement of the same shape; None if there is none to go on from."""
    if old is None or old.shape[1] != slots or slots % ranks or old.min(initial=0) < 0:
        return None
    return Placement(old.astype(np.int64).reshape(len(old), ranks, -1), experts)


def install(policies: Any) -> None:
    """Replaces the default entry of `vllm.distributed.eplb.policy`, given that module. Idempotent.

    Raises RuntimeError where the table is not as in vLLM 0.32: silently balancing by another policy is no success.
    """
    table = getattr(policies, "EPLB_POLICIES", None)
    if not isinstance(table, dict) or "default" not in table or not hasattr(policies, "AbstractEplbPolicy"):
        raise RuntimeError(
            "Moray's expert placement was written for vLLM 0.32.0, whose EPLB has a table of policies with a default; "
            "this vLLM has none. Install 0.32.0."
        )
    policies.AbstractEplbPolicy.register(EplbPolicy)
    table["default"] = EplbPolicy

"""The batchers by their names: the one place where simulations and benches construct them."""

from cluster.batcher import Batcher
from cluster.batching import ContinuousBatcher, Policy
from cluster.peers import PEERS

CONTINUOUS = "continuous"
POLICIES = (CONTINUOUS, *PEERS)
NO_REPLICA_WAIT_S = 30.0


def batcher(policy: str, tpot_s: float, seed: int = 0) -> Batcher:
    """A batcher that has seen nothing yet. `tpot_s`: what running streams are promised, for policies that care."""
    if policy == CONTINUOUS:
        return ContinuousBatcher(Policy(no_replica_wait_s=NO_REPLICA_WAIT_S, tpot_s=tpot_s))
    return PEERS[policy](NO_REPLICA_WAIT_S, seed)

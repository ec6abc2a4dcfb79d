"""The batchers by their names: the one place where router, simulations and benches construct them. Pure."""

from cluster.batcher import Batcher
from cluster.batching import ContinuousBatcher, Policy
from cluster.peers import PEERS

CONTINUOUS = "continuous"
POLICIES = (CONTINUOUS, *PEERS)


def batcher(policy: str, limits: Policy, seed: int = 0) -> Batcher:
    """A batcher that has seen nothing yet. Peers wait as long for a replica, and know no other of the limits."""
    if policy == CONTINUOUS:
        return ContinuousBatcher(limits)
    return PEERS[policy](limits.no_replica_wait_s, seed)

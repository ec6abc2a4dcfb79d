"""What the cluster tells, as a rollout's decisions want to know it. Pure."""

from __future__ import annotations

from cluster.vitals import ReplicaVitals
from ops.controller.reports import EndedRequest
from ops.rollout.observed import ReplicaSeen
from ops.rollout.samples import Request


def of_version(now_s: float, ended: EndedRequest) -> Request | None:
    """None: it tells nothing of its version, for it was shed, given up by its client, or never got to a replica."""
    if not ended.version or ended.shed or not (ended.done or ended.failed):
        return None
    return Request(
        version=ended.version,
        began_s=now_s - ended.age_s - ended.lasted_s,
        prompt_tokens=ended.prompt_tokens,
        ttft_s=ended.ttft_s,
        # A replica that is swapped sends its streams elsewhere: the gap is the rollout's doing, not the version's.
        tpot_s=None if ended.resumed else ended.tpot_s,
        output_tokens=ended.output_tokens if ended.done else 0,
        failed=ended.failed,
        mirror=ended.mirror,
    )


def replica_seen(replica: ReplicaVitals) -> ReplicaSeen:
    return ReplicaSeen(
        replica_id=replica.replica_id,
        version=replica.version,
        draining=replica.draining,
        swap=replica.swap,
        running=replica.granted,
    )

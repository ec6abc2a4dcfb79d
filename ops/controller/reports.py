"""What a gateway tells the controller once a second. Times are ages: gateways and controller may have other clocks."""

import msgspec

from cluster.journal import ABORTED, DONE, ERROR, RESTARTED, Ended
from cluster.live import SeenReplica
from cluster.outcomes import Ending


class EndedRequest(msgspec.Struct, frozen=True, array_like=True):
    """One engine request that ended, as far as it matters here."""

    age_s: float  # since its end
    version: str  # of the model
    replica: str  # "": it never got to one
    prompt_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    failed: bool
    shed: bool
    lasted_s: float = 0.0  # from its arrival to its end
    output_tokens: int = 0
    done: bool = False  # the model, its limits or a stop string ended it: its length tells of the version's answers
    resumed: bool = False  # it went on elsewhere: its time per token has that gap in it
    mirror: bool = False  # a copy that no client sees: no alarm, no figure of the history counts it


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    gateway: str
    late: bool  # the gateway stood still itself: that nothing came from a replica meanwhile says nothing
    requests: tuple[EndedRequest, ...]
    first: int  # number of the first of them, counted since the gateway's start: what is told again has the same
    replicas: tuple[SeenReplica, ...]
    hung: tuple[SeenReplica, ...]  # given up since the batch before; their streams have gone on elsewhere
    wanted: str = ""  # the deployment's user_config as JSON, which every gateway is told; "": it has none
    dropped: int  # requests that were not told because the controller was away for long, since the gateway's start


def of_interest(record: Ended, now: float) -> EndedRequest | None:
    """None: its ending tells nothing of the cluster; a tenant's limit or the client's own mistake ended it.

    Nor does what began again on another version: its answer is told by the record that follows.
    """
    if record.ending == RESTARTED:
        return None
    failed, shed = record.ending == ERROR, False
    if record.ending not in (DONE, ABORTED, ERROR):
        ending = Ending[record.ending]
        failed = ending.status >= 500
        shed = ending in (Ending.TOO_LATE, Ending.QUEUE_FULL)
        if not (failed or shed):
            return None
    return EndedRequest(
        age_s=now - record.ended_at,
        version=record.version,
        replica=record.replica or "",
        prompt_tokens=record.prompt_tokens,
        ttft_s=record.ttft_s,
        tpot_s=record.tpot_s,
        failed=failed,
        shed=shed,
        lasted_s=record.ended_at - record.arrived_at,
        output_tokens=record.output_tokens,
        done=record.ending == DONE,
        resumed=record.resumes > 0,
        mirror=record.mirror,
    )

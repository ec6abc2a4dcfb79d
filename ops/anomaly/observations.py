"""What the detectors are told. Times are seconds of one wall clock (UTC); counters only grow, or begin anew at 0.

Who reports is not who is judged: a stopped replica says nothing, so what it gives is counted where its tokens arrive.
"""

from typing import NamedTuple


class Request(NamedTuple):
    """One request that ended."""

    at_s: float
    model: str  # name and version: another version has another baseline
    replica: str
    prompt_tokens: int
    ttft_s: float | None  # None: it had no first token
    tpot_s: float | None  # mean of the further tokens; None: it had one token, or none
    failed: bool = False  # ended by an error of ours; neither what a client gave up nor what was shed
    shed: bool = False  # answered 429


class ReplicaReport(NamedTuple):
    """One replica, as its gateways see it."""

    at_s: float
    model: str
    replica: str
    healthy: bool | None  # its health check's last answer; None: there is none
    running: int  # requests admitted to it and not ended
    tokens: int  # that it gave since it started, prefilled ones included


class ReplicaHung(NamedTuple):
    """A gateway gave the replica up: it had requests and ended no step for `replicas.hang_timeout_s`.

    They have gone on elsewhere, so that no ReplicaReport will show it standing still any more.
    """

    at_s: float
    model: str
    replica: str
    running: int  # requests that it had of that gateway


class ModelReport(NamedTuple):
    """One model, as its router sees it."""

    at_s: float
    model: str
    waiting: int  # tickets without a grant
    granted: int  # grants since the router started
    restarts: int  # replicas lost and replaced since the router started; not those of a rollout or of scaling


class ExpertReport(NamedTuple):
    """Where the tokens of one replica went in the last minute (experts/load.py)."""

    at_s: float
    model: str
    replica: str
    imbalance: float  # the fullest shard's load over the mean, mean over layers; 1 is even
    choices: int  # tokens times experts that it is counted from


class ReplicaGone(NamedTuple):
    """That replica will not come back under this name; its alarms end with it."""

    at_s: float
    model: str
    replica: str


Observation = Request | ReplicaReport | ReplicaHung | ModelReport | ExpertReport | ReplicaGone

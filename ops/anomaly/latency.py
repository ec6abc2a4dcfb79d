"""Requests over the latency limit, so many in a row, per replica and per model."""

import math
from collections.abc import Iterable

import msgspec

from ops.anomaly.alarms import Answer, Detector, Kind, ReplicaLabels, Severity, Verdict, labelled
from ops.anomaly.observations import Observation, Request

# Five hits in a row are a fraction of a second where many ask: an alarm that ended with them would come and go for as
# long as a model is near its limit. No answer goes stale: between two there was no row of misses.
CALM_S = 30.0
REPLICA_LATENCY = Kind("replica-latency", Severity.PAGE, resolve_after_s=CALM_S, stale_s=math.inf)
MODEL_LATENCY = Kind("model-latency", Severity.PAGE, resolve_after_s=CALM_S, stale_s=math.inf)


class LatencyLimits(msgspec.Struct, frozen=True):
    ttft_s: float = 1.0
    tpot_s: float = 0.05
    in_a_row: int = 5  # misses that raise; hits that begin its end

    def missed(self, request: Request) -> bool | None:
        """None: it tells nothing of latency, for it had no token."""
        if request.ttft_s is None:
            return None
        return request.ttft_s > self.ttft_s or (request.tpot_s is not None and request.tpot_s > self.tpot_s)


class Row(msgspec.Struct):
    missed: bool = False
    length: int = 0


class ConsecutiveMisses(Detector):
    """A request without a token breaks no row and adds to none."""

    def __init__(self, limits: LatencyLimits, rows: dict[str, Row]) -> None:
        self.limits, self.state = limits, rows

    def observe(self, seen: Observation) -> Iterable[Verdict]:
        if not isinstance(seen, Request) or (missed := self.limits.missed(seen)) is None:
            return
        for kind, replica in ((REPLICA_LATENCY, seen.replica), (MODEL_LATENCY, None)):
            row = self.state.setdefault(_key(seen.model, replica), Row())
            row.length = row.length + 1 if row.missed is missed else 1
            row.missed = missed
            if row.length < self.limits.in_a_row:
                continue
            what = f"replica {replica} of {seen.model}" if replica is not None else seen.model
            yield Verdict(
                kind,
                labelled(seen.model, replica),
                Answer.YES if missed else Answer.NO,
                f"{row.length} requests in a row on {what} were over the limit of {self.limits.ttft_s:g} s to the first"
                f" token or {self.limits.tpot_s * 1e3:g} ms a token.",
            )

    def forget(self, gone: ReplicaLabels) -> None:
        self.state.pop(_key(*gone), None)


def _key(model: str, replica: str | None) -> str:
    return model if replica is None else f"{model}\n{replica}"

"""All detectors behind one door: observations in, beginnings and ends of alarms out. Pure; the caller has the clock."""

import msgspec

from ops.anomaly.alarms import Alarm, Detector, Event, Latches, ReplicaLabels
from ops.anomaly.baseline import Drift, DriftLimits, DriftState
from ops.anomaly.latency import ConsecutiveMisses, LatencyLimits, Row
from ops.anomaly.observations import Observation, ReplicaGone
from ops.anomaly.outcomes import BurstLimits, Counts, ErrorBurst, Objective, Recent, SloBurn
from ops.anomaly.progress import NotServing, ProgressBounds, Standing, StuckQueue
from ops.anomaly.replicas import Flapping, FlappingLimits, Imbalance, ImbalanceLimits, Restarts


class Limits(msgspec.Struct, frozen=True):
    """All that an operator may want to set."""

    latency: LatencyLimits = LatencyLimits()
    objective: Objective = Objective()
    burst: BurstLimits = BurstLimits()
    progress: ProgressBounds = ProgressBounds()
    flapping: FlappingLimits = FlappingLimits()
    imbalance: ImbalanceLimits = ImbalanceLimits()
    drift: DriftLimits = DriftLimits()


class State(msgspec.Struct):
    """What has to survive a restart."""

    latches: Latches = msgspec.field(default_factory=Latches)
    rows: dict[str, Row] = {}
    counts: dict[str, Counts] = {}
    recent: dict[str, Recent] = {}
    serving: dict[str, Standing] = {}
    queues: dict[str, Standing] = {}
    restarts: dict[str, Restarts] = {}
    drift: DriftState = msgspec.field(default_factory=DriftState)


class Monitor:
    """Tells each alarm's beginning once and its end once."""

    def __init__(self, limits: Limits | None = None, state: State | None = None) -> None:
        limits, self.state = limits or Limits(), state or State()
        self._detectors: tuple[Detector, ...] = (
            ConsecutiveMisses(limits.latency, self.state.rows),
            NotServing(limits.progress, self.state.serving),
            StuckQueue(limits.progress, self.state.queues),
            SloBurn(limits.objective, limits.latency, self.state.counts),
            ErrorBurst(limits.burst, self.state.recent),
            Flapping(limits.flapping, self.state.restarts),
            Imbalance(limits.imbalance),
            Drift(limits.drift, self.state.drift),
        )

    def observe(self, seen: Observation) -> list[Event]:
        """One observation, as it comes."""
        if isinstance(seen, ReplicaGone):
            gone = ReplicaLabels(seen.model, seen.replica)
            for detector in self._detectors:
                detector.forget(gone)
            return self.state.latches.end(seen.at_s, gone)
        verdicts = (verdict for detector in self._detectors for verdict in detector.observe(seen))
        return [event for verdict in verdicts if (event := self.state.latches.take(seen.at_s, verdict))]

    def evaluate(self, now_s: float) -> list[Event]:
        """Every few seconds, whether something was observed or not."""
        verdicts = (verdict for detector in self._detectors for verdict in detector.evaluate(now_s))
        return [event for verdict in verdicts if (event := self.state.latches.take(now_s, verdict))]

    def was_away(self) -> None:
        """What was saved may be older than the alarms: the next reports only say where to count from.

        Else a counter that stands where it stood then would look as if it moved, and end an alarm.
        """
        self.state.serving.clear()
        self.state.queues.clear()

    @property
    def raised(self) -> list[Alarm]:
        return self.state.latches.raised

    def saved(self) -> bytes:
        """All that it knows, as JSON."""
        return msgspec.json.encode(self.state)

    @classmethod
    def restored(cls, saved: bytes, limits: Limits | None = None) -> "Monitor":
        """The monitor that wrote it, which goes on as if nothing had been. msgspec.DecodeError: it is none of ours."""
        return cls(limits, msgspec.json.decode(saved, type=State))

"""Which suspect replica is taken out of rotation, and restarted; and when not. Pure.

One at a time: drain (its streams go on elsewhere), restart (its process is killed; Serve starts another), wait until as
many are ready as before. A replica is blamed only for what is its own: where the model as a whole is slow, or most of
its replicas are, it is the model's version, the load or the machines, and restarts would loop.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ops.anomaly.alarms import Alarm
from ops.anomaly.latency import MODEL_LATENCY, REPLICA_LATENCY
from ops.anomaly.outcomes import FAST_BURN
from ops.anomaly.progress import NOT_SERVING

HOUR_S = 3600.0
DRAIN, RESTART, RECOVER = "drain", "restart", "recover"
MODEL_WIDE = (MODEL_LATENCY.name, FAST_BURN.name)


class HealingLimits(msgspec.Struct, frozen=True):
    restarts_per_hour: int = 3  # 0: nothing is healed
    slow_for_s: float = 60.0  # for which replica-latency has to be raised; it may be a burst that passes
    drain_s: float = 30.0  # that a slow replica's streams have to go elsewhere
    recover_s: float = 900.0  # that its successor has to load


class ReplicaState(NamedTuple):
    """A replica as `decide` wants to know it."""

    replica_id: str
    model: str  # name and version
    ready: bool  # in the roster and not drained
    draining: bool
    running: int  # requests, as its gateways see it
    swapping: bool = False  # it is being given another version: that it stands still is meant
    judged: bool = False  # of a version that is being rolled out: whether it is slow, its gates say


class Case(msgspec.Struct, frozen=True):
    """The replica that is being healed. Times are seconds; None: it has not come to that."""

    replica: str
    model: str
    why: str
    ready_before: int  # replicas that were ready, it included
    serves: bool  # False: it gives nothing, so that there is nothing to wait for
    drained_s: float | None = None
    restarted_s: float | None = None


class Step(NamedTuple):
    """What is to be done, or what came of it."""

    action: str  # DRAIN, RESTART: the caller does it and says how that went; RECOVER: it is only to be recorded
    replica: str
    model: str
    why: str
    outcome: str = ""  # "": to be done. withheld: it will not be; recovered, failed: how a case ended


class HealingState(msgspec.Struct):
    """What has to survive a restart."""

    case: Case | None = None
    restarts_s: list[float] = []  # times of the last hour
    withheld: dict[str, str] = {}  # by replica: why nothing is done; it is told once
    refused: dict[str, str] = {}  # by replica: why what was tried could not be done

    @property
    def in_hand(self) -> str:
        """The replica that is being healed; "": none is."""
        return self.case.replica if self.case is not None else ""

    def done(self, now_s: float, step: Step) -> None:
        """The caller did the step."""
        if self.case is None or self.case.replica != step.replica:
            return
        if step.action == DRAIN:
            self.case = msgspec.structs.replace(self.case, drained_s=now_s)
        elif step.action == RESTART:
            self.case = msgspec.structs.replace(self.case, restarted_s=now_s)
            self.restarts_s.append(now_s)

    def failed(self, step: Step, why: str) -> None:
        """It could not be done: the case is closed, and tried anew only once the alarm has ended."""
        if self.case is not None and self.case.replica == step.replica:
            self.case = None
            self.refused[step.replica] = why


def decide(
    now_s: float,
    state: HealingState,
    replicas: Sequence[ReplicaState],
    raised: Iterable[Alarm],
    limits: HealingLimits,
) -> list[Step]:
    """What is to be done now; changes `state`. The same steps come again until `done` or `failed` is told."""
    raised = list(raised)
    known = {replica.replica_id: replica for replica in replicas}
    state.restarts_s = [at_s for at_s in state.restarts_s if at_s > now_s - HOUR_S]
    if state.case is not None:
        return _go_on(now_s, state, state.case, known, limits)
    suspects = {
        alarm.labels["replica"]: alarm
        for alarm in sorted(raised, key=lambda alarm: alarm.name == NOT_SERVING.name)  # the graver one counts
        if alarm.name in (NOT_SERVING.name, REPLICA_LATENCY.name) and alarm.labels["replica"] in known
    }
    state.withheld = {replica: why for replica, why in state.withheld.items() if replica in suspects}
    state.refused = {replica: why for replica, why in state.refused.items() if replica in suspects}
    steps = []
    for alarm in sorted(suspects.values(), key=lambda alarm: (alarm.name != NOT_SERVING.name, alarm.raised_s)):
        replica = known[alarm.labels["replica"]]
        if limits.restarts_per_hour == 0 or replica.draining or replica.swapping:
            continue  # switched off; an operator or a rollout has it in hand
        if replica.replica_id in state.refused:
            continue  # it was in vain
        if alarm.name == REPLICA_LATENCY.name and now_s - alarm.raised_s < limits.slow_for_s:
            continue
        if why_not := _why_not(state, replica, alarm, suspects, known, raised, limits):
            if state.withheld.get(replica.replica_id) != why_not:
                state.withheld[replica.replica_id] = why_not
                steps.append(Step(RESTART, replica.replica_id, replica.model, why_not, "withheld"))
            continue
        state.withheld.pop(replica.replica_id, None)
        state.case = Case(
            replica=replica.replica_id,
            model=replica.model,
            why=f"{alarm.name}: {alarm.summary}",
            # Of all versions: what comes in its place may be another one.
            ready_before=1 + sum(o.ready for o in known.values() if o.replica_id != replica.replica_id),
            serves=alarm.name != NOT_SERVING.name,
            drained_s=None if replica.ready else now_s,  # the router has lost it: it is out of rotation
        )
        return steps + _go_on(now_s, state, state.case, known, limits)
    return steps


def _go_on(
    now_s: float, state: HealingState, case: Case, known: Mapping[str, ReplicaState], limits: HealingLimits
) -> list[Step]:
    replica = known.get(case.replica)
    if case.restarted_s is not None:
        ready = sum(other.ready for other in known.values())
        if ready >= case.ready_before and (replica is None or not replica.ready):
            state.case = None
            why = f"{ready} replicas are ready again, {now_s - case.restarted_s:.0f} s after the restart"
            return [Step(RECOVER, case.replica, case.model, why, "recovered")]
        if now_s - case.restarted_s > limits.recover_s:
            state.case = None
            why = f"{ready} replicas are ready and {case.ready_before} were, {limits.recover_s:g} s after the restart"
            return [Step(RECOVER, case.replica, case.model, why, "failed")]
        return []
    if replica is None:  # it went by itself: Serve has seen to it
        state.case = None
        return [Step(RECOVER, case.replica, case.model, "it is gone before it was restarted", "recovered")]
    if replica.swapping:
        state.case = None
        return [Step(RECOVER, case.replica, case.model, "a rollout is giving it another version", "withheld")]
    if case.drained_s is None:
        return [Step(DRAIN, case.replica, case.model, case.why)]
    if case.serves and replica.running and now_s - case.drained_s < limits.drain_s:
        return []
    return [Step(RESTART, case.replica, case.model, case.why)]


def _ready_others(replica: ReplicaState, known: Mapping[str, ReplicaState]) -> list[ReplicaState]:
    return [o for o in known.values() if o.ready and o.model == replica.model and o.replica_id != replica.replica_id]


def _why_not(
    state: HealingState,
    replica: ReplicaState,
    alarm: Alarm,
    suspects: Mapping[str, Alarm],
    known: Mapping[str, ReplicaState],
    raised: Sequence[Alarm],
    limits: HealingLimits,
) -> str:
    """Why this replica is left alone, one sentence; "": it is not."""
    others = _ready_others(replica, known)
    as_bad = [other for other in others if other.replica_id in suspects]
    serves = alarm.name != NOT_SERVING.name
    wide = sorted(a.name for a in raised if a.name in MODEL_WIDE and a.labels.get("model") == replica.model)
    if serves and replica.judged:
        return "its version is being rolled out: whether that is slow, the rollout's gates say"
    if serves and wide:
        return f"{' and '.join(wide)} is raised: the model is slow, not this replica alone"
    if others and len(as_bad) == len(others):
        return f"all {len(others) + 1} replicas of {replica.model} are suspect: it is not this one's fault alone"
    if serves and not others:
        return "it is the only replica that is ready, and it serves, if slowly"
    if len(state.restarts_s) >= limits.restarts_per_hour:
        return f"{len(state.restarts_s)} replicas were restarted within the hour, which alarms.restarts_per_hour allows"
    return ""

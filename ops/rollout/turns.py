"""One replica at a time gets another version: whose turn it is, and how a turn ended. Pure."""

from msgspec.structs import replace

from ops.anomaly.alarms import Answer
from ops.rollout.fleet import FORWARD, Fleet, goal
from ops.rollout.gates import golden
from ops.rollout.observed import Observed, ReplicaSeen
from ops.rollout.spec import Strategy
from ops.rollout.state import ENDED, Phase, Rollout, Turn


def rolling_back(rollout: Rollout, now_s: float, why: str) -> Rollout:
    """All goes back to the old version; the turn that is under way is waited for first."""
    back = replace(rollout, phase=Phase.ROLLING_BACK, since_s=now_s, paused_s=None, watch_s=None)
    return back.with_note(now_s, "rolling-back", why)


# -- how a turn ended -------------------------------------------------------------------------------------------------


def settled(rollout: Rollout, observed: Observed) -> Rollout:
    """What became of the turn; the same rollout: it goes on, or there is none."""
    turn = rollout.turn
    if turn is None:
        return rollout
    now_s = observed.now_s
    replica = Fleet(rollout, observed).find(turn.replica_id)
    late = now_s - turn.began_s >= rollout.spec.finish_s + rollout.spec.swap_timeout_s
    if replica is None:
        if turn.restart and (late or observed.turn_lives is not True):
            detail = f"{turn.replica_id} has ended; another one loads {turn.version}"
            return _over(rollout, now_s).with_note(now_s, "restarted", detail)
        if not turn.restart and (late or observed.turn_lives is False):
            return _lost(rollout, turn, now_s)
        return rollout
    if turn.restart:
        return rollout
    report = replica.swap if replica.swap is not None and replica.swap.id == turn.id else None
    if report is not None and report.phase == "failed":
        return _failed(rollout, turn, now_s, report.detail or "it does not say why")
    if report is not None and report.phase == "done" and replica.version == turn.version:
        if turn.version == rollout.to_version and rollout.phase in FORWARD:
            result = golden(rollout.spec.gates, rollout.golden, report)
            rollout = replace(rollout, gates=(result, *(gate for gate in rollout.gates if gate.name != result.name)))
            if result.answer is not Answer.YES:
                return _failed(rollout, turn, now_s, result.detail)
        return _done(rollout, turn, now_s, f"in {now_s - turn.began_s:.0f} s, loading took {report.seconds:.1f} s")
    # A controller or router that was away may have missed the report; but of probes it has to be told once.
    untold = report is None and replica.version == turn.version and not replica.swapping
    if untold and (turn.version != rollout.to_version or rollout.proven):
        return _done(rollout, turn, now_s, "how that went was not told")
    return _late(rollout, turn, now_s) if late else rollout


def _over(rollout: Rollout, now_s: float) -> Rollout:
    progress = rollout.phase in (Phase.PROMOTING, Phase.ROLLING_BACK)
    return replace(rollout, turn=None, since_s=now_s if progress else rollout.since_s)


def _done(rollout: Rollout, turn: Turn, now_s: float, how: str) -> Rollout:
    proven = rollout.proven or (turn.version == rollout.to_version and rollout.phase in FORWARD)
    detail = f"{turn.replica_id} serves {turn.version}: {how}"
    return replace(_over(rollout, now_s), proven=proven).with_note(now_s, "swapped", detail)


def _failed(rollout: Rollout, turn: Turn, now_s: float, why: str) -> Rollout:
    """The replica has its weights of before, or (its probes did not please us) still has the new ones."""
    told = rollout.with_note(now_s, "swap-failed", f"{turn.replica_id} to {turn.version}: {why}")
    if rollout.phase in FORWARD:
        return rolling_back(replace(told, turn=None), now_s, f"{turn.version} on {turn.replica_id}: {why}")
    if turn.version != goal(rollout):
        return _over(told, now_s)  # it was under way to the new version when all began to go back
    return replace(told, turn=replace(turn, restart=True, began_s=now_s))


def _late(rollout: Rollout, turn: Turn, now_s: float) -> Rollout:
    """It hangs: its process ends."""
    limit_s = rollout.spec.finish_s + rollout.spec.swap_timeout_s
    why = f"{turn.replica_id} did not come to serve {turn.version} within {limit_s:g} s"
    told = replace(rollout, turn=replace(turn, restart=True, began_s=now_s)).with_note(now_s, "swap-failed", why)
    return rolling_back(told, now_s, why) if rollout.phase in FORWARD else told


def _lost(rollout: Rollout, turn: Turn, now_s: float) -> Rollout:
    forward = rollout.phase in FORWARD
    lost = rollout.lost + forward
    told = replace(_over(rollout, now_s), lost=lost)
    told = told.with_note(now_s, "lost", f"{turn.replica_id} was lost on its way to {turn.version}")
    if forward and lost >= rollout.spec.attempts:
        return rolling_back(told, now_s, f"{lost} replicas were lost on their way to {turn.version}")
    return told


# -- whose turn it is -------------------------------------------------------------------------------------------------


def next_turn(rollout: Rollout, observed: Observed) -> Turn | str:
    """The turn to begin; a sentence: why none begins; "": none is needed."""
    fleet = Fleet(rollout, observed)
    replica, version = _whose(rollout, fleet)
    if replica is None:
        if fleet.extra and rollout.phase in FORWARD and fleet.missing:
            return f"an extra replica loads {rollout.to_version}"
        return ""
    for other in fleet.there:
        if other.swapping:
            return f"{other.replica_id} is being swapped"
    if not fleet.assigned:
        return "the router has not heard of it yet"
    if observed.extra < fleet.extra:
        return "an extra replica is asked for"
    if why := _why_wait(rollout, fleet):
        return why
    return Turn(
        id=f"{rollout.id}.{rollout.turns + 1}.{replica.replica_id}.{version}",
        replica_id=replica.replica_id,
        version=version,
        began_s=observed.now_s,
        restart=replica.version != version and not rollout.same_architecture,
    )


def _whose(rollout: Rollout, fleet: Fleet) -> tuple[ReplicaSeen | None, str]:
    """The replica that is next, and the version that it gets."""
    if rollout.phase in FORWARD and not rollout.proven and fleet.new:
        return _idlest(fleet.new), rollout.to_version  # it started with it: its probes come before its traffic
    if rollout.phase is Phase.CANARY:
        loading = rollout.strategy is Strategy.SURGE and fleet.missing > 0
        if len(fleet.new) >= fleet.canaries or loading or not fleet.old:
            return None, ""
        return _idlest(fleet.old), rollout.to_version
    # What is drained is swapped last: one that is being scaled in goes by itself.
    astray = [replica for replica in fleet.astray if not replica.draining] or fleet.astray
    return (_idlest(astray) if astray else None), goal(rollout)


def _idlest(replicas: list[ReplicaSeen]) -> ReplicaSeen:
    return min(replicas, key=lambda replica: (replica.running, replica.replica_id))


def _why_wait(rollout: Rollout, fleet: Fleet) -> str:
    """A replica that is away already is waited for, or two would be out: back to the old version not for ever."""
    now_s, away = fleet.observed.now_s, ""
    if fleet.missing:
        away = f"{fleet.missing} of {fleet.missing + len(fleet.there)} replicas are not there"
    elif fleet.observed.healing:
        away = f"{fleet.observed.healing} is being healed"
    if not away or rollout.phase in ENDED:
        return ""
    patient = rollout.phase is Phase.CANARY or now_s - rollout.since_s < rollout.spec.swap_timeout_s
    return away if patient else ""

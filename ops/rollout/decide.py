"""What a rollout does next, from what it is and what is seen. Pure: no clock, no I/O; asked again it says the same.

A decision is two things. First the rollout moves on as far as what is seen allows (`_advanced`, until nothing changes);
that is what the caller stores. Then the actions follow from it and from what is seen (`_actions`) and from nothing
else: they are what is still to be done, so that it matters to nobody whether an earlier controller did some of them.
"""

from typing import NamedTuple

from msgspec.structs import replace

from ops.anomaly.alarms import Answer
from ops.rollout.actions import Action, Assign, Drain, Restart, Scale, SwapReplica, Verify
from ops.rollout.fleet import FORWARD, UNTOUCHED, Fleet
from ops.rollout.gates import GATES, judge, look_is_due, told
from ops.rollout.observed import Observed
from ops.rollout.samples import Samples, thinned
from ops.rollout.spec import Strategy
from ops.rollout.state import ENDED, Looks, Phase, Rollout, Turn, Wish
from ops.rollout.turns import adopted, next_turn, rolling_back, settled

__all__ = ["Action", "Assign", "Decision", "Drain", "Restart", "Scale", "SwapReplica", "Verify", "decide"]

# The only replica's old version is watched for so many times `step_s`: a busy minute in it would stay in it.
BASELINE_STEPS = 5
KEPT_BASELINE = 128  # requests of one metric and stratum of the old version, kept for when it does not serve any more


class Decision(NamedTuple):
    """Store `rollout` if it differs from the one before, then do the actions, in their order."""

    rollout: Rollout
    actions: tuple[Action, ...]
    why: str  # a sentence: what it waits for, or does


def decide(rollout: Rollout, observed: Observed) -> Decision:
    """The next actions. To be asked every second, and of the last rollout still when it has ended.

    An ended one keeps its outcome: a replica that comes late with another version is swapped, too.
    """
    while _is_known(rollout, observed) and (further := _advanced(rollout, observed)) != rollout:
        rollout = further
    if not _is_known(rollout, observed):
        return Decision(rollout, (), "the router does not answer, so that nothing is known")
    return Decision(rollout, tuple(_actions(rollout, observed)), _why(rollout, observed))


def _is_known(rollout: Rollout, observed: Observed) -> bool:
    """Enough is seen for the phase: reading files needs no router."""
    return observed.replicas is not None or rollout.phase in UNTOUCHED


# -- how it moves on --------------------------------------------------------------------------------------------------


def _advanced(rollout: Rollout, observed: Observed) -> Rollout:
    """One move; the same rollout: there is none."""
    if rollout.phase is Phase.PENDING:
        return replace(rollout, phase=Phase.VERIFYING, since_s=observed.now_s)
    if rollout.phase is Phase.VERIFYING:
        return _verifying(rollout, observed)
    if (after := adopted(settled(rollout, observed), observed)) is not rollout:
        return after
    if rollout.phase in FORWARD and (why := _against(rollout, observed)):
        return rolling_back(rollout, observed.now_s, why)
    match rollout.phase:
        case Phase.CANARY:
            return _canary(rollout, observed)
        case Phase.PROMOTING:
            return _promoting(rollout, observed)
        case _:
            return _converging(rollout, observed)


def _verifying(rollout: Rollout, observed: Observed) -> Rollout:
    now_s, check = observed.now_s, observed.check
    if rollout.wish is Wish.ABORT:
        return _ended(rollout, Phase.ROLLED_BACK, now_s, "no replica had been touched")
    if check is None or check.version != rollout.to_version:
        if not rollout.paused and now_s - rollout.since_s >= rollout.spec.deadline_s:
            why = f"{rollout.to_version} was not verified within {rollout.spec.deadline_s:g} s"
            return _ended(rollout, Phase.FAILED, now_s, why)
        return rollout
    if check.problems:
        return _ended(rollout, Phase.FAILED, now_s, "; ".join(check.problems))
    if rollout.paused:
        return rollout
    asked, detail = rollout.spec.strategy, "its files are whole and fit"
    strategy = Strategy.IN_PLACE if asked is Strategy.AUTO else asked
    if not check.same_architecture:
        strategy, detail = (
            Strategy.SURGE,
            "its files are whole; the architecture differs, so that it takes new replicas",
        )
    rollout = replace(
        rollout,
        phase=Phase.CANARY,
        since_s=now_s,
        strategy=strategy,
        same_architecture=check.same_architecture,
        golden=check.golden,
    )
    return rollout.with_note(now_s, "verified", f"{detail}: {strategy}")


def _canary(rollout: Rollout, observed: Observed) -> Rollout:
    now_s, spec, fleet = observed.now_s, rollout.spec, Fleet(rollout, observed)
    if rollout.wish is Wish.PROMOTE:
        return _promoted(rollout, observed, "an operator asked for it")
    watched = _watched(rollout, fleet)
    if watched != rollout:
        return watched
    if bad := _bad_gate(rollout):
        return rolling_back(rollout, now_s, bad)
    if rollout.paused:
        return rollout
    if now_s - rollout.since_s >= spec.deadline_s:
        unknown = [gate.detail for gate in rollout.gates if gate.answer is not Answer.YES]
        detail = "; ".join(unknown) or _why(rollout, observed)
        return rolling_back(rollout, now_s, f"no answer within {spec.deadline_s:g} s: {detail}")
    if _is_good(rollout) and rollout.watch_s is not None and now_s - rollout.watch_s >= spec.step_s:
        if rollout.step + 1 == len(spec.steps) or not fleet.old:
            return _promoted(rollout, observed, f"all gates say yes at {fleet.share:.0%} of the traffic")
        share = spec.steps[rollout.step + 1]
        kept = tuple(gate for gate in rollout.gates if gate.name == "golden")
        further = replace(rollout, step=rollout.step + 1, since_s=now_s, watch_s=None, looks=Looks(), gates=kept)
        return further.with_note(now_s, "step", f"all gates say yes; on to {share:.0%} of the traffic")
    return _begun(rollout, observed)


def _promoted(rollout: Rollout, observed: Observed, why: str) -> Rollout:
    rollout = replace(
        rollout,
        phase=Phase.PROMOTING,
        since_s=observed.now_s,
        wish=Wish.NONE,
        watch_s=observed.now_s + rollout.spec.settle_s,
        looks=Looks(),
        baseline=_baseline(rollout, observed),
    )
    return rollout.with_note(observed.now_s, "promoting", why)


def _promoting(rollout: Rollout, observed: Observed) -> Rollout:
    now_s, spec, fleet = observed.now_s, rollout.spec, Fleet(rollout, observed)
    looked = _looked(rollout, observed)
    if looked != rollout:
        return looked
    if bad := _bad_gate(rollout):
        return rolling_back(rollout, now_s, bad)
    if rollout.paused:
        return rollout
    if _has_converged(rollout, fleet) and rollout.proven:
        return _ended(rollout, Phase.DONE, now_s, f"{len(fleet.there)} replicas serve {rollout.to_version}")
    if now_s - rollout.since_s >= spec.deadline_s:
        return rolling_back(rollout, now_s, f"nothing went on for {spec.deadline_s:g} s: {_why(rollout, observed)}")
    return _begun(rollout, observed)


def _converging(rollout: Rollout, observed: Observed) -> Rollout:
    """All replicas get the version that it ended with, or goes back to."""
    fleet = Fleet(rollout, observed)
    if rollout.phase is Phase.ROLLING_BACK and _has_converged(rollout, fleet):
        detail = f"{len(fleet.there)} replicas serve {rollout.from_version}"
        return _ended(rollout, Phase.ROLLED_BACK, observed.now_s, detail)
    return _begun(rollout, observed)


def _begun(rollout: Rollout, observed: Observed) -> Rollout:
    """The next replica's turn begins, if it is time for one."""
    if rollout.turn is not None or rollout.paused:
        return rollout
    turn = next_turn(rollout, observed)
    if not isinstance(turn, Turn):
        return rollout
    baseline = rollout.baseline
    if rollout.phase is Phase.CANARY and _is_alone_before(rollout, Fleet(rollout, observed)):
        if not _has_baseline(rollout, observed):
            return rollout
        baseline = _baseline(rollout, observed)
    watch_s = None if rollout.phase is Phase.CANARY else rollout.watch_s
    rollout = replace(rollout, turn=turn, turns=rollout.turns + 1, baseline=baseline, watch_s=watch_s)
    what = "restart" if turn.restart else "swap"
    return rollout.with_note(observed.now_s, what, f"{turn.replica_id} to {turn.version}")


def _ended(rollout: Rollout, phase: Phase, now_s: float, why: str) -> Rollout:
    ended = replace(rollout, phase=phase, since_s=now_s, ended_s=now_s, paused_s=None, wish=Wish.NONE, watch_s=None)
    return ended.with_note(now_s, phase.value, why)


def _against(rollout: Rollout, observed: Observed) -> str:
    """What takes it back whatever its gates say; "": nothing does."""
    if rollout.wish is Wish.ABORT:
        return "an operator asked for it"
    assignment, load_failure = observed.assignment, observed.load_failure
    starts_new = assignment is not None and assignment.new_replica == rollout.to_version
    if load_failure and starts_new and Fleet(rollout, observed).missing:
        return f"a replica that starts cannot load {rollout.to_version}: {load_failure}"
    return ""


def _has_converged(rollout: Rollout, fleet: Fleet) -> bool:
    """All replicas have the goal's version, and all are there, or have been waited for."""
    if rollout.turn is not None or not fleet.there or fleet.astray or any(r.swapping for r in fleet.there):
        return False
    waited = fleet.observed.now_s - rollout.since_s >= rollout.spec.swap_timeout_s
    return waited or not fleet.missing


# -- watching ---------------------------------------------------------------------------------------------------------


def _watched(rollout: Rollout, fleet: Fleet) -> Rollout:
    """The step's watch begins when its replicas serve with its share, and anew when one is swapped or lost."""
    observed, now_s = fleet.observed, fleet.observed.now_s
    serves = rollout.turn is None and rollout.proven and len(fleet.new) >= fleet.canaries
    if not (serves or _is_alone_before(rollout, fleet)):
        return replace(rollout, watch_s=None) if rollout.watch_s is not None else rollout
    if rollout.watch_s is None:
        if not fleet.assigned:
            return rollout
        kept = tuple(gate for gate in rollout.gates if gate.name == "golden")
        return replace(rollout, watch_s=now_s + (rollout.spec.settle_s if serves else 0.0), gates=kept)
    return _looked(rollout, observed) if serves else rollout


def _is_alone_before(rollout: Rollout, fleet: Fleet) -> bool:
    """There is only one replica, and it serves the old version: that is watched before the new one takes its place."""
    return rollout.turn is None and fleet.alone and bool(fleet.old)


def _looked(rollout: Rollout, observed: Observed) -> Rollout:
    """The gates' answers, if enough has come since the last look."""
    if rollout.watch_s is None:
        return rollout
    canary, stable = observed.samples.get(rollout.to_version), _stable(rollout, observed)
    if canary is None or stable is None or not look_is_due(rollout, canary, stable):
        return rollout
    results = judge(rollout, canary, stable)
    golden = tuple(gate for gate in rollout.gates if gate.name == "golden")
    looks = Looks(count=rollout.looks.count + 1, window_s=canary.since_s, samples=told(canary, stable))
    return replace(rollout, gates=golden + results, looks=looks)


def _stable(rollout: Rollout, observed: Observed) -> Samples | None:
    """The old version's requests: of the same time, or of when it last served."""
    live = observed.samples.get(rollout.from_version)
    if live is not None and (live.ended >= rollout.spec.min_samples or rollout.baseline is None):
        return live
    serves = any(r.taking and r.version == rollout.from_version for r in observed.replicas or ())
    return live if serves and live is not None else rollout.baseline


def _bad_gate(rollout: Rollout) -> str:
    return "; ".join(gate.detail for gate in rollout.gates if gate.answer is Answer.NO)


def _is_good(rollout: Rollout) -> bool:
    """All gates that the step asks said yes, of requests of this watch."""
    asked = {gate.name for gate in rollout.gates if gate.answer is Answer.YES}
    return asked >= {"golden", *GATES} and all(gate.answer is Answer.YES for gate in rollout.gates)


def _has_baseline(rollout: Rollout, observed: Observed) -> bool:
    """The only replica's old version was watched for long enough to compare the new one with."""
    live = observed.samples.get(rollout.from_version)
    if rollout.baseline is not None:
        return True
    if rollout.watch_s is None or live is None:
        return False
    long_enough = observed.now_s - rollout.watch_s >= BASELINE_STEPS * rollout.spec.step_s
    return live.ended >= rollout.spec.min_samples and long_enough


def _baseline(rollout: Rollout, observed: Observed) -> Samples | None:
    live = observed.samples.get(rollout.from_version)
    if live is None or live.ended < rollout.spec.min_samples:
        return rollout.baseline
    return thinned(live, KEPT_BASELINE)


# -- what is to be done -----------------------------------------------------------------------------------------------


def _actions(rollout: Rollout, observed: Observed) -> list[Action]:
    if rollout.phase is Phase.VERIFYING:
        is_checked = observed.check is not None and observed.check.version == rollout.to_version
        return [] if is_checked else [Verify(rollout.to_version)]
    fleet, actions = Fleet(rollout, observed), list[Action]()
    if not fleet.assigned and fleet.assignment is not None:
        actions.append(fleet.assignment)
    if observed.extra != fleet.extra:
        actions.append(Scale(extra=fleet.extra))
    if rollout.turn is not None:
        actions += _turn_actions(rollout, rollout.turn, fleet)
    return actions


def _turn_actions(rollout: Rollout, turn: Turn, fleet: Fleet) -> list[Action]:
    replica = fleet.find(turn.replica_id)
    if not turn.restart:
        told = replica is not None and replica.swap is not None and replica.swap.id == turn.id
        return (
            []
            if replica is None or told
            else [SwapReplica(id=turn.id, replica_id=turn.replica_id, version=turn.version)]
        )
    restart = Restart(replica_id=turn.replica_id, why=f"it is to load {turn.version}")
    if replica is None:
        return [restart] if fleet.observed.turn_lives else []
    waited = fleet.observed.now_s - turn.began_s >= rollout.spec.finish_s
    idle = replica.draining and replica.running == 0
    return [*([] if replica.draining else [Drain(replica_id=turn.replica_id)]), *([restart] if waited or idle else [])]


def _why(rollout: Rollout, observed: Observed) -> str:
    """What it waits for, or does, and why the last action was refused; one sentence without its full stop."""
    refused = f"; refused: {observed.refused.rstrip('.')}" if observed.refused else ""
    return f"{_waits_for(rollout, observed)}{refused}"


def _waits_for(rollout: Rollout, observed: Observed) -> str:
    if rollout.phase is Phase.VERIFYING:
        return f"the files of {rollout.to_version} are being read" if not rollout.paused else "it is paused"
    fleet, turn = Fleet(rollout, observed), rollout.turn
    if turn is not None:
        replica = fleet.find(turn.replica_id)
        swap = replica.swap if replica is not None else None
        doing = "is being restarted" if turn.restart else swap.phase if swap and swap.id == turn.id else "is told"
        return f"{turn.replica_id} is to serve {turn.version}: {doing}"
    waits = next_turn(rollout, observed)
    if rollout.phase in ENDED:
        return waits if isinstance(waits, str) and waits else f"{rollout.stable} is served"
    if rollout.paused:
        return "it is paused"
    if isinstance(waits, str) and waits:
        return waits
    if rollout.phase is Phase.CANARY and not rollout.proven:
        live = observed.samples.get(rollout.from_version)
        had, need = live.ended if live else 0, rollout.spec.min_samples
        return (
            f"the only replica serves {rollout.from_version} until {need} requests ({had} so far) and "
            f"{BASELINE_STEPS * rollout.spec.step_s:g} s are there to compare with"
        )
    if rollout.phase is Phase.CANARY:
        return _why_watched(rollout, observed, fleet)
    lacking = max(observed.wanted - len(fleet.there), 0)
    return f"{lacking} replicas are not there yet" if lacking else "the router has not heard of it yet"


def _why_watched(rollout: Rollout, observed: Observed, fleet: Fleet) -> str:
    spec = rollout.spec
    canary, stable = observed.samples.get(rollout.to_version), _stable(rollout, observed)
    unsure = [gate.name for gate in rollout.gates if gate.answer is not Answer.YES]
    open_gates = f"; not enough for {', '.join(unsure)}" if unsure else ""
    return (
        f"{fleet.share:.0%} of the traffic goes to {rollout.to_version}: {canary.ended if canary else 0} requests of "
        f"it and {stable.ended if stable else 0} of {rollout.from_version}, {spec.min_samples} are needed{open_gates}"
    )

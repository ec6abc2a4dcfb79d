"""Who is healed, in which order, and who never is."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ops.anomaly.alarms import Alarm, Severity
from ops.controller.healing import DRAIN, RECOVER, RESTART, HealingLimits, HealingState, ReplicaState, Step, decide

LIMITS = HealingLimits()


def replica(name: str, running: int = 3, ready: bool = True, draining: bool = False) -> ReplicaState:
    return ReplicaState(name, "m", ready, draining, running)


def alarm(name: str, replica: str | None = None, raised_s: float = 0.0) -> Alarm:
    labels = {"model": "m"} | ({"replica": replica} if replica else {})
    return Alarm(name, Severity.PAGE, "Figures.", name, labels, raised_s)


def stuck(replica: str) -> Alarm:
    return alarm("up-but-not-serving", replica)


def slow(replica: str, raised_s: float = 0.0) -> Alarm:
    return alarm("replica-latency", replica, raised_s)


def brief(steps: list[Step]) -> list[tuple[str, str, str]]:
    return [(step.action, step.replica, step.outcome) for step in steps]


def test_one_that_gives_nothing_is_drained_and_restarted_at_once() -> None:
    state, there = HealingState(), [replica("a"), replica("b")]
    [drain] = decide(10.0, state, there, [stuck("a")], LIMITS)
    assert (drain.action, drain.replica, drain.outcome) == (DRAIN, "a", "")
    assert decide(11.0, state, there, [stuck("a")], LIMITS) == [drain], "until it is done"
    state.done(11.0, drain)
    [restart] = decide(12.0, state, [replica("a", ready=False, draining=True), replica("b")], [stuck("a")], LIMITS)
    assert (restart.action, restart.outcome) == (RESTART, "")
    state.done(12.0, restart)
    assert decide(13.0, state, [replica("b")], [], LIMITS) == []
    assert brief(decide(30.0, state, [replica("b"), replica("c")], [], LIMITS)) == [(RECOVER, "a", "recovered")]
    assert state.case is None and state.restarts_s == [12.0]


def test_a_slow_one_has_time_to_let_its_streams_go() -> None:
    state, there = HealingState(), [replica("a"), replica("b")]
    assert decide(30.0, state, there, [slow("a")], LIMITS) == [], "it may pass"
    [drain] = decide(61.0, state, there, [slow("a")], LIMITS)
    state.done(61.0, drain)
    drained = [replica("a", ready=False, draining=True), replica("b")]
    assert decide(70.0, state, drained, [slow("a")], LIMITS) == []
    empty = [replica("a", running=0, ready=False, draining=True), replica("b")]
    assert brief(decide(71.0, state, empty, [slow("a")], LIMITS)) == [(RESTART, "a", "")]
    assert brief(decide(92.0, state, drained, [slow("a")], LIMITS)) == [(RESTART, "a", "")], "but not for ever"


def test_what_is_the_models_is_not_blamed_on_a_replica() -> None:
    there = [replica("a"), replica("b")]
    for wide in ("model-latency", "slo-burn-fast"):
        steps = decide(100.0, HealingState(), there, [slow("a"), alarm(wide)], LIMITS)
        assert brief(steps) == [(RESTART, "a", "withheld")] and wide in steps[0].why
    both = decide(100.0, HealingState(), there, [stuck("a"), stuck("b")], LIMITS)
    assert brief(both) == [(RESTART, "a", "withheld"), (RESTART, "b", "withheld")]
    stands_still = decide(100.0, HealingState(), there, [stuck("a"), alarm("model-latency")], LIMITS)
    assert brief(stands_still) == [(DRAIN, "a", "")], "the model may be slow because this one stands still"


def test_the_only_one_is_restarted_only_if_it_gives_nothing() -> None:
    alone = [replica("a")]
    assert brief(decide(100.0, HealingState(), alone, [slow("a")], LIMITS)) == [(RESTART, "a", "withheld")]
    assert brief(decide(100.0, HealingState(), alone, [stuck("a")], LIMITS)) == [(DRAIN, "a", "")]


def test_what_is_withheld_is_told_once_and_an_operators_drain_is_left_alone() -> None:
    state = HealingState(restarts_s=[90.0, 95.0, 99.0])
    there = [replica("a"), replica("b")]
    assert brief(decide(100.0, state, there, [stuck("a")], LIMITS)) == [(RESTART, "a", "withheld")]
    assert decide(101.0, state, there, [stuck("a")], LIMITS) == []
    assert brief(decide(3700.0, state, there, [stuck("a")], LIMITS)) == [(DRAIN, "a", "")], "the hour is over"
    drained = [replica("a", ready=False, draining=True), replica("b")]
    assert decide(100.0, HealingState(), drained, [stuck("a")], LIMITS) == []
    off = msgspec.structs.replace(LIMITS, restarts_per_hour=0)
    assert decide(100.0, HealingState(), there, [stuck("a")], off) == []


def test_one_that_the_router_has_lost_already_is_restarted() -> None:
    lost = [replica("a", ready=False), replica("b")]
    assert brief(decide(100.0, HealingState(), lost, [stuck("a")], LIMITS)) == [(RESTART, "a", "")]


def test_a_step_that_fails_is_not_tried_again_while_the_alarm_lasts() -> None:
    state, there = HealingState(), [replica("a"), replica("b")]
    [drain] = decide(10.0, state, there, [stuck("a")], LIMITS)
    state.failed(drain, "refused")
    assert decide(11.0, state, there, [stuck("a")], LIMITS) == []
    assert decide(12.0, state, there, [], LIMITS) == []
    assert brief(decide(13.0, state, there, [stuck("a")], LIMITS)) == [(DRAIN, "a", "")]


def test_a_replica_that_is_given_another_version_is_left_alone() -> None:
    swapping = replica("a", ready=False)._replace(swapping=True)
    there = [swapping, replica("b")]
    for seen in (stuck("a"), slow("a")):
        assert decide(100.0, HealingState(), there, [seen], LIMITS) == []
    state = HealingState()
    decide(10.0, state, [replica("a"), replica("b")], [stuck("a")], LIMITS)
    assert state.in_hand == "a"
    assert brief(decide(11.0, state, there, [stuck("a")], LIMITS)) == [(RECOVER, "a", "withheld")]
    assert state.in_hand == ""


def test_a_slow_version_that_is_being_rolled_out_is_its_gates_affair_and_one_that_hangs_is_not() -> None:
    canary = replica("a")._replace(model="m@v2", judged=True)
    there = [canary, canary._replace(replica_id="b"), replica("c")]
    state = HealingState()
    steps = decide(100.0, state, there, [slow("a")], LIMITS)
    assert brief(steps) == [(RESTART, "a", "withheld")] and "gates" in steps[0].why
    assert decide(101.0, state, there, [slow("a")], LIMITS) == [], "it is told once"
    assert brief(decide(102.0, state, there, [stuck("a")], LIMITS)) == [(DRAIN, "a", "")]


def test_what_comes_in_place_of_a_healed_one_may_be_of_another_version() -> None:
    state, there = HealingState(), [replica("a"), replica("b")]
    for now, seen in ((10.0, there), (11.0, [replica("a", ready=False, draining=True), replica("b")])):
        [step] = decide(now, state, seen, [stuck("a")], LIMITS)
        state.done(now, step)
    successor = replica("c")._replace(model="m@v2")
    assert brief(decide(30.0, state, [replica("b"), successor], [], LIMITS)) == [(RECOVER, "a", "recovered")]


names = st.sampled_from("abc")
alarms = st.lists(st.one_of(st.builds(stuck, names), st.builds(slow, names)), max_size=4)
replicas = st.dictionaries(
    names, st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=3
)  # running, ready, draining
moments = st.lists(st.tuples(st.sampled_from([1.0, 70.0, 1000.0]), replicas, alarms, st.booleans()), max_size=40)


@given(moments)
def test_never_more_than_one_at_a_time_nor_more_than_the_budget_nor_the_last_that_serves(history) -> None:
    now, state, restarts = 0.0, HealingState(), []
    for gap, there, raised, goes_well in history:
        now += gap
        views = [replica(n, r, ready and not d, d) for n, (r, ready, d) in there.items()]
        before = state.case
        steps = [step for step in decide(now, state, views, raised, LIMITS) if not step.outcome]
        assert len(steps) <= 1
        for step in steps:
            assert state.case is not None and state.case.replica == step.replica
            begins = before is None
            others = any(v.ready and v.replica_id != step.replica for v in views)
            assert not begins or others or not state.case.serves
            assert step.action != RESTART or state.case.drained_s is not None
            if not goes_well:
                state.failed(step, "x")
                continue
            state.done(now, step)
            restarts += [now] if step.action == RESTART else []
        assert len([at for at in restarts if at > now - 3600.0]) <= LIMITS.restarts_per_hour
        state = msgspec.json.decode(msgspec.json.encode(state), type=HealingState)

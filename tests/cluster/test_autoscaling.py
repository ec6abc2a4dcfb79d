"""The number of replicas: within its bounds, up at once, down one by one and never while work is queued."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.autoscaling import Decision, Observation, Pace, Scaling, State, decide

PACE = Pace(prefill_tokens_per_s=40_000.0, decode_tokens_per_s=16_000.0)
SCALING = Scaling(min_replicas=1, max_replicas=10)


def seen(now_s: float = 0.0, ready: int = 1, load: float = 0.0, **changes: object) -> Observation:
    """`load` in replicas, half of it prefill."""
    values: dict[str, object] = {
        "now_s": now_s,
        "ready": ready,
        "loading": 0,
        "draining": 0,
        "running": 10 if load else 0,
        "queued": 0,
        "queued_tokens": 0,
        "prompt_tokens_per_s": load / 2 * PACE.prefill_tokens_per_s,
        "output_tokens_per_s": load / 2 * PACE.decode_tokens_per_s,
        "kv_used": 0.1,
        "attainment": 1.0,
    }
    return Observation(**{**values, **changes})  # type: ignore[arg-type]


def follow(loads: list[float], ready: int, scaling: Scaling = SCALING, **changes: object) -> list[Decision]:
    """Decisions every 10 s by a cluster whose replicas load at once."""
    state, decisions = State(), []
    for i, load in enumerate(loads):
        decisions.append(decide(seen(10.0 * i, ready, load, **changes), state, scaling, PACE))
        state, ready = decisions[-1].state, decisions[-1].target
    return decisions


observations = st.builds(
    Observation,
    now_s=st.floats(1000, 2000),
    ready=st.integers(0, 20),
    loading=st.integers(0, 5),
    draining=st.integers(0, 3),
    running=st.integers(0, 500),
    queued=st.integers(0, 500),
    queued_tokens=st.integers(0, 10**7),
    prompt_tokens_per_s=st.none() | st.floats(0, 1e6),
    output_tokens_per_s=st.none() | st.floats(0, 1e6),
    kv_used=st.none() | st.floats(0, 1),
    attainment=st.none() | st.floats(0, 1),
)
times = st.floats(0, 1000)
states = st.builds(
    State,
    at_s=st.none() | times,
    known=st.booleans(),
    fast=st.floats(0, 30),
    slow=st.floats(0, 30),
    variance=st.floats(0, 30),
    trust=st.floats(0.6, 1.0),
    lower_since_s=st.none() | times,
    scaled_out_s=times,
    scaled_in_s=times,
    busy_s=st.none() | times,
)
scalings = st.integers(0, 8).flatmap(
    lambda least: st.builds(Scaling, min_replicas=st.just(least), max_replicas=st.integers(max(least, 1), 16))
)


@given(observations, states, scalings)
def test_never_outside_its_bounds_and_always_with_a_sentence(look, state, scaling):
    decision = decide(look, state, scaling, PACE)
    assert scaling.min_replicas <= decision.target <= scaling.max_replicas
    assert decision.reason.endswith(".") and decision.reason[0].isupper()


@given(observations, states, scalings)
def test_never_fewer_while_work_is_queued_or_a_replica_loads_or_drains(look, state, scaling):
    have = look.ready + look.loading
    decision = decide(look, state, scaling, PACE)
    if decision.target < have <= scaling.max_replicas:
        assert not look.queued and not look.queued_tokens and not look.loading and not look.draining
        assert decision.target == have - 1
        assert decision.target > 0 or not look.running
        assert None not in (look.prompt_tokens_per_s, look.output_tokens_per_s)
        assert decision.target == 0 or look.attainment is None or look.attainment >= scaling.slo_goal


@given(observations, states, scalings)
def test_cool_downs_hold(look, state, scaling):
    have = look.ready + look.loading
    target = decide(look, state, scaling, PACE).target
    if target > have >= max(scaling.min_replicas, 1):
        assert look.now_s >= state.scaled_out_s + scaling.scale_out_cool_down_s
    if 1 <= target < have <= scaling.max_replicas:
        assert look.now_s >= max(state.scaled_in_s, state.scaled_out_s) + scaling.scale_in_cool_down_s
        assert state.lower_since_s is not None and look.now_s >= state.lower_since_s + scaling.scale_in_after_s


more = st.fixed_dictionaries(
    {
        "prompt_tokens_per_s": st.floats(0, 1e6),
        "output_tokens_per_s": st.floats(0, 1e6),
        "queued": st.integers(0, 100),
        "queued_tokens": st.integers(0, 10**6),
        "running": st.integers(0, 100),
        "kv_used": st.floats(0, 1),
    }
)


@given(observations, states, scalings, more)
def test_more_load_never_asks_for_fewer(look, state, scaling, added):
    none = {
        name: 0.0 for name in ("prompt_tokens_per_s", "output_tokens_per_s", "kv_used") if getattr(look, name) is None
    }
    look = dataclasses.replace(look, **none)
    heavier = dataclasses.replace(look, **{name: getattr(look, name) + value for name, value in added.items()})
    assert decide(heavier, state, scaling, PACE).target >= decide(look, state, scaling, PACE).target


@given(st.floats(0, 9), st.integers(1, 10))
def test_constant_load_settles_without_flapping(load, ready):
    targets = [d.target for d in follow([load] * 400, ready)]
    changes = [b - a for a, b in zip([ready, *targets], targets, strict=False) if b != a]
    assert all(c > 0 for c in changes) or all(c < 0 for c in changes)
    assert len(set(targets[-100:])) == 1
    assert load <= SCALING.fill * targets[-1] or targets[-1] == SCALING.max_replicas


def test_up_at_once_and_down_one_by_one():
    decisions = follow([1.0] * 60 + [5.0] * 120 + [1.0] * 600, 2)
    targets = [d.target for d in decisions]
    assert targets[59] == 2 and max(targets) >= 6 and targets[-1] == 2
    assert targets[62] > 2  # within half a minute
    falls = [i for i in range(1, len(targets)) if targets[i] < targets[i - 1]]
    assert all(targets[i] == targets[i - 1] - 1 for i in falls)
    assert all(later - earlier >= SCALING.scale_in_cool_down_s / 10 for earlier, later in itertools.pairwise(falls))
    assert decisions[62].reason.startswith("Scale out") or decisions[61].reason.startswith("Scale out")


def test_a_ramp_is_met_before_it_is_there():
    slow = follow([2.0 + 0.01 * i for i in range(200)], 3, dataclasses.replace(SCALING, load_s=0.0, burst=0.0))
    fast = follow([2.0 + 0.01 * i for i in range(200)], 3, dataclasses.replace(SCALING, load_s=600.0, burst=0.0))
    first = [next(i for i, d in enumerate(run) if d.target == 5) for run in (slow, fast)]
    assert first[1] < first[0] - 20  # 600 s ahead, of which the mean of the past finds a part
    assert "by their trend in 600 s" in fast[-1].reason


def test_replicas_that_load_count_as_if_they_were_there():
    state = follow([3.0] * 20, 4)[-1].state
    assert decide(seen(500.0, 1, 3.0, loading=3), state, SCALING, PACE).target == 4
    assert decide(seen(500.0, 1, 3.0, loading=0, draining=3), state, SCALING, PACE).target == 4


def test_kv_and_queue_ask_for_replicas_too():
    full = decide(seen(0.0, 4, 1.0, kv_used=0.97), State(), SCALING, PACE)
    assert full.target == 5 and "97% of the KV cache" in full.reason
    waiting = decide(seen(0.0, 1, 0.5, queued=900, queued_tokens=4_000_000), State(), SCALING, PACE)
    assert waiting.target == 3 and "4000000 tokens are queued" in waiting.reason


def test_a_missed_slo_teaches_that_replicas_carry_less():
    missed = follow([3.2] * 60, 4, attainment=0.9)
    assert missed[-1].target > 4 and "as the SLO shows" in missed[-1].reason
    unknown = follow([3.2] * 60, 4, attainment=None)
    assert unknown[-1].target == 4 and unknown[-1].state.trust == 1.0


def test_to_none_when_nobody_asks_and_back_for_a_held_queue():
    scaling = Scaling(min_replicas=0, max_replicas=10)
    targets = [d.target for d in follow([0.0] * 80, 1, scaling)]
    assert targets[:60] == [1] * 60 and targets[-1] == 0
    state = follow([0.0] * 80, 1, scaling)[-1].state
    one = decide(seen(800.0, 0, 0.0, queued=1, queued_tokens=100), state, scaling, PACE)
    assert one.target == 1 and one.reason.startswith("Scale out from 0 to 1")
    many = decide(seen(800.0, 0, 0.0, queued=3000, queued_tokens=9_000_000), state, scaling, PACE)
    assert many.target == 4


def test_two_become_one_when_one_suffices():
    targets = [decision.target for decision in follow([1.2] * 30 + [0.3] * 60, ready=2)]
    assert targets[29] == 2 and targets[-1] == 1
    assert [decision.target for decision in follow([0.95 * SCALING.fill] * 100, ready=2)][-1] == 2  # within the margin


def test_none_stays_none_until_somebody_asks_again():
    """What was asked before stays in the means for hours: it brings nobody back."""
    scaling = Scaling(min_replicas=0, max_replicas=10)
    targets = [decision.target for decision in follow([3.0, 0.0] * 30 + [0.0] * 720, ready=4, scaling=scaling)]
    assert 0 in targets and not any(targets[targets.index(0) :])


def test_what_is_not_known_changes_nothing():
    state = follow([3.0] * 20, 4)[-1].state
    for i in range(100):
        look = seen(
            200.0 + 10 * i, 4, prompt_tokens_per_s=None, output_tokens_per_s=None, kv_used=None, attainment=None
        )
        decision = decide(look, state, SCALING, PACE)
        state = decision.state
        assert decision.target == 4


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas"),
        ({"min_replicas": 0, "max_replicas": 0}, "max_replicas"),
        ({"fill": 1.2}, "fill"),
        ({"fast_s": 900.0, "slow_s": 600.0}, "fast_s"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Scaling(**settings)

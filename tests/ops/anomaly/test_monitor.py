"""The detectors behind one door: raise once, resolve once, survive a restart, and say nothing without data."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.anomaly.monitor import Monitor
from ops.anomaly.observations import (
    ExpertReport,
    ModelReport,
    Observation,
    ReplicaGone,
    ReplicaHung,
    ReplicaReport,
    Request,
)

FAST, LATE = 0.2, 3.0
ttft = st.sampled_from([None, FAST, LATE])
observations = st.one_of(
    st.builds(Request, st.just(0.0), st.just("m"), st.sampled_from("ab"), st.just(64), ttft, ttft, st.booleans()),
    st.builds(
        ReplicaReport, st.just(0.0), st.just("m"), st.sampled_from("ab"), st.sampled_from([None, True, False]),
        st.integers(0, 1), st.integers(0, 2),
    ),
    st.builds(ModelReport, st.just(0.0), st.just("m"), st.integers(0, 1), st.integers(0, 2), st.integers(0, 4)),
    st.builds(
        ExpertReport, st.just(0.0), st.just("m"), st.sampled_from("ab"), st.sampled_from([1.0, 2.0]), st.just(50_000)
    ),
    st.builds(ReplicaGone, st.just(0.0), st.just("m"), st.sampled_from("ab")),
)  # fmt: skip
histories = st.lists(st.tuples(st.sampled_from([0.1, 5.0, 90.0]), observations, st.integers(1, 6)), max_size=40)


def timed(history) -> list[Observation]:
    now, seen = 0.0, []
    for gap, observation, times in history:
        for _ in range(times):
            now += gap
            seen.append(observation._replace(at_s=now))
    return seen


@settings(max_examples=60)
@given(histories)
def test_beginnings_and_ends_alternate_and_a_restart_changes_nothing(history) -> None:
    whole = Monitor()
    restarted = Monitor()
    raised = set()
    for seen in timed(history):
        events = whole.observe(seen) + whole.evaluate(seen.at_s)
        restarted = Monitor.restored(restarted.saved())
        assert restarted.observe(seen) + restarted.evaluate(seen.at_s) == events
        for event in events:
            key = (event.alarm.name, *sorted(event.alarm.labels.items()))
            assert event.raised == (key not in raised)
            raised ^= {key}
    assert len(raised) == len(whole.raised)


@given(st.lists(st.sampled_from([FAST, LATE]), max_size=4), st.floats(0, 1e7))
def test_too_little_is_neither_good_nor_bad(latencies, later) -> None:
    monitor = Monitor()
    for number, value in enumerate(latencies):
        assert not monitor.observe(Request(float(number), "m", "a", 10, value, value))
    assert not monitor.evaluate(10.0 + later)


def test_five_misses_in_a_row_raise_and_a_calm_resolves() -> None:
    monitor = Monitor()
    told = [
        (number, event.raised, event.alarm.name)
        for number, value in enumerate([LATE] * 4 + [FAST] + [LATE] * 9 + [FAST] * 39)
        for event in monitor.observe(Request(float(number), "m", "a", 10, value, 0.01))
    ]
    assert told == [
        (9, True, "replica-latency"), (9, True, "model-latency"),
        (48, False, "replica-latency"), (48, False, "model-latency"),
    ]  # fmt: skip


def serving(monitor: Monitor, times: list[float], healthy: bool | None = True) -> list[str]:
    reports = (ReplicaReport(at, "m", "a", healthy, 3, 100) for at in times)
    return [event.alarm.name for report in reports for event in monitor.observe(report)]


def test_up_but_not_serving_needs_health_and_reports_without_a_gap() -> None:
    assert serving(Monitor(), [0.0, 5.0, 10.0, 15.0, 20.0]) == ["up-but-not-serving"]
    assert serving(Monitor(), [0.0, 5.0, 10.0, 15.0, 20.0], healthy=None) == []
    assert serving(Monitor(), [0.0, 5.0, 500.0, 505.0]) == []


def test_an_alarm_ends_with_its_replica_and_with_its_first_token() -> None:
    for end in (ReplicaGone(30.0, "m", "a"), ReplicaReport(30.0, "m", "a", True, 3, 101)):
        monitor = Monitor()
        serving(monitor, [0.0, 5.0, 10.0, 15.0])
        (event,) = monitor.observe(end)
        assert not event.raised and not monitor.raised


def test_a_report_from_before_a_hang_does_not_end_its_alarm() -> None:
    monitor = Monitor()
    monitor.observe(ReplicaReport(1.0, "m", "a", True, 3, 100))
    assert [event.raised for event in monitor.observe(ReplicaHung(6.0, "m", "a", 3))] == [True]
    assert not monitor.observe(ReplicaReport(6.1, "m", "a", True, 3, 140))  # made before it hung, told after
    assert [event.raised for event in monitor.observe(ReplicaReport(9.0, "m", "a", True, 3, 141))] == [False]


def test_tokens_from_before_a_restart_do_not_end_an_alarm() -> None:
    monitor = Monitor()
    monitor.observe(ReplicaReport(0.0, "m", "a", True, 3, 90))
    learned = monitor.saved()  # every few seconds only
    for at in (1.0, 6.0, 12.0):
        monitor.observe(ReplicaReport(at, "m", "a", True, 3, 100))
    latches = monitor.state.latches
    restored = Monitor.restored(learned)
    restored.state.latches = latches
    restored.was_away()
    assert [alarm.name for alarm in restored.raised] == ["up-but-not-serving"]
    assert not restored.observe(ReplicaReport(14.0, "m", "a", True, 3, 100))
    assert [event.raised for event in restored.observe(ReplicaReport(15.0, "m", "a", True, 3, 101))] == [False]


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        Monitor.restored(b'{"rows": 3}')

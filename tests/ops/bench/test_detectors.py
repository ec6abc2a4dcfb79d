"""The detectors' bench: what counts as found, and what as false."""

import itertools
import random

import pytest

from ops.anomaly.alarms import Alarm, Event, Severity
from ops.bench.detectors import figures, judged
from ops.bench.faulty_days import DAY_S, FROZEN, SORTS, Fault, faults


def event(at_s: float, name: str, replica: str, raised: bool = True) -> Event:
    return Event(at_s, raised, Alarm(name, Severity.PAGE, "", name, {"model": "m", "replica": replica}, at_s))


def test_only_the_right_alarm_of_the_right_replica_in_time_finds_a_fault() -> None:
    fault = Fault(FROZEN, 1000.0, "r1")
    name = "up-but-not-serving"
    assert judged([fault], [event(1012.0, name, "r1")]).detected == [(fault, 12.0)]
    for wrong in (event(900.0, name, "r1"), event(1012.0, name, "r2"), event(1012.0, "expert-imbalance", "r1")):
        run = judged([fault], [wrong, event(1013.0, name, "r1", raised=False)])
        assert run.detected == [(fault, None)] and run.false == [wrong]
        assert figures([run])["recall"] == 0.0 and figures([run])["false_alarms_per_day"] > 0


def test_each_fault_comes_once_and_apart() -> None:
    placed = faults(random.Random(1), 0.0, 2)
    assert {fault.sort for fault in placed} == set(SORTS) and placed[-1].end_s <= 2 * DAY_S
    assert all(a.end_s + 2400 <= b.begin_s for a, b in itertools.pairwise(placed))
    with pytest.raises(ValueError, match="too few"):
        faults(random.Random(1), 0.0, 0.5)

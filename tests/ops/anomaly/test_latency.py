"""Misses in a row: raised at once, and not resolved and raised again while a model is near its limit."""

from ops.anomaly.latency import CALM_S, MODEL_LATENCY
from ops.anomaly.monitor import Monitor
from ops.anomaly.observations import Request

GOOD, LATE = 0.2, 3.0


def told(latencies: list[float], every_s: float) -> list[tuple[float, bool]]:
    """(time, raised) of the model's alarm."""
    monitor, events = Monitor(), []
    for number, ttft in enumerate(latencies):
        at = number * every_s
        events += monitor.observe(Request(at, "m", f"r{number % 9}", 10, ttft, 0.01))
    return [(event.at_s, event.raised) for event in events if event.alarm.name == MODEL_LATENCY.name]


def test_five_in_a_row_raise_and_four_do_not() -> None:
    assert told([LATE] * 4 + [GOOD] + [LATE] * 4, 1.0) == []
    assert told([LATE] * 5, 1.0) == [(4.0, True)]


def test_it_does_not_come_and_go_while_the_model_is_near_its_limit() -> None:
    assert told(([LATE] * 5 + [GOOD] * 15) * 20, 0.1) == [(0.4, True)]


def test_it_ends_after_a_calm_also_where_few_ask() -> None:
    first, last = told([LATE] * 5 + [GOOD] * 60, 1.0)
    assert first[1] and last == (9.0 + CALM_S, False)
    assert told([LATE] * 5 + [GOOD] * 6, 600.0) == [(2400.0, True), (6000.0, False)]

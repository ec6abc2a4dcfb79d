"""The SLO's burn: what a window says, and that minutes after a start are no hours."""

from ops.anomaly.monitor import Monitor
from ops.anomaly.observations import Request
from ops.anomaly.outcomes import FAST_BURN, SLOW_BURN

LATE_TTFT_S = 30.0


def burns(hours: float, bad_share: float) -> dict[str, float]:
    """Kinds of burn that were raised, and when (s), in so many hours after the first request: one a second."""
    monitor, raised = Monitor(), {}
    every = round(1 / bad_share)
    for second in range(int(hours * 3600)):
        ttft = LATE_TTFT_S if second % every == 0 else 0.1
        events = monitor.observe(Request(float(second), "m", "a", 10, ttft, 0.01))
        if second % 10 == 0:
            events += monitor.evaluate(float(second))
        for event in events:
            if event.raised:
                raised.setdefault(event.alarm.name, event.at_s)
    return {name: at for name, at in raised.items() if name in (FAST_BURN.name, SLOW_BURN.name)}


def test_what_is_bad_from_the_start_pages_after_the_short_window() -> None:
    assert burns(hours=0.08, bad_share=0.5) == {}
    assert set(burns(hours=0.1, bad_share=0.5)) == {FAST_BURN.name}


def test_a_slow_burn_is_told_once_six_hours_are_known() -> None:
    raised = burns(hours=6.2, bad_share=1 / 50)  # burns twice as fast as the budget allows
    assert set(raised) == {SLOW_BURN.name}
    assert 6.0 * 3600 <= raised[SLOW_BURN.name] < 6.1 * 3600

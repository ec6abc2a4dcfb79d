"""Made-up and rescaled load: repeatable, at the rate that was asked for, with the shape that it is said to have."""

from __future__ import annotations

import itertools
import statistics

import pytest

from ops.simulate.workloads import (
    BATCH,
    CODE_IN,
    CONV_IN,
    CONV_OUT,
    INTERACTIVE,
    SYNTHETIC,
    Arrival,
    Workload,
    at_rate,
    flood,
    part,
    rotated,
    scaled,
    superposed,
    warmed_up,
)

TRACE = Workload("t", tuple(Arrival(float(i * i), 10 + i, 1 + i) for i in range(10)), 100.0)


def times(load: Workload) -> list[float]:
    return [a.at_s for a in load.arrivals]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_made_up_load_is_repeatable_and_at_its_rate(name):
    made = [SYNTHETIC[name](20.0, 200.0, seed) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert times(made[0]) == sorted(times(made[0])) and times(made[0])[0] >= 0 and times(made[0])[-1] < 200.0
    # Bursts vary: the code trace's gaps have a coefficient of variation of 13.
    rates = [SYNTHETIC[name](20.0, 200.0, seed).rate for seed in range(12)]
    assert statistics.fmean(rates) == pytest.approx(20.0, rel=0.35 if name == "code" else 0.1)


def test_stand_ins_have_the_traces_lengths_and_gaps():
    conv = SYNTHETIC["conv"](50.0, 400.0, 0)
    for lengths, values in (
        (CONV_IN, [a.prompt_tokens for a in conv.arrivals]),
        (CONV_OUT, [a.output_tokens for a in conv.arrivals]),
        (CODE_IN, [a.prompt_tokens for a in SYNTHETIC["code"](50.0, 400.0, 3).arrivals]),
    ):
        assert statistics.fmean(values) == pytest.approx(lengths.mean, rel=0.1) and max(values) <= lengths.most
        assert statistics.median(values) == pytest.approx(lengths.median, rel=0.1)
    gaps = [b - a for a, b in itertools.pairwise(times(conv))]
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(1.1, rel=0.05)


def test_turns_of_a_conversation_share_their_beginning():
    chat = SYNTHETIC["chat"](10.0, 100.0, 0)
    by_chain: dict[int, list[Arrival]] = {}
    for arrival in chat.arrivals:
        assert len(arrival.prompt_blocks) == arrival.prompt_tokens // 16
        assert len(arrival.chain) >= (arrival.prompt_tokens + arrival.output_tokens) // 16
        by_chain.setdefault(arrival.chain[-1], []).append(arrival)
    assert any(len(turns) > 3 for turns in by_chain.values())
    for turns in by_chain.values():
        for before, after in itertools.pairwise(turns):
            held = before.prompt_tokens + before.output_tokens
            assert after.prompt_tokens > held and after.chain[: held // 16] == before.chain[: held // 16]
    systems = {arrival.chain[:48] for arrival in chat.arrivals}
    assert 1 < len(systems) <= 32
    # The mix of turns is the same from the beginning on: conversations began before the window.
    early, late = ([a.prompt_tokens for a in chat.arrivals if low <= a.at_s < low + 40] for low in (0, 60))
    assert statistics.fmean(early) == pytest.approx(statistics.fmean(late), rel=0.25)


def test_a_flood_comes_beside_the_same_people():
    calm, wild = flood(10.0, 0.0, 60.0, 5), flood(10.0, 30.0, 60.0, 5)
    assert tuple(a for a in wild.arrivals if a.tenant == INTERACTIVE) == calm.arrivals
    assert len(wild.arrivals) == pytest.approx(4 * len(calm.arrivals), rel=0.2)
    assert {a.tenant for a in SYNTHETIC["tenants"](20.0, 100.0, 0).arrivals} == {INTERACTIVE, BATCH}


def test_compressing_time_keeps_the_requests_and_their_bursts():
    fast = at_rate(TRACE, 1.0)
    assert fast.rate == pytest.approx(1.0) and times(fast) == pytest.approx([t / 10 for t in times(TRACE)])


def test_rotating_and_superposing_keep_the_rate():
    turned = rotated(TRACE, 0.5)
    assert times(turned) == [14.0, 31.0, 50.0, 51.0, 54.0, 59.0, 66.0, 75.0, 86.0, 99.0] == sorted(times(turned))
    assert turned.rate == TRACE.rate and rotated(TRACE, 0.0) == TRACE
    both = superposed(TRACE, 2)
    assert both.rate == 2 * TRACE.rate and times(both) == sorted(times(TRACE) + times(turned))


def test_more_replicas_get_more_copies_not_a_denser_burst():
    assert scaled(TRACE, 16, None) == at_rate(TRACE, TRACE.rate)
    large = scaled(TRACE, 48, 1.0)
    assert len(large.arrivals) == 30 and large.rate == pytest.approx(1.0)


def test_warm_up_is_the_loads_own_end():
    warm = warmed_up(TRACE, 40.0)
    assert warm.warm_up_s == 40.0 and warm.duration_s == 140.0
    assert times(warm)[:2] == [4.0, 21.0] and [t - 40.0 for t in times(warm)[2:]] == times(TRACE)
    assert times(part(TRACE, 10.0, 30.0)) == [6.0, 15.0, 26.0]

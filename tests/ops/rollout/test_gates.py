"""The statistics against cases that can be counted by hand, and gates on whole rollouts of made-up requests."""

import itertools
import math
import random

import pytest

from ops.anomaly.alarms import Answer
from ops.bench.gates import FAULTS, SAME, Fault, roll
from ops.rollout.comparison import compare, more_often, most_above
from ops.rollout.gates import GATES, allowed, golden, judge, look_is_due
from ops.rollout.samples import KEPT, MAX_BINS, SIZES, Request, Samples, Stratum, Window, thinned
from ops.rollout.spec import Gates, RolloutSpec
from ops.rollout.state import GateResult, Looks, Phase, Rollout, started
from replicas.messages import SwapReport

ROLLOUT = Rollout(id="x", spec=RolloutSpec(version="v2"), from_version="v1", started_s=0.0, phase=Phase.CANARY)
FINAL_LOOK = Rollout(**{**{f: getattr(ROLLOUT, f) for f in ROLLOUT.__struct_fields__}, "looks": Looks(count=3)})


def drawn(rng: random.Random, n: int, factor: float = 1.0, spread: float = 0.6, bins: int = 30) -> dict[str, Stratum]:
    logs = tuple(math.log(factor) + rng.gauss(0.0, spread) for _ in range(n))
    return {"1": Stratum(n, tuple(rng.randrange(bins) for _ in range(n)), logs)}


def samples(rng: random.Random, n: int, failed: int = 0, running: int | None = 0, **factors: float) -> Samples:
    counts = {bin: (n // 30 + (bin < n % 30), failed // 30 + (bin < failed % 30)) for bin in range(30)}
    return Samples(
        since_s=0.0,
        ended=n,
        failed=failed,
        counts=counts,
        running=running,
        **{name: drawn(rng, n, factors.get(name, 1.0)) for name in ("ttft", "tpot", "length")},
    )


def answers(canary: Samples, stable: Samples, rollout: Rollout = FINAL_LOOK) -> dict[str, Answer]:
    return {gate.name: gate.answer for gate in judge(rollout, canary, stable)}


# -- statistics -------------------------------------------------------------------------------------------------------


def test_ranks_of_one_stratum_are_mann_and_whitneys() -> None:
    rng = random.Random(1)
    one, other = drawn(rng, 40, 1.3, bins=1), drawn(rng, 60, bins=1)
    wins = sum(a > b for a, b in itertools.product(one["1"].logs, other["1"].logs))
    found = compare(one, other)
    assert found is not None and found.larger == pytest.approx(wins / 2400)
    differences = sorted(a - b for a, b in itertools.product(one["1"].logs, other["1"].logs))
    assert math.log(found.ratio) == pytest.approx((differences[1199] + differences[1200]) / 2)


def test_equal_values_are_no_difference_and_all_larger_is_one() -> None:
    same = {"1": Stratum(50, tuple(range(50)), (1.0,) * 50)}
    found = compare(same, same)
    assert found is not None and (found.larger, found.ratio, found.p_larger) == (0.5, 1.0, 0.5)
    larger = {"1": Stratum(50, tuple(range(50)), (2.0,) * 50)}
    found = compare(larger, same)
    assert found is not None and found.larger == 1.0 and found.p_larger < 1e-4


def test_p_values_keep_what_they_promise_though_whole_moments_are_slow() -> None:
    """Half of the variance is a moment's: taken as independent, many would be below 0.05."""
    rng, low, low_if_independent = random.Random(2), 0, 0
    for _ in range(400):
        sides, mixed = [], []
        for n in (100, 300):
            moments = [rng.gauss(0.0, 0.5) for _ in range(24)]
            bins = [rng.randrange(24) for _ in range(n)]
            sides.append({"1": Stratum(n, tuple(bins), tuple(moments[bin] + rng.gauss(0.0, 0.5) for bin in bins))})
            mixed.append({"1": Stratum(n, tuple(rng.sample(bins, n)), sides[-1]["1"].logs)})
        low += _p(*sides) < 0.05
        low_if_independent += _p(*mixed) < 0.05
    assert low / 400 < 0.075 < 0.12 < low_if_independent / 400


def _p(one: dict[str, Stratum], other: dict[str, Stratum]) -> float:
    found = compare(one, other)
    assert found is not None
    return found.p_larger


def test_another_mix_of_sizes_is_no_difference() -> None:
    rng = random.Random(3)
    window = Window(0.0)
    for version, long_share in (("v1", 0.2), ("v2", 0.8)):
        for at in range(600):
            size = 10_000 if rng.random() < long_share else 100
            ttft_s = size / 1000 * rng.lognormvariate(0, 0.3)
            window.add(Request(version, at / 10, size, ttft_s, 0.02, 100))
    told = window.samples()
    found = compare(told["v2"].ttft, told["v1"].ttft)
    assert found is not None and 0.9 < found.ratio < 1.1 and found.p_larger > 0.01


def test_a_burst_that_hits_both_is_no_difference() -> None:
    """The new version came when the burst was on, the old one served before it too."""
    rng, window = random.Random(4), Window(0.0)
    for at in range(1200):
        slow = 5.0 if at > 900 else 1.0
        window.add(Request("v1", at / 10, 50, slow * rng.lognormvariate(0, 0.3), 0.02, 100))
        if at > 600:
            window.add(Request("v2", at / 10, 50, slow * rng.lognormvariate(0, 0.3), 0.02, 100))
    told = window.samples()
    found = compare(told["v2"].ttft, told["v1"].ttft)
    assert found is not None and 0.9 < found.ratio < 1.1
    apart = compare(told["v2"].ttft, told["v1"].ttft, same_time=False)
    assert apart is not None and apart.ratio > 1.2, "so it is the time that makes them alike"


def test_fishers_exact_test_is_that_of_the_tea() -> None:
    assert more_often([(3, 4, 1, 4)]) == pytest.approx(17 / 70)
    assert more_often([(4, 4, 0, 4)]) == pytest.approx(1 / 70)
    assert more_often([(0, 10, 5, 10)]) == pytest.approx(1.0)
    assert more_often([]) == more_often([(0, 9, 0, 9)]) == more_often([(2, 5, 0, 0)]) == 1.0
    both = more_often([(3, 4, 1, 4), (4, 4, 0, 4)])
    assert both == pytest.approx((2 * 16 + 1) / 70**2), "seven or more: 3 and 4, 4 and 3, 4 and 4"


def test_the_most_that_errors_may_be_above() -> None:
    assert most_above(0, 100, 0, 900, 0.05) == pytest.approx(0.0263, abs=2e-3)
    assert most_above(5, 100, 0, 900, 0.05) > 0.08
    assert most_above(0, 10, 0, 900, 0.05) > 0.2, "few tell little"


# -- gates ------------------------------------------------------------------------------------------------------------


def test_all_say_yes_to_enough_of_the_same_and_none_to_few() -> None:
    rng = random.Random(5)
    assert set(answers(samples(rng, 300), samples(rng, 900)).values()) == {Answer.YES}
    few = answers(samples(rng, 40), samples(rng, 900))
    assert set(few.values()) == {Answer.UNKNOWN}, "nothing found is no yes"


@pytest.mark.parametrize(("name", "factor"), [("ttft", 1.6), ("tpot", 1.6), ("length", 2.0), ("length", 0.5)])
def test_the_gate_of_what_is_worse_says_no(name: str, factor: float) -> None:
    rng = random.Random(6)
    found = answers(samples(rng, 150, **{name: factor}), samples(rng, 900))
    assert found.pop(name) is Answer.NO and Answer.NO not in found.values()


def test_better_is_no_reason_against_it_but_for_length() -> None:
    rng = random.Random(7)
    assert Answer.NO not in answers(samples(rng, 300, ttft=0.4, tpot=0.4), samples(rng, 900, failed=60)).values()


def test_errors_at_one_moment_are_a_mishap() -> None:
    rng = random.Random(8)
    stable = samples(rng, 900)
    often = samples(rng, 150, failed=12)
    assert answers(often, stable)["errors"] is Answer.NO
    at_once = Samples(since_s=0.0, ended=157, failed=12, counts=dict.fromkeys(range(1, 30), (5, 0)) | {0: (12, 12)})
    assert answers(at_once, stable)["errors"] is Answer.UNKNOWN
    most = Samples(since_s=0.0, ended=20, failed=20, counts={0: (20, 20)}, running=0)
    assert answers(most, stable)["errors"] is Answer.NO


def test_errors_of_both_at_the_same_moment_are_nobodys() -> None:
    def hit(ended: int, failed: int, moments: int) -> Samples:
        return Samples(
            since_s=0.0,
            ended=ended * 30,
            failed=failed * moments,
            counts={bin: (ended, failed if bin < moments else 0) for bin in range(30)},
        )

    rng = random.Random(9)
    assert answers(hit(10, 8, 3), hit(30, 24, 3))["errors"] is not Answer.NO
    assert answers(hit(10, 8, 3), samples(rng, 900))["errors"] is Answer.NO


def test_answers_without_an_end_are_seen_before_any_has_ended() -> None:
    rng = random.Random(10)
    endless = Samples(since_s=0.0, running=40)
    stable = samples(rng, 900, running=20)
    assert look_is_due(ROLLOUT, endless, stable)
    assert answers(endless, stable)["unfinished"] is Answer.NO
    assert answers(samples(rng, 300, running=None), stable)["unfinished"] is Answer.UNKNOWN
    assert answers(samples(rng, 300, running=200), samples(rng, 900, running=600))["unfinished"] is Answer.UNKNOWN


def test_what_only_copies_were_asked_has_no_latency() -> None:
    rng = random.Random(11)
    window = Window(0.0)
    for at in range(400):
        window.add(Request("v2", at / 5, 50, 9.0, 9.0, int(100 * rng.lognormvariate(0, 0.3)), mirror=True))
        window.add(Request("v1", at / 5, 50, 0.2, 0.02, int(100 * rng.lognormvariate(0, 0.3))))
    window.running({})
    told = window.samples()
    assert not told["v2"].ttft and set(answers(told["v2"], told["v1"]).values()) == {Answer.YES}


@pytest.mark.parametrize(
    ("report", "brought", "answer"),
    [
        ({"exact": 5, "asked": 5}, 5, Answer.YES),
        ({"exact": 4, "asked": 5}, 5, Answer.NO),
        ({}, 5, Answer.UNKNOWN),
        ({}, 0, Answer.YES),
        ({"logprob_distance": 0.01}, 3, Answer.YES),
        ({"logprob_distance": 0.2}, 3, Answer.NO),
        ({"logprob_distance": float("nan")}, 3, Answer.NO),
        ({"exact": 3, "asked": 3, "logprob_distance": 0.2}, 3, Answer.NO),
    ],
)
def test_golden_prompts(report: dict[str, float], brought: int, answer: Answer) -> None:
    told = SwapReport(id="s", version="v2", phase="done", **report)  # type: ignore[arg-type]
    assert golden(Gates(), brought, told).answer is answer


def test_all_looks_together_keep_to_what_is_allowed() -> None:
    gates = Gates()
    for steps in (1, 2, 5):
        one_gate = sum(allowed(gates, steps, look) for look in range(10_000))
        assert one_gate * len(GATES) * (steps + 1) <= gates.false_rollback
        assert one_gate * len(GATES) * (steps + 1) > 0.99 * gates.false_rollback


def test_looks_are_few_and_begin_anew_with_a_new_window() -> None:
    looked, rollout = [], ROLLOUT
    for n in range(1, 1000):
        told = Samples(since_s=0.0, ended=n)
        if look_is_due(rollout, told, told):
            looked.append(n)
            fields = {field: getattr(rollout, field) for field in rollout.__struct_fields__}
            rollout = Rollout(**{**fields, "looks": Looks(count=len(looked), window_s=0.0, samples=n)})
    assert looked == [13, 25, 50, 100, 150, 225, 338, 507, 761]
    later = Samples(since_s=60.0, ended=20)
    assert look_is_due(rollout, later, later)


# -- samples ----------------------------------------------------------------------------------------------------------


def test_a_window_takes_what_began_in_it_and_stays_small() -> None:
    window = Window(100.0)
    window.add(Request("v1", 99.9, 50, 0.2, 0.02, 10))
    assert not window.samples()
    for at in range(40_000):
        window.add(Request("v1", 100.0 + at, SIZES[at % 5], 0.2, 0.02, 10, failed=at % 100 == 0))
    told = window.samples()["v1"]
    assert (told.ended, told.failed) == (40_000, 400)
    assert all(len(stratum.logs) == KEPT for stratum in told.ttft.values()) and len(told.ttft) == 5
    assert len(told.counts) <= MAX_BINS and sum(ended for ended, _ in told.counts.values()) == 40_000
    assert max(bin for stratum in told.ttft.values() for bin in stratum.bins) < MAX_BINS
    assert sum(stratum.seen for stratum in told.ttft.values()) == 40_000 - 400
    small = thinned(told, 100)
    assert all(len(stratum.logs) <= 100 for stratum in small.ttft.values()) and small.ended == 40_000


# -- whole rollouts ---------------------------------------------------------------------------------------------------


def test_a_version_like_the_old_one_is_rarely_rolled_back() -> None:
    """`moray bench gates` prints the rates; here few of them, to see that neither way is always taken."""
    spec = RolloutSpec(version="v2")
    assert sum(not roll(SAME, 4, 10.0, spec, seed).promoted for seed in range(12)) <= 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_worse_version_is_found(fault: Fault) -> None:
    spec = RolloutSpec(version="v2")
    outcomes = [roll(fault, 4, 10.0, spec, seed) for seed in range(6)]
    assert not any(outcome.promoted for outcome in outcomes)
    assert all(outcome.bad_share < 0.5 for outcome in outcomes)


def test_results_say_their_figures() -> None:
    rng = random.Random(12)
    gates: dict[str, GateResult] = {
        gate.name: gate for gate in judge(FINAL_LOOK, samples(rng, 150, ttft=2.0), samples(rng, 900))
    }
    assert (
        gates["ttft"].detail.startswith("time to the first token: ") and "allowed is up to 1.25" in gates["ttft"].detail
    )
    assert (gates["ttft"].n_canary, gates["errors"].n_stable) == (150, 900)
    assert started("x", ROLLOUT.spec, "v1", 0.0).gates == ()

"""What the router tells the autoscaling: rates, the least queue, what was attained, and what replicas can do."""

from __future__ import annotations

import random

import pytest

from cluster.autoscaling import Pace
from cluster.batcher import ReplicaView
from cluster.scaling_window import FORGET, ScalingWindow, pace
from cluster.step_fit import StepFit
from ops.simulate.fluid import costs
from ops.simulate.results import Slo
from ops.simulate.scaled_day import pace as true_pace
from replicas.messages import Capacity, LoadReport, ReplicaInfo, Work
from replicas.step_time import MACHINES

CAPACITY = Capacity(kv_tokens=1000, block_tokens=16, max_num_seqs=100, max_num_batched_tokens=1000, max_model_len=500)
BASE_S, PREFILL_S, DECODE_S = 10e-3, 2e-5, 1e-4


def view(replica_id: str = "a", kv: float = 0.5, load_s: float = 0.0, **changes: object) -> ReplicaView:
    info = ReplicaInfo(
        replica_id=replica_id,
        epoch=1,
        host="h",
        port=1,
        token="t",
        model="m",
        engine_pid=1,
        engine_host="process",
        device="cpu",
        capacity=CAPACITY,
        shards=(),
        load_s=load_s,
    )
    load = LoadReport(replica_id=replica_id, epoch=1, running=0, waiting=0, kv_used=kv)
    return ReplicaView(info, load, 0, 0, False)._replace(**changes)


def works(window: ScalingWindow, steps: int = 1000, replica_id: str = "a", slower: float = 1.0) -> None:
    """A replica reports steps of these costs."""
    made, work = random.Random(0), Work()
    for _ in range(steps // 4 + 1):
        prefill, decoding = made.choice([0, 0, 400, 900]), made.randint(1, 60)
        step_s = slower * (BASE_S + PREFILL_S * prefill + DECODE_S * decoding)
        work = Work(
            steps=work.steps + 4,
            step_s=work.step_s + 4 * step_s,
            prefill_tokens=work.prefill_tokens + 4 * prefill,
            decode_tokens=work.decode_tokens + 4 * decoding,
        )
        window.reported(LoadReport(replica_id=replica_id, epoch=1, running=decoding, waiting=0, kv_used=0.5, work=work))


def test_rates_are_of_what_came_since_the_last_observation() -> None:
    window = ScalingWindow(None, 100.0)
    window.arrived(300, 50)
    window.arrived(100, 30)
    seen = window.observe(110.0, [view()], running=7, hears=True).seen
    assert (seen.prompt_tokens_per_s, seen.output_tokens_per_s, seen.running) == (40.0, 8.0, 7)
    seen = window.observe(120.0, [view()], running=0, hears=True).seen
    assert (seen.prompt_tokens_per_s, seen.output_tokens_per_s) == (0.0, 0.0)


@pytest.mark.parametrize(("at", "hears"), [(110.0, False), (100.0, True)])
def test_without_a_gateway_or_an_interval_it_is_not_known_what_comes(at: float, hears: bool) -> None:
    seen = ScalingWindow(None, 100.0).observe(at, [view()], running=0, hears=hears).seen
    assert seen.prompt_tokens_per_s is None and seen.output_tokens_per_s is None


def test_the_queue_is_what_waited_all_the_time() -> None:
    window = ScalingWindow(None, 0.0)
    for queued, tokens in ((5, 900), (3, 1000), (8, 800)):
        window.waits(queued, tokens)
    seen = window.observe(1.0, [], running=0, hears=True).seen
    assert (seen.queued, seen.queued_tokens) == (3, 800)
    window.waits(4, 50)
    seen = window.observe(2.0, [], running=0, hears=True).seen
    assert (seen.queued, seen.queued_tokens) == (4, 50)
    assert window.observe(3.0, [], running=0, hears=True).seen.queued == 0  # nobody said that any waits


def test_attainment_is_of_the_last_minute_and_of_enough_requests() -> None:
    window = ScalingWindow(None, 0.0)

    def attained(now: float) -> float | None:
        return window.observe(now, [], running=0, hears=True).seen.attainment

    window.ended(10, 9, 10.0)
    assert attained(11.0) is None  # nineteen
    window.ended(0, 1, 10.5)
    assert attained(12.0) == 0.5
    window.ended(40, 0, 60.0)
    assert attained(61.0) == pytest.approx(50 / 60)
    assert attained(71.0) == 1.0
    assert attained(121.0) is None


def test_replicas_are_counted_by_what_they_take_and_their_kv_by_its_size() -> None:
    big = view("b", kv=0.1)
    big = big._replace(info=_with_kv(big.info, 3000))
    seen = (
        ScalingWindow(None, 0.0)
        .observe(1.0, [view("a", kv=0.5), big, view("c", kv=1.0, draining=True)], running=0, hears=True)
        .seen
    )
    assert (seen.ready, seen.loading, seen.draining) == (2, 0, 1)
    assert seen.kv_used == pytest.approx(0.2)
    assert ScalingWindow(None, 0.0).observe(1.0, [view(load=None)], running=0, hears=True).seen.kv_used is None


def _with_kv(info: ReplicaInfo, tokens: int) -> ReplicaInfo:
    import msgspec

    return msgspec.structs.replace(info, capacity=msgspec.structs.replace(info.capacity, kv_tokens=tokens))


def test_the_load_time_is_that_of_the_slowest_and_outlives_the_last_replica() -> None:
    window = ScalingWindow(None, 0.0)
    assert window.observe(1.0, [view()], running=0, hears=True).load_s is None
    assert window.observe(2.0, [view(load_s=20.0), view("b", load_s=30.0)], running=0, hears=True).load_s == 30.0
    assert window.observe(3.0, [], running=0, hears=True).load_s == 30.0


def test_a_pace_is_known_after_enough_steps_and_outlives_the_last_replica() -> None:
    window = ScalingWindow(None, 0.0)
    assert window.observe(1.0, [view()], running=0, hears=True).pace is None
    works(window, steps=100)
    assert window.observe(2.0, [view()], running=0, hears=True).pace is None
    works(window, steps=1000)
    known = window.observe(3.0, [view()], running=0, hears=True).pace
    # Without a limit on the time per token each step is as full as it may be.
    assert known is not None
    assert known.prefill_tokens_per_s == pytest.approx(1000 / (BASE_S + 1000 * PREFILL_S), rel=0.05)
    assert known.decode_tokens_per_s == pytest.approx(100 / (BASE_S + 100 * DECODE_S), rel=0.05)
    window.left("a")
    assert window.observe(4.0, [], running=0, hears=True).pace == known


def test_a_time_per_token_bounds_what_a_replica_can_do() -> None:
    window = ScalingWindow(15e-3, 0.0)
    works(window)
    known = window.observe(1.0, [view()], running=0, hears=True).pace
    assert known is not None
    tokens = (0.9 * 15e-3 - BASE_S) / PREFILL_S
    assert known.prefill_tokens_per_s == pytest.approx(tokens / (0.9 * 15e-3), rel=0.05)
    decoding = (0.9 * 15e-3 - BASE_S) / DECODE_S
    assert known.decode_tokens_per_s == pytest.approx(decoding / (0.9 * 15e-3), rel=0.05)


def test_unlike_replicas_count_by_their_mean() -> None:
    window, alone = ScalingWindow(None, 0.0), ScalingWindow(None, 0.0)
    works(window, replica_id="a")
    works(window, replica_id="b", slower=2.0)
    works(alone)
    both = window.observe(1.0, [view("a"), view("b")], running=0, hears=True).pace
    one = alone.observe(1.0, [view("a")], running=0, hears=True).pace
    assert both is not None and one is not None
    assert both.decode_tokens_per_s == pytest.approx(0.75 * one.decode_tokens_per_s, rel=0.05)


def test_what_is_learned_of_the_simulated_machine_is_the_pace_that_the_scaled_day_has() -> None:
    """`moray bench autoscale` gives the decision the machine's true pace; the router has to learn it."""
    machine, slo = MACHINES["h200"], Slo()
    assumed = costs(machine.step, 1)
    fit, work, made = StepFit(FORGET), Work(), random.Random(1)
    for _ in range(2000):
        # Near the limit, as on a day's busy hours; a mean request's context.
        decoding, prefill = made.randint(150, 260), made.choice([0, 200, 400, 800])
        step_s = assumed.fixed_s + assumed.experts_s + assumed.decode_s[0] * decoding + assumed.prefill_s * prefill
        work = Work(
            steps=work.steps + 1,
            step_s=work.step_s + step_s * made.uniform(0.9, 1.1),
            prefill_tokens=work.prefill_tokens + prefill,
            decode_tokens=work.decode_tokens + decoding,
        )
        fit.learn(work)
    learned, true = pace(fit, machine.capacity, slo.tpot_s), true_pace(machine, slo, 1)
    assert learned == Pace(
        pytest.approx(true.prefill_tokens_per_s, rel=0.1), pytest.approx(true.decode_tokens_per_s, rel=0.1)
    )

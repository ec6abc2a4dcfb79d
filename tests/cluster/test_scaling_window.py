"""What the router tells the autoscaling: rates, the least queue, what was attained, and what replicas can do."""

from __future__ import annotations

import random

import msgspec
import pytest
from infos import replica_info

from cluster.autoscaling import Pace
from cluster.batcher import ReplicaView
from cluster.batching import ContinuousBatcher, Policy
from cluster.scaling_window import ScalingWindow
from ops.simulate.cluster import Cluster
from ops.simulate.fluid import CLASSES
from ops.simulate.results import Slo
from ops.simulate.scaled_day import pace as true_pace
from ops.simulate.workloads import Workload, independent
from replicas.messages import Capacity, LoadReport, ReplicaInfo, Work
from replicas.step_time import MACHINES

CAPACITY = Capacity(kv_tokens=1000, block_tokens=16, max_num_seqs=100, max_num_batched_tokens=1000, max_model_len=500)
BASE_S, PREFILL_S, DECODE_S = 10e-3, 2e-5, 1e-4


def view(replica_id: str = "a", kv: float = 0.5, load_s: float = 0.0, **changes: object) -> ReplicaView:
    info = replica_info(
        replica_id, load_s=load_s, kv_tokens=1000, max_num_seqs=100, max_num_batched_tokens=1000, max_model_len=500
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
    return msgspec.structs.replace(info, capacity=msgspec.structs.replace(info.capacity, kv_tokens=tokens))


def test_the_load_time_is_that_of_the_slowest_and_outlives_the_last_replica() -> None:
    window = ScalingWindow(None, 0.0)
    assert window.observe(1.0, [view()], running=0, hears=True).load_s is None
    assert window.observe(2.0, [view(load_s=20.0), view("b", load_s=30.0)], running=0, hears=True).load_s == 30.0
    assert window.observe(3.0, [], running=0, hears=True).load_s == 30.0


def learned(tpot_s: float | None = None, replica_ids: str = "a") -> ScalingWindow:
    """To which these replicas have come."""
    window = ScalingWindow(tpot_s, 0.0)
    for replica_id in replica_ids:
        window.joined(view(replica_id).info)
    return window


def pace_of(window: ScalingWindow, *replica_ids: str) -> Pace:
    known = window.observe(1.0, [view(replica_id) for replica_id in replica_ids], running=0, hears=True).pace
    assert known is not None
    return known


def test_a_pace_is_known_after_enough_steps_and_outlives_the_last_replica() -> None:
    window = learned()
    assert window.observe(1.0, [view()], running=0, hears=True).pace is None
    works(window, steps=100)
    assert window.observe(2.0, [view()], running=0, hears=True).pace is None
    works(window, steps=1000)
    known = pace_of(window, "a")
    # Without a limit on the time per token each step is as full as it may be.
    assert known.prefill_tokens_per_s == pytest.approx(1000 / (BASE_S + 1000 * PREFILL_S), rel=0.05)
    assert known.decode_tokens_per_s == pytest.approx(100 / (BASE_S + 100 * DECODE_S), rel=0.05)
    window.left("a")
    assert pace_of(window) == known


def test_a_time_per_token_bounds_what_a_replica_can_do() -> None:
    window = learned(tpot_s=15e-3)
    works(window)
    known, limit_s = pace_of(window, "a"), 0.9 * 15e-3
    assert known.prefill_tokens_per_s == pytest.approx((limit_s - BASE_S) / PREFILL_S / limit_s, rel=0.05)
    assert known.decode_tokens_per_s == pytest.approx((limit_s - BASE_S) / DECODE_S / limit_s, rel=0.05)


def test_a_replica_that_cannot_keep_the_time_per_token_still_has_a_pace() -> None:
    window = learned(tpot_s=1e-3)
    works(window)
    known = pace_of(window, "a")
    assert 0.0 < known.decode_tokens_per_s < 1.1 / BASE_S


def test_unlike_replicas_count_by_the_mean_of_their_steps() -> None:
    window, alone = learned(replica_ids="ab"), learned()
    works(window, replica_id="a")
    works(window, replica_id="b", slower=2.0)
    works(alone)
    mean, one = pace_of(window, "a", "b"), pace_of(alone, "a")
    assert mean.decode_tokens_per_s == pytest.approx(one.decode_tokens_per_s / 1.5, rel=0.05)


@pytest.mark.parametrize("requests_per_s", [2.0, 5.0, 18.0])
def test_a_replica_with_little_to_do_shows_what_it_could(requests_per_s: float) -> None:
    """By the tangent of its small batches two requests a second would look five times the load that they are.

    `moray bench autoscale` gives the decision the machine's true pace; the router has to learn it of the same machine.
    """
    machine, slo, seconds = MACHINES["h200"], Slo(), 60.0
    window = ScalingWindow(slo.tpot_s, 0.0)
    window.joined(msgspec.structs.replace(view().info, capacity=machine.capacity, expert_share=8 / 128))
    batcher = ContinuousBatcher(Policy(tpot_s=slo.tpot_s))
    report = batcher.report

    def overheard(load: LoadReport) -> bool:
        window.reported(load)
        return report(load)

    batcher.report = overheard  # type: ignore[method-assign]
    arrivals = independent(random.Random(3), requests_per_s, seconds, 1.0, *CLASSES[0])
    Cluster(batcher, machine, [1.0], slo).run(Workload("conv", tuple(arrivals), seconds))
    prompts, outputs = sum(a.prompt_tokens for a in arrivals), sum(a.output_tokens for a in arrivals)

    def load_in_replicas(pace: Pace) -> float:
        return (prompts / pace.prefill_tokens_per_s + outputs / pace.decode_tokens_per_s) / seconds

    assert load_in_replicas(pace_of(window, "a")) == pytest.approx(
        load_in_replicas(true_pace(machine, slo, 1)), abs=0.05
    )

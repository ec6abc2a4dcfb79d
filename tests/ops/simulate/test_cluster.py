"""A simulated cluster: every policy, conservation, repeatability, and what a request's way adds up to."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from cluster.batcher import Decision
from cluster.batching import Policy
from cluster.peers import RoundRobin
from cluster.policies import POLICIES, batcher
from ops.simulate.cluster import NETWORK_S, Cluster
from ops.simulate.results import Slo, attainment
from ops.simulate.workloads import SYNTHETIC, Arrival, Workload
from replicas.messages import Denial, LoadReport, Released
from replicas.step_time import H200

SLO = Slo()


def run(policy: str, load: Workload, replicas: int = 2, seed: int = 0):
    cluster = Cluster(batcher(policy, Policy(tpot_s=SLO.tpot_s), seed), H200, [1.0] * replicas, SLO)
    return cluster, cluster.run(load)


def one(*arrivals: Arrival) -> Workload:
    return Workload("test", arrivals, 10.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once_and_the_same_run_comes_out_twice(policy):
    load = SYNTHETIC["chat"](30.0, 6.0, 1)
    (_, records), (_, again) = (run(policy, load) for _ in range(2))
    assert records == again and len(records) == len(load.arrivals)
    for record in records:
        if record.shed:
            assert record.first_s is None
        else:
            assert record.arrival.at_s < record.first_s <= record.last_s
            assert record.cached_tokens < record.arrival.prompt_tokens
    assert not any(record.shed for record in records) or policy == "continuous"


def test_a_request_alone_takes_its_hops_and_its_steps():
    _, (record,) = run("round_robin", one(Arrival(1.0, 100, 11)), replicas=1)
    prefill_s = H200.step.step_s(100, 100 * 101 / 2, 0, 0)
    # Ticket, grant, request, token: four hops.
    assert record.ttft_s == pytest.approx(4 * NETWORK_S + prefill_s)
    assert record.tpot_s == pytest.approx(H200.step.step_s(0, 0.0, 1, 105), rel=1e-3)
    assert record.meets(SLO) and not record.meets(Slo(ttft_s=0.001)) and not record.meets(Slo(tpot_s=0.001))


@pytest.mark.parametrize(("count", "prompt"), [(512, 512), (1024, 256)])
def test_a_burst_whose_pace_is_not_promised_takes_what_the_engine_alone_takes(count, prompt):
    """Bound one step at a time, each step of 16,384 prompt tokens would be followed by one without: 3% in all."""
    limits = msgspec.structs.replace(H200.capacity, max_num_seqs=512, max_num_batched_tokens=16_384)
    burst = one(*[Arrival(0.0, prompt, 128)] * count)
    took = {}
    for policy in ("round_robin", "continuous"):
        machine = dataclasses.replace(H200, capacity=limits)
        cluster = Cluster(batcher(policy, Policy(), 0), machine, [1.0], Slo(ttft_s=60.0))
        took[policy] = max(record.last_s for record in cluster.run(burst))
    assert took["continuous"] == pytest.approx(took["round_robin"], rel=0.005)


def test_the_batcher_is_told_what_the_router_would_be_told():
    told: list[tuple[str, object]] = []

    class Listening(RoundRobin):
        def started(self, request_id: str, now: float) -> None:
            told.append(("started", now))

        def release(self, released: Released) -> None:
            told.append(("released", released))
            super().release(released)

        def report(self, load: LoadReport) -> bool:
            told.append(("report", load))
            return super().report(load)

    cluster = Cluster(Listening(), H200, [1.0], SLO)
    (record,) = cluster.run(one(Arrival(0.0, 100, 60)))
    kinds = [kind for kind, _ in told]
    assert kinds.count("started") == kinds.count("released") == 1 and kinds.index("started") < kinds.index("released")
    assert dict(told)["started"] == pytest.approx(record.first_s + NETWORK_S)
    assert dict(told)["released"] == Released(request_id="r0", output_tokens=60, whole=True)
    reports = [report for kind, report in told if kind == "report"]
    assert 2 <= len(reports) <= 7 and reports[1].running == 1
    steps = [report.work.steps for report in reports]
    assert steps == sorted(steps) and reports[-1].work.prefill_tokens == 100


def test_what_is_shed_or_never_ends_is_a_miss():
    class Shedding(RoundRobin):
        def decide(self, now: float) -> Decision:
            decision = super().decide(now)
            self.mine = getattr(self, "mine", 0) + len(decision.grants)
            if decision.grants and self.mine == 1:
                ((owner, grant),) = decision.grants
                self.release(Released(request_id=grant.request_id))
                return Decision([], [(owner, Denial(request_id=grant.request_id, ending="TOO_LATE"))])
            return decision

    arrivals = [Arrival(0.0, 10, 10), Arrival(1.0, 10, 10), Arrival(2.0, 10, 30_000)]
    cluster = Cluster(Shedding(), H200, [1.0], SLO)
    records = cluster.run(one(*arrivals))
    assert [record.shed for record in records] == [True, False, False]
    assert records[2].first_s is not None and records[2].last_s is None
    assert attainment(records, SLO) == pytest.approx(1 / 3)


def test_a_slow_replica_is_slow():
    load = one(*[Arrival(0.5 * i, 200, 50) for i in range(10)])
    cluster = Cluster(batcher("round_robin", Policy()), H200, [0.5, 1.0], SLO)
    records = cluster.run(load)
    slow, fast = ([r.tpot_s for r in records if r.replica == which] for which in (0, 1))
    assert len(slow) == len(fast) == 5 and min(slow) > 1.9 * max(fast)

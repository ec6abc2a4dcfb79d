"""The upper bound: above what every policy attains, and as near as simple cases allow."""

from __future__ import annotations

import pytest

from cluster.batching import Policy
from cluster.policies import POLICIES, batcher
from ops.simulate.cluster import Cluster
from ops.simulate.results import Slo, attainment
from ops.simulate.upper_bound import attainment_bound
from ops.simulate.workloads import SYNTHETIC, Arrival, Workload, warmed_up
from replicas.step_time import H200

SLO = Slo()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SYNTHETIC)
def test_no_policy_attains_more(policy, name):
    load = warmed_up(SYNTHETIC[name]({"code": 30.0}.get(name, 70.0), 12.0, 1), 4.0)
    cluster = Cluster(batcher(policy, Policy(tpot_s=SLO.tpot_s)), H200, [1.0, 0.5], SLO)
    records = [r for r in cluster.run(load) if r.arrival.at_s >= load.warm_up_s]
    assert attainment(records, SLO) <= attainment_bound(load, H200, [1.0, 0.5], SLO) + 1e-9


def test_little_load_is_no_limit_and_more_never_helps():
    bounds = [attainment_bound(SYNTHETIC["conv"](rate, 30.0, 0), H200, [1.0, 1.0], SLO) for rate in (5, 60, 120, 240)]
    assert bounds[0] == 1.0 and bounds == sorted(bounds, reverse=True) and bounds[-1] < 0.6


def test_a_burst_of_prompts_is_bound_by_the_time_to_their_first_tokens():
    burst = Workload("burst", tuple(Arrival(5.0 + i * 1e-4, 2000, 1) for i in range(400)), 1000.0)
    bound = attainment_bound(burst, H200, [1.0], SLO)  # in the long run there is time for all of them
    fit = 1.0 / (
        2000 * (H200.step.prefill_token_s + H200.step.step_s(2048, 0, 0, 0) / 2048 - H200.step.prefill_token_s)
    )
    assert 0.5 * fit / 400 < bound < 1.1 * fit / 400


def test_what_was_computed_before_costs_nothing():
    chain = tuple(range(1000))
    shared = tuple(Arrival(i * 0.01, 8000, 1, "", chain) for i in range(200))
    apart = tuple(a._replace(chain=()) for a in shared)
    bounds = [attainment_bound(Workload("w", arrivals, 2.0), H200, [1.0], SLO) for arrivals in (shared, apart)]
    assert bounds[0] == 1.0 and bounds[1] < 0.2

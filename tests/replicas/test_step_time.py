"""The step-time model against the measurements that it was fitted to (shared/facts.md, "GPU baseline")."""

from __future__ import annotations

import itertools
import math

import pytest

from replicas.simulated_engine import SimulatedEngine, SimulatedRequest
from replicas.step_time import A100, H200, capacity, pairs

CONTEXT = 208  # tokens a sequence held, on average, while decoding was measured


@pytest.mark.parametrize(
    ("batch", "measured_ms"), [(1, 4.0), (8, 8.6), (32, 14.9), (64, 17.5), (256, 21.0), (512, 25.5)]
)
def test_decode_steps_are_within_3_percent(batch, measured_ms):
    assert 1e3 * H200.step.step_s(0, 0.0, batch, CONTEXT * batch) == pytest.approx(measured_ms, rel=0.03)


def test_a_long_stream_and_a_step_of_prefill_are_within_4_percent():
    assert 1e3 * H200.step.step_s(0, 0.0, 1, 32_064) == pytest.approx(4.9, rel=0.04)
    assert 1e3 * H200.step.step_s(8192, 16 * pairs(0, 512), 0, 0) == pytest.approx(134, rel=0.03)


@pytest.mark.parametrize(
    ("requests", "prompt", "output", "measured"),
    [(512, 512, 128, 67.8), (1024, 256, 128, 99.7), (512, 1024, 256, 30.9)],
)
def test_whole_runs_of_the_engine_are_within_3_percent(requests, prompt, output, measured):
    engine = SimulatedEngine(H200.step, capacity(141e9, 512, 16_384, utilization=0.92))  # as it was measured
    for number in range(requests):
        engine.add(SimulatedRequest(str(number), prompt, output), 0.0)
    now = 0.0
    engine.begin(now)
    while engine.due < math.inf:
        now = engine.end().at_s
        engine.begin(now)
    assert requests / now == pytest.approx(measured, rel=0.03)


def test_decoding_is_concave_in_the_batch():
    steps = [H200.step.step_s(0, 0.0, batch, CONTEXT * batch) for batch in range(1, 257)]
    growth = [later - before for before, later in itertools.pairwise(steps)]
    assert all(g > 0 for g in growth) and all(b <= a for a, b in itertools.pairwise(growth))


def test_pairs_add_up_over_chunks():
    assert pairs(0, 10) == 55 and pairs(0, 6) + pairs(6, 4) == pairs(0, 10)


def test_the_a100_is_predicted_by_the_data_sheets_ratios():
    assert (H200.basis, A100.basis) == ("fitted", "predicted")
    assert A100.step.experts_s / H200.step.experts_s == pytest.approx(4.8 / 2.039)
    assert A100.step.prefill_token_s / H200.step.prefill_token_s == pytest.approx(989 / 312)
    assert 4 < H200.capacity.kv_tokens / A100.capacity.kv_tokens < 7  # 67 GB of KV against 12

"""The simulated machines: what they were fitted to, and what the A100's are predicted from."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from experts.step_model import shipped
from ops.calibrate.prediction import predictions
from ops.calibrate.rows import read
from replicas.step_time import A100, H200, H200_STEPS, MACHINES

RESULTS = Path(__file__).parents[2] / "ops" / "bench" / "results"
CONTEXT = 208  # tokens a sequence held, on average, while decoding was measured


@pytest.fixture(scope="module")
def baseline():
    return read(RESULTS / "gpu_baseline.json")


def test_the_machine_of_the_simulations_has_the_measured_steps_within_4_percent(baseline):
    for row in baseline.measured:
        assert H200.step.step_s(*row.steps[0]) == pytest.approx(row.seconds, rel=0.04), row.name


def test_whole_runs_come_out_on_it_within_3_percent(baseline, spec_32b):
    for found in predictions(baseline, H200.step, 0.0, spec_32b):
        assert abs(found.errors["throughput"]) < 0.03, found.held_out


def test_single_steps_alone_make_nearly_the_same_machine():
    """So that figures simulated on one hold on the other."""
    for batch, context in itertools.product((1, 8, 32, 64, 128, 256, 512), (200, 1000)):
        for prompts in (0, 16):  # one alone makes a step without a graph, which only the steps know of
            step = (prompts * 512, prompts * 131_328.0, batch, batch * context)
            taken = [machine.step.step_s(*step) for machine in (H200, H200_STEPS)]
            assert taken[0] == pytest.approx(taken[1], rel=0.15), step


@pytest.fixture(scope="module")
def spec_32b():
    from experts.model_spec import tier

    return tier("32b")


def test_decoding_is_concave_in_the_batch():
    steps = [H200.step.step_s(0, 0.0, batch, CONTEXT * batch) for batch in range(1, 257)]
    growth = [later - before for before, later in itertools.pairwise(steps)]
    assert all(g > 0 for g in growth) and all(b <= a for a, b in itertools.pairwise(growth))


def test_each_machine_that_was_fitted_is_a_file_that_says_to_what():
    for name in (name for name, machine in MACHINES.items() if machine.basis == "fitted"):
        assert shipped(name).step == MACHINES[name].step and "gpu_baseline.json" in shipped(name).basis


def test_the_a100_is_predicted_by_the_data_sheets_ratios():
    assert (H200.basis, A100.basis) == ("fitted", "predicted")
    assert A100.step.experts_s / H200.step.experts_s == pytest.approx(4.8 / 2.039)
    assert A100.step.prefill_token_s / H200.step.prefill_token_s == pytest.approx(989 / 312)
    assert 4 < H200.capacity.kv_tokens / A100.capacity.kv_tokens < 7  # 67 GB of KV against 12

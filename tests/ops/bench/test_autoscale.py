"""Ray Serve's rule on virtual time against Serve's own wrapper, the fluid against its sums, the comparison's choice."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from typer.testing import CliRunner

from ops.bench import autoscale
from ops.bench.cli import app
from ops.bench.serve_policy import ServeDefault, Settings
from ops.simulate.fluid import CONV_SWINGS, Fluid, Shape, constant, day
from ops.simulate.results import Slo
from ops.simulate.scaled_day import Outcome, pace, run
from replicas.step_time import H200


@pytest.mark.parametrize("settings", [Settings(20.0), Settings(50.0, 0.0, 60.0, 0.3), Settings(9.0, 30.0, 120.0, 2.0)])
def test_serves_policy_is_what_serves_controller_calls(settings, monkeypatch):
    from ray.serve import autoscaling_policy as serve
    from ray.serve.config import AutoscalingContext

    rng = random.Random(1)
    ours = ServeDefault(settings, 1, 30)
    controllers = serve._apply_autoscaling_config(serve._core_replica_queue_length_policy)
    state: dict[str, object] = {}
    target, history, seen = 2, [], set()
    for now in range(10, 6000, 10):
        ongoing = rng.choice((30.0, 100.0, 300.0)) if now % 600 == 10 else 100.0 + 90.0 * np.sin(now / 700)
        history = [*history[-2:], ongoing]
        monkeypatch.setattr(serve.time, "time", lambda now=now: float(now))
        context = AutoscalingContext(
            None, "", None, target, target, [], sum(history) / len(history), None, None, None, 1, 30, state, None,
            None, float(now), ours._config,
        )  # fmt: skip
        wanted, state = controllers(context)
        target_ours = ours.target(float(now), target, target, ongoing)
        assert target_ours == min(max(int(np.ceil(wanted)), 1), 30)
        target = target_ours
        seen.add(target)
    assert len(seen) > 3


def test_a_day_is_repeatable_and_has_its_shape():
    shape = Shape(50.0, 0.2, 14.0, 1.0, CONV_SWINGS)
    first, again, other = (day([shape], seed) for seed in (1, 1, 2))
    assert np.array_equal(first.requests, again.requests) and not np.array_equal(first.requests, other.requests)
    hourly = first.requests[:, 0].reshape(24, 3600).mean(1)
    assert hourly[12:17].mean() == pytest.approx(50.0, rel=0.25) and hourly[[0, 1, 2, 3, 4]].mean() < 20.0
    prompts = first.prompt_tokens.sum() / first.requests.sum()
    assert prompts == pytest.approx(1155, rel=0.05)


def test_the_fluid_keeps_the_running_that_little_says_and_sheds_what_is_too_much():
    fluid = Fluid(2, H200, Slo(), 1)
    fluid.advance(constant([40.0], 0, 300), 0, 300, np.array([2.0, 1.0]))
    light, heavy = fluid.good / fluid.arrived
    assert light > 0.99 and 0.4 < heavy < 0.8  # 20 a replica are carried, 40 are not
    load = constant([40.0], 0, 600)
    running = [float(fluid.advance(load, i, 10, np.array([2.0, 1.0])).running[0]) / 2 for i in range(0, 600, 10)]
    assert sum(running) / len(running) == pytest.approx(120, rel=0.15)  # ops.simulate: 20 req/s keep about 120 running


def test_replicas_are_paid_from_their_launch_and_serve_after_their_loading():
    load = constant([40.0], 0, 1200)
    always, late = run(load, [lambda look: 4, lambda look: 4 if look.now_s >= 600 else 1], H200, Slo(), 1, 150.0)
    assert always.replica_hours == pytest.approx(4 / 3, rel=0.02)
    assert late.replica_hours == pytest.approx((4 * 600 + 600) / 3600, rel=0.03)
    assert late.attainment < always.attainment < 1.0  # both begin with one


def test_one_replica_at_its_pace_is_full_but_holds():
    rates = pace(H200, Slo(), 1)
    load = constant([20.0], 0, 600)
    share = (
        load.prompt_tokens.mean() / rates.prefill_tokens_per_s + load.output_tokens.mean() / rates.decode_tokens_per_s
    )
    full = constant([20.0 / share], 0, 600)
    over = constant([1.3 * 20.0 / share], 0, 600)
    kept, lost = (run(x, [lambda look: 1], H200, Slo(), 1, 150.0)[0].attainment for x in (full, over))
    assert kept > 0.93 and lost < 0.87


def test_the_cheapest_that_serves_as_well_is_compared_with():
    def outcome(hours: float, share: float) -> list[Outcome]:
        return [Outcome(hours, share, 1, 1, share)]

    candidates = {
        Settings(10.0): outcome(20.0, 0.999),
        Settings(20.0): outcome(12.0, 0.991),
        Settings(30.0): outcome(9.0, 0.98),
    }
    figures = autoscale._against(candidates, 0.99, [9.0], "ratio", "peer")
    assert figures["ratio"] == 0.75 and figures["setting_peer"]["target_ongoing_requests"] == 20.0
    assert autoscale._against(candidates, 0.9999, [9.0], "ratio", "peer") == {"ratio": None, "slo_peer": None}


def test_the_command_prints_its_figures(monkeypatch):
    monkeypatch.setattr(autoscale, "TARGETS", (60.0, 120.0))
    monkeypatch.setattr(autoscale, "TUNINGS", ((0.0, 600.0, 0.3),))
    monkeypatch.setattr(autoscale, "CALIBRATED", ())
    whole = autoscale.day
    monkeypatch.setattr(autoscale, "day", lambda shapes, seed: whole(shapes, seed, 3600))
    done = CliRunner().invoke(app, ["autoscale", "--days", "conv", "--seeds", "2", "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.output.splitlines()[-1])
    assert {"replica_hours_ratio", "slo_ours", "slo_baseline", "ratio_tuned"} <= figures.keys()
    assert 0.0 < figures["slo_ours"] <= 1.0


def test_a_day_that_does_not_exist_is_told():
    done = CliRunner().invoke(app, ["autoscale", "--days", "night"])
    assert "night" in str(done.exception) and "conv, mixed" in str(done.exception)

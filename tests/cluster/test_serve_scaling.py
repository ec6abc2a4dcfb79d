"""The Serve policy: what it asks, when, and what Serve is told; missing answers change nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.app import replica_numbers
from cluster.autoscaling import Observation, Pace, Scaling, State
from cluster.config import Machine, load
from cluster.scaling_window import Decided, Report
from cluster.serve_scaling import RouterScaling, Shortage, as_serve_counts, decide_with

PACE = Pace(prefill_tokens_per_s=1000.0, decode_tokens_per_s=1000.0)
SCALING = {
    "max_replicas": 4,
    "load_s": 0.1,
    "fast_s": 1.0,
    "slow_s": 2.0,
    "burst": 0.0,
    "scale_in_after_s": 20.0,
    "scale_in_cool_down_s": 0.0,
    "scale_out_cool_down_s": 0.0,
    "idle_to_zero_s": 20.0,
}


def seen(ready: int = 1, load: float = 0.0, **changes: Any) -> Observation:
    """`load` in replicas."""
    values: dict[str, Any] = {
        "now_s": -1.0,  # the router's clock, which does not count
        "ready": ready,
        "loading": 0,
        "draining": 0,
        "running": 1 if load else 0,
        "queued": 0,
        "queued_tokens": 0,
        "prompt_tokens_per_s": load * PACE.prefill_tokens_per_s,
        "output_tokens_per_s": 0.0,
        "kv_used": 0.0,
        "attainment": None,
    }
    return Observation(**{**values, **changes})


class FakeRouter:
    """Answers at the tick after the question, as a call through Ray does."""

    def __init__(self) -> None:
        self.observation: Observation | None = seen()
        self.pace: Pace | None = PACE
        self.load_s: float | None = None
        self.extra = 0
        self.asked = 0
        self.open = False
        self.told: list[Decided] = []

    def ask(self) -> Report | None:
        if not self.open:
            self.asked, self.open = self.asked + 1, True
            return None
        if self.observation is None:
            return None
        self.open = False
        return Report(self.observation, self.pace, self.load_s, self.extra)

    def tell(self, decided: Decided) -> None:
        self.told.append(decided)


class Serve:
    """Serve's control loop with the policy in it: a tick every half second."""

    def __init__(self, interval_s: float = 5.0, target: int = 1, start_timeout_s: float = 60.0, **scaling: Any) -> None:
        self.now = 1000.0
        self.router = FakeRouter()
        values = {key: value for key, value in ({"min_replicas": 1} | SCALING | scaling).items() if value is not None}
        self.policy = RouterScaling("m", values, interval_s, start_timeout_s, self.router, lambda: self.now)
        self.target = target

    def tick(self, seconds: float, load: float = 0.0, follows: bool = True, **changes: Any) -> int:
        """So long at this load; `follows`: what Serve wants is ready at once."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            if self.router.observation is not None:
                ready = self.target if follows else self.router.observation.ready
                self.router.observation = seen(ready, load, **changes)
            self.target, kept = self.policy(SimpleNamespace(target_num_replicas=self.target))
            assert kept == {}
        return self.target


def test_load_brings_replicas_and_its_end_takes_them_away() -> None:
    serve = Serve()
    assert serve.tick(20, load=0.3) == 1
    assert serve.tick(30, load=1.4) == 2
    assert serve.tick(30, load=1.4) == 2
    assert serve.tick(60, load=0.3) == 1
    assert "Scale in from 2 to 1" in " ".join(decided.reason for decided in serve.router.told)


def test_it_asks_once_an_interval_and_looks_for_the_answer_at_the_next_tick() -> None:
    serve = Serve(interval_s=5.0)
    serve.tick(50.0)
    assert 8 <= serve.router.asked <= 11
    assert serve.router.asked - len(serve.router.told) in (0, 1)


def test_without_an_answer_nothing_changes_and_no_second_question_is_asked() -> None:
    serve = Serve(target=3)
    serve.router.observation = None
    assert serve.tick(100) == 3
    assert serve.router.asked == 1 and serve.router.told == []


def test_before_a_pace_is_learned_nothing_changes_but_for_the_first_replica() -> None:
    serve = Serve(target=2, min_replicas=0)
    serve.router.pace = None
    assert serve.tick(30, load=3.0) == 2
    assert "not learned" in serve.router.told[-1].reason
    serve = Serve(target=0, min_replicas=0)
    serve.router.pace = None
    assert serve.tick(30) == 0
    assert serve.tick(4, load=0.1, follows=False, queued=1) == 1


def test_a_pace_that_was_known_outlives_the_router() -> None:
    serve = Serve()
    serve.tick(20, load=0.3)
    serve.router.pace = None  # it has begun anew
    assert serve.tick(40, load=1.4) == 2


def test_to_zero_and_back_within_seconds_of_the_first_request() -> None:
    serve = Serve(interval_s=10.0, min_replicas=0)
    assert serve.tick(20, load=0.3) == 1
    assert serve.tick(60) == 0
    assert serve.tick(60) == 0
    assert serve.tick(3, load=0.01, follows=False, queued=1) == 1


def test_an_exception_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    serve = Serve(target=2)
    serve.router.observation = "no observation"  # type: ignore[assignment]
    target, _ = serve.policy(SimpleNamespace(target_num_replicas=2))  # type: ignore[arg-type]
    target, _ = serve.policy(SimpleNamespace(target_num_replicas=2))  # type: ignore[arg-type]
    assert target == 2 and "autoscaling failed" in caplog.text


def test_the_measured_load_time_counts_unless_one_was_set() -> None:
    def foreseen(**scaling: Any) -> str:
        serve = Serve(slow_s=60.0, max_replicas=10, **scaling)
        serve.router.load_s = 77.0
        serve.tick(5, load=0.1)
        serve.tick(20, load=3.0)
        return " ".join(decided.reason for decided in serve.router.told)

    assert "by their trend in 77 s" in foreseen(load_s=None)
    assert "by their trend in 33 s" in foreseen(load_s=33.0)


@pytest.mark.parametrize(
    ("ready", "draining", "target", "counted"),
    [
        (2, 0, 2, (2, 0, 0)),
        (1, 0, 2, (1, 1, 0)),  # one is loading
        (2, 0, 1, (1, 0, 1)),  # Serve is stopping one that the router still sees
        (1, 1, 2, (1, 0, 1)),  # an operator drains one
        (1, 1, 3, (1, 1, 1)),
        (0, 0, 0, (0, 0, 0)),
        (0, 2, 1, (0, 0, 3)),
    ],
)
def test_replicas_are_counted_as_serve_counts_them(
    ready: int, draining: int, target: int, counted: tuple[int, int, int]
) -> None:
    made = as_serve_counts(seen(ready, draining=draining), target)
    assert (made.ready, made.loading, made.draining) == counted


def test_a_replica_that_an_operator_drains_is_one_more_for_serve() -> None:
    serve = Serve(target=2)
    assert serve.tick(30, load=0.3, follows=False, draining=1) == 2  # one takes requests, one drains
    serve.router.observation = seen(1, draining=1)
    assert serve.tick(30, load=1.4, follows=False, draining=1) == 3


def test_what_a_rollout_wants_on_top_changes_nothing_of_what_the_load_asks_for() -> None:
    serve = Serve()
    assert serve.tick(60, load=0.3) == 1
    serve.router.extra = 1
    assert serve.tick(20, load=0.3) == 2
    assert serve.tick(300, load=0.3) == 2, "the one on top is no excess"
    serve.policy = Serve().policy  # Serve's controller was started anew
    serve.policy._router, serve.policy._clock = serve.router, lambda: serve.now
    assert serve.tick(300, load=0.3) == 2, "and is not added twice"
    assert serve.tick(30, load=1.4) == 3, "the load still counts"
    serve.router.extra = 0
    assert serve.tick(300, load=0.3) == 1


def test_what_does_not_come_in_time_is_not_there_and_holds_up_nothing() -> None:
    shortage = Shortage(60.0)
    assert shortage.see(seen(1, loading=1, now_s=0.0)).loading == 1
    assert shortage.see(seen(1, loading=1, now_s=60.0)).loading == 1
    assert shortage.see(seen(1, loading=1, now_s=61.0)).loading == 0
    assert shortage.see(seen(2, loading=1, now_s=62.0)).loading == 1  # another came: the wait begins anew
    serve = Serve(start_timeout_s=60.0)
    serve.tick(10, load=0.3)
    assert serve.tick(30, load=1.4, follows=False) == 2  # which the cluster has no room for
    assert serve.tick(200, load=0.3, follows=False) == 1


def test_deciding_without_a_pace_is_not_deciding_to_scale_in() -> None:
    decision = decide_with(None, seen(3), State(), Scaling(max_replicas=4))
    assert decision.target == 3 and "not learned" in decision.reason


def test_serve_can_carry_the_policy_to_its_controller(tmp_path: Any) -> None:
    """Ray pickles the module by value; it is loaded in a process that has not imported it, from JSON's values."""
    from ray.serve.config import AutoscalingConfig

    settings = load(None, {}, {"autoscaling.max_replicas": 3, "replicas.count": 2}, Machine(8, 0)).settings
    numbers = replica_numbers(settings)["autoscaling_config"]
    config = AutoscalingConfig(**numbers)
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (1, 2, 4), "with room for a rollout"
    (tmp_path / "policy").write_bytes(config.policy.get_serialized_policy_def() or b"")
    (tmp_path / "arguments").write_text(json.dumps(config.policy.policy_kwargs))
    code = (
        "import json, pathlib, pickle, sys, types; at = pathlib.Path(sys.argv[1]); "
        "policy = pickle.loads((at / 'policy').read_bytes())(**json.loads((at / 'arguments').read_text())); "
        "assert 'cluster.serve_scaling' not in sys.modules; "
        "print(policy(types.SimpleNamespace(target_num_replicas=2)))"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    # No Ray is running there: the router does not answer, nothing changes.
    assert said.stdout.strip() == "(2, {})", said.stderr


def test_serves_numbers_follow_from_the_settings() -> None:
    def made(**changes: Any) -> dict[str, Any]:
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        return replica_numbers(load(None, {}, overrides, Machine(8, 0)).settings)

    assert made(replicas__count=3) == {"num_replicas": 3}
    numbers = made(autoscaling__max_replicas=4, autoscaling__min_replicas=2)["autoscaling_config"]
    assert (numbers["min_replicas"], numbers["initial_replicas"], numbers["max_replicas"]) == (2, None, 5)
    assert numbers["policy"]["policy_kwargs"]["scaling"]["min_replicas"] == 2
    assert "load_s" not in numbers["policy"]["policy_kwargs"]["scaling"]
    numbers = made(autoscaling__max_replicas=1, autoscaling__min_replicas=0, autoscaling__load_s=40)
    assert numbers["autoscaling_config"]["initial_replicas"] == 1  # the first start shows whether the model loads
    assert numbers["autoscaling_config"]["policy"]["policy_kwargs"]["scaling"]["load_s"] == 40
    scaling = numbers["autoscaling_config"]["policy"]["policy_kwargs"]["scaling"]
    assert Scaling(**scaling) == dataclasses.replace(Scaling(), min_replicas=0, max_replicas=1, load_s=40.0)

"""The search on a real engine with the embedded model: limits that change live, trials, going on after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.app import engine_spec
from cluster.config import load
from ops.tune import space
from ops.tune.attainment import Slo
from ops.tune.engine import Burst, EngineBroke, Limits, Trial, TunedEngine, Work
from ops.tune.search import Option
from ops.tune.state import State
from ops.tune.tuning import Goal, search

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(280)]

WORK = Work(prompt=24, output=8, vocabulary=200)
ONE_SHARD = {"experts.expert_parallel": 1, "engine.own_cpu": False}
LOAD_S = 120.0


@pytest.fixture(scope="module")
def spec():
    return engine_spec(load(None, {}, ONE_SHARD).settings)


def trial(rate, ttft_s=20.0, tpot_s=5.0, limits=(1024, 64, 0), seconds=1.0):
    return Trial(WORK, Limits(*limits), rate, ttft_s, tpot_s, warm_s=0.2, seconds=seconds)


def busy(limits):
    return trial(1500.0, ttft_s=0.5, tpot_s=0.2, limits=limits, seconds=0.5)


def engines_of(parent):
    """Measuring processes that live and were started by this process."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
            if b"ops.tune.engine" in words and str(parent).encode() in words:
                found.append(command.parent.name)
        except OSError:
            continue
    return found


def test_an_engine_is_asked_and_its_limits_change_live(spec):
    with TunedEngine(spec, LOAD_S) as engine:
        assert (engine.loaded.batched_tokens, engine.loaded.seqs) == (1024, 64)
        assert engine.pace(Burst(WORK, 16, 1.0), 60) > 0

        easy = engine.measure(trial(10.0), 60)
        assert easy.attained >= 0.9 and easy.counted > 0
        # All that runs at a time is what a limit lets run: there is more to do than can be done. A request is 24 tokens
        # in a step or more, then 7 steps of one.
        small = engine.measure(busy((16, 64, 0)), 60)
        assert 8 < small.tokens_per_step <= 16
        one = engine.measure(busy((1024, 1, 0)), 60)
        assert one.tokens_per_step == pytest.approx((24 + 7) / (1 + 7), rel=0.05)
        whole = engine.measure(busy((1024, 4, 0)), 60)
        assert whole.tokens_per_step == pytest.approx(4 * (24 + 7) / (1 + 7), rel=0.15)
        chunked = engine.measure(busy((1024, 4, 4)), 60)
        assert chunked.tokens_per_step == pytest.approx(4 * (24 + 7) / (6 + 7), rel=0.15)

        # Sure at once, long before its 60 seconds of arrivals are over.
        hopeless = engine.measure(trial(50.0, ttft_s=1e-6, seconds=60.0), 90)
        assert hopeless.attained < 0.9
        assert hopeless.took_s < 30

        with pytest.raises(EngineBroke, match="more than the engine was loaded with"):
            engine.measure(trial(1.0, limits=(4096, 64, 0)), 60)
        assert engine._child._process.wait(timeout=20) != 0
    assert not engines_of(os.getpid())


def test_an_engine_that_cannot_load_says_why(spec):
    from msgspec.structs import replace

    broken = replace(spec, engine_args=spec.engine_args | {"max_model_len": 10**9})
    with pytest.raises(EngineBroke, match="max_model_len"), TunedEngine(broken, LOAD_S):
        pass
    assert not engines_of(os.getpid())


def test_a_search_ends_and_what_it_found_is_loaded_once_more(spec, tmp_path):
    options = (
        Option(space.TOKENS, (8, 1024)),  # a prompt takes three steps
        Option(space.SEQS, (8, 16)),
        Option(space.CHUNK, (0,)),
        Option("block_size", (None, 3), live=1),  # which no kernel has
    )
    state = State(tmp_path / "search.jsonl", {})
    state.begin(options, 20.0)
    said = []
    goal = Goal(WORK, Slo(0.15, 0.05), trial_s=1.0, warm_s=0.3)
    outcome = search(spec, goal, state, 200.0, said.append)
    assert outcome.finished
    assert outcome.trials == len(state.trials) + len(state.checks)
    assert any(trial.attained is None and trial.setting["block_size"] == 3 for trial in state.trials)
    assert outcome.found.best["block_size"] is None
    assert outcome.found.best[space.TOKENS] == 1024
    if outcome.found.best != outcome.found.first:
        assert state.checks and any("loaded as a profile has it" in line for line in said)
    again = search(spec, goal, State(tmp_path / "search.jsonl", {}), 1.0, said.append)
    assert again == outcome
    assert not engines_of(os.getpid())


def test_a_search_that_was_killed_goes_on(tmp_path):
    out, state = tmp_path / "tuned.yaml", tmp_path / "tuned.jsonl"
    flags = ["--prompt", "24", "--output", "8", "--trial-s", "0.5", "--ttft-slo", "0.2", "--json", "--out", str(out)]
    for key, value in ONE_SHARD.items():
        flags += ["--set", f"{key}={json.dumps(value)}"]

    def command(limit_s):
        return [sys.executable, "-m", "ops.cli", "tune", *flags, "--limit-s", str(limit_s)]

    killed = subprocess.Popen(command(200), stderr=subprocess.DEVNULL)
    try:
        while not (state.is_file() and state.read_text().count("attained") >= 2):
            assert killed.poll() is None
            time.sleep(0.1)
    finally:
        killed.kill()
        killed.wait()
    ended = time.monotonic() + 20
    while engines_of(killed.pid) and time.monotonic() < ended:
        time.sleep(0.1)
    assert not engines_of(killed.pid)
    before = state.read_text()

    resumed = subprocess.Popen(command(30), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = resumed.communicate(timeout=150)
    assert resumed.returncode == 0, stderr
    assert not engines_of(resumed.pid)
    told = json.loads(stdout)
    assert state.read_text().startswith(before[: before.rindex("\n") + 1])
    assert told["trials"] == sum('"setting"' in line for line in state.read_text().splitlines())
    assert told["tuned_goodput"] >= told["default_goodput"] > 0
    engine = load(None, {}, {"model.profile": str(out)}).settings.engine
    assert engine.max_num_seqs == told["settings"]["engine.max_num_seqs"]

    other = subprocess.run([*command(30), "--prompt", "32"], capture_output=True, text=True, timeout=60, check=False)
    assert other.returncode == 1
    assert "another search: prompt was 24, now 32" in other.stderr

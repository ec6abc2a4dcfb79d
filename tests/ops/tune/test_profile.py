"""What a search found, as `moray up --profile FILE` takes it."""

import pytest
import yaml

from cluster.app import engine_spec
from cluster.config import ConfigError, load
from cluster.settings import Machine
from ops.tune import space
from ops.tune.attainment import Slo
from ops.tune.engine import Work
from ops.tune.profile import profile
from ops.tune.search import PRECISION, Found, Trial
from ops.tune.tuning import Goal, Outcome, checked, default, next_check, next_of_default
from replicas.engine_host import core_environment

FIRST = {space.TOKENS: 2048, space.SEQS: 128, space.CHUNK: 0, space.GRAPHS: None}
BEST = {space.TOKENS: 4096, space.SEQS: 512, space.CHUNK: 128, space.GRAPHS: (1, 2, 4)}
GOAL = Goal(Work(512, 128, 1000), Slo(1.0, 0.05))
FOUND = Found(FIRST, 10.0, BEST, 15.0)
H200 = Machine(cpus=16, gpus=1)


def written(tmp_path, outcome, given=None, setting=BEST):
    chosen = space.settings(setting, {})
    file = tmp_path / "tuned.yaml"
    file.write_text(profile(outcome, GOAL, given or {}, chosen, "one H200 (vllm 0.32.0)", "qwen3"))
    return file


def test_a_session_takes_it(tmp_path):
    given = {"model.max_model_len": 4096, "engine.extra.seed": 7}
    file = written(tmp_path, Outcome(FOUND, 10.0, 14.0, True, 30), given)
    loaded = load(None, {}, {"model.profile": str(file), "model.path": "/m", "engine.max_num_seqs": 99}, H200)
    args = engine_spec(loaded.settings).engine_args
    assert args["max_num_batched_tokens"] == 4096
    assert args["max_num_seqs"] == 99  # what is given is above a profile
    assert args["long_prefill_token_threshold"] == 128
    assert args["compilation_config"] == {"cudagraph_capture_sizes": [1, 2, 4]}
    assert (args["max_model_len"], args["seed"]) == (4096, 7)
    assert loaded.settings.router.tpot_slo_s == 0.05
    assert loaded.origins["engine.max_num_batched_tokens"].startswith(f"{file}:")


def test_a_settings_file_names_it_beside_itself(tmp_path):
    written(tmp_path, Outcome(FOUND, 10.0, 14.0, True, 30))
    settings = tmp_path / "moray.yaml"
    settings.write_text("model:\n  profile: tuned.yaml\n  path: /m\n")
    assert load(settings, {}, {}, H200).settings.engine.max_num_batched_tokens == 4096


def test_a_profile_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*none\.yaml"):
        load(None, {}, {"model.profile": str(tmp_path / "none.yaml")}, H200)
    (tmp_path / "wrong.yaml").write_text("engine:\n  max_num_sqs: 3\nmodel:\n  profile: 32b\n")
    with pytest.raises(ConfigError, match="names a profile itself") as raised:
        load(None, {}, {"model.profile": str(tmp_path / "wrong.yaml")}, H200)
    assert "did you mean engine.max_num_seqs" in str(raised.value)


def test_it_says_what_it_was_measured_on(tmp_path):
    text = written(tmp_path, Outcome(FOUND, 10.0, 14.0, True, 30)).read_text()
    for part in ("qwen3", "one H200 (vllm 0.32.0)", "1 s", "50 ms", "512", "128", "14.00", "1.40 times", "10.00"):
        assert part in text.partition("engine:")[0]
    assert "cut off" not in text
    assert "cut off" in written(tmp_path, Outcome(FOUND, 10.0, None, False, 3)).read_text()


def test_without_a_gain_it_is_the_default(tmp_path):
    outcome = Outcome(FOUND, 10.0, 0.0, True, 30)
    assert (outcome.keeps_default, outcome.ratio, outcome.goodput) == (True, 1.0, 10.0)
    file = written(tmp_path, outcome, setting=FIRST)
    assert yaml.safe_load(file.read_text())["engine"] == {"max_num_batched_tokens": 2048, "max_num_seqs": 128}


def test_a_default_that_carries_nothing_is_told(tmp_path):
    nothing = Outcome(Found(FIRST, 0.0, FIRST, 0.0), 0.0, 0.0, True, 9)
    assert "no rate was carried" in written(tmp_path, nothing, setting=FIRST).read_text()


def test_the_choice_is_asked_again_until_it_carries():
    assert next_check(FOUND, []) == (BEST, 15.0)
    refused = [Trial(BEST, 15.0, 0.5)]
    assert checked(FOUND, []) is checked(FOUND, refused) is None
    assert next_check(FOUND, refused) == (BEST, pytest.approx(15.0 / PRECISION))
    carried = [*refused, Trial(BEST, 14.0, 0.95)]
    assert checked(FOUND, carried) == 14.0


def test_a_choice_that_never_carries_again_is_dropped():
    refused = [Trial(BEST, rate, 0.5) for rate in (15.0, 14.2, 13.3)]
    assert next_check(FOUND, refused) is None
    assert checked(FOUND, refused) == 0.0
    assert next_check(FOUND, [Trial(BEST, 15.0, None)]) is None


def test_the_default_is_asked_again_for_more_while_it_carries_that():
    checks = []
    for power in (1, 2, 3):
        setting, rate = next_of_default(FOUND, checks)
        assert setting == FIRST and rate == pytest.approx(10.0 * PRECISION**power)
        assert next_of_default(FOUND, [*checks, Trial(FIRST, rate, 0.5)]) is None
        assert default(FOUND, [*checks, Trial(FIRST, rate, 0.5)]) == pytest.approx(10.0 * PRECISION ** (power - 1))
        checks.append(Trial(FIRST, rate, 0.95))
    assert next_of_default(FOUND, checks) is None
    assert default(FOUND, checks) == pytest.approx(10.0 * PRECISION**3)


def test_a_choice_that_the_default_reaches_is_none():
    outcome = Outcome(FOUND, 14.5, 14.0, True, 30)
    assert (outcome.keeps_default, outcome.ratio, outcome.goodput, outcome.setting) == (True, 1.0, 14.5, FIRST)


def test_the_default_needs_no_check():
    alone = Found(FIRST, 10.0, FIRST, 10.0)
    assert next_check(alone, []) is next_of_default(alone, []) is None


def test_tuned_kernels_reach_the_engines_process(tmp_path):
    setting = BEST | {space.KERNELS: "/kernels"}
    file = written(tmp_path, Outcome(FOUND, 10.0, 14.0, True, 30), setting=setting)
    spec = engine_spec(load(None, {}, {"model.profile": str(file), "model.path": "/m"}, H200).settings)
    assert core_environment(spec)["VLLM_TUNED_CONFIG_FOLDER"] == "/kernels"
    assert "VLLM_TUNED_CONFIG_FOLDER" not in core_environment(engine_spec(load(machine=H200).settings))

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.autoscaling import Scaling
from cluster.config import ConfigError, load, setting_keys
from cluster.settings import Machine, Settings

TWO_CPUS = Machine(cpus=2, gpus=0)
EIGHT_GPUS = Machine(cpus=128, gpus=8)


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        file = tmp_path / "moray.yaml"
        file.write_text(text)
        return file

    return write


def settings(machine=TWO_CPUS, **overrides):
    return load(overrides={key.replace("__", "."): value for key, value in overrides.items()}, machine=machine).settings


def problems(file=None, env=None, overrides=None, machine=TWO_CPUS):
    with pytest.raises(ConfigError) as caught:
        load(file, env, overrides, machine)
    return caught.value.problems


def test_the_promised_defaults():
    made = settings()
    assert (made.gateway.host, made.gateway.port) == ("127.0.0.1", 8000)
    assert made.gateway.haproxy and made.gateway.allowed_origins == () and made.gateway.max_body_mib == 8
    assert (made.replicas.count, made.experts.shards) == (1, 2)
    assert (made.ray.address, made.ray.dashboard_port) == (None, 8265)
    assert (made.router.no_replica_wait_s, made.router.retry_after_s) == (30.0, 5)
    assert made.model.embedded and made.model.served_name == "tiny-r1"
    assert (made.model.dtype, made.model.reasoning_parser) == ("float32", "deepseek_r1")


def test_every_setting_says_what_it_is_for():
    for key in setting_keys():
        group, name = key.split(".")
        assert Settings.model_fields[group].annotation.model_fields[name].description, key


def test_nothing_that_load_derives_is_left_open():
    for machine in (TWO_CPUS, EIGHT_GPUS, Machine(1, 0)):
        made = settings(machine)
        assert made.engine.device in ("cpu", "cuda")
        assert None not in (made.model.name, made.engine.enforce_eager, made.experts.expert_parallel)
        assert made.replicas.gpus_per_shard == (0 if made.engine.device == "cpu" else 1)


@pytest.mark.parametrize(
    ("machine", "replicas", "shards"),
    [(Machine(1, 0), 1, 1), (TWO_CPUS, 1, 2), (TWO_CPUS, 2, 1), (Machine(4, 0), 2, 2), (EIGHT_GPUS, 1, 2)],
)
def test_the_embedded_model_takes_two_shards_where_they_fit(machine, replicas, shards):
    assert settings(machine, replicas__count=replicas).experts.shards == shards


def test_gateways_before_gpus_are_as_many_as_cpus_carry():
    assert [settings(Machine(cpus, 1)).gateway.count for cpus in (2, 8, 16, 64)] == [1, 2, 4, 4]
    assert settings(Machine(128, 8), replicas__count=8).gateway.count == 32
    assert settings(Machine(64, 0)).gateway.count == 1
    assert settings(Machine(64, 8), ray__address="auto").gateway.count == 1
    assert settings(Machine(64, 8), gateway__count=3).gateway.count == 3


def test_an_engine_has_its_own_cpu_where_there_are_few_and_it_is_the_only_one():
    one = {"experts__expert_parallel": 1}
    assert [settings(Machine(n, 0), **one).engine.own_cpu for n in (1, 2, 4, 5)] == [False, True, True, False]
    assert not settings(Machine(4, 0), **one, replicas__count=2).engine.own_cpu
    assert not settings(Machine(4, 0), experts__expert_parallel=2).engine.own_cpu
    assert not settings(Machine(4, 0), **one, ray__address="auto").engine.own_cpu
    assert not settings(Machine(4, 1), **one).engine.own_cpu
    assert not settings(TWO_CPUS, **one, engine__own_cpu=False).engine.own_cpu
    assert settings(Machine(64, 0), **one, engine__own_cpu=True).engine.own_cpu


def test_a_directory_is_served_under_its_name_with_vllms_own_choices(tmp_path):
    made = settings(model__path=tmp_path / "Qwen3-30B")
    assert made.model.served_name == "Qwen3-30B" and made.model.directory == tmp_path / "Qwen3-30B"
    assert (made.model.dtype, made.model.reasoning_parser, made.engine.max_num_seqs) == ("auto", None, None)
    assert made.experts.shards == 1


def test_a_parser_can_be_turned_off():
    assert settings(model__reasoning_parser="none").model.reasoning_parser is None


def test_the_strongest_source_wins_and_origins_tell_which(yaml):
    file = yaml("gateway:\n  port: 1\n  host: 127.0.0.2\n  count: 2\nmodel: # nothing set\n")
    env = {"MORAY_GATEWAY__PORT": "2", "MORAY_GATEWAY__HOST": "127.0.0.3", "HOME": "/x"}
    loaded = load(file, env, {"gateway.port": "3"}, TWO_CPUS)
    gateway = loaded.settings.gateway
    assert (gateway.port, gateway.host, gateway.count) == (3, "127.0.0.3", 2)
    assert loaded.origins["gateway.port"] == "command line"
    assert loaded.origins["gateway.host"] == "MORAY_GATEWAY__HOST"
    assert loaded.origins["gateway.count"] == f"{file}:4"
    assert loaded.origins["gateway.haproxy"] == "default"
    assert loaded.origins["engine.device"] == "derived (no GPU here)"
    assert set(setting_keys()) <= set(loaded.origins)


def test_given_values_are_not_called_derived():
    origins = load(None, {}, {"engine.device": "cpu", "model.dtype": "auto"}, TWO_CPUS).origins
    assert origins["engine.device"] == "command line"
    assert origins["model.dtype"] == "derived (the embedded model)"


def test_texts_of_the_environment_become_typed_values():
    env = {
        "MORAY_GATEWAY__ALLOWED_ORIGINS": "[http://a, http://b]",
        "MORAY_GATEWAY__HAPROXY": "false",
        "MORAY_MODEL__NAME": "123",
        "MORAY_ENGINE__EXTRA__BLOCK_SIZE": "16",
        "MORAY_RAY__ADDRESS": "null",
        "MORAY_LOG__LEVEL": "debug",
    }
    made = load(None, env, None, TWO_CPUS).settings
    assert made.gateway.allowed_origins == ("http://a", "http://b") and not made.gateway.haproxy
    assert made.model.name == "123" and made.engine.extra == {"block_size": 16}
    assert made.ray.address is None and made.log.level == "DEBUG"


def test_extra_arguments_of_several_sources_come_together(yaml):
    file = yaml("engine:\n  extra:\n    block_size: 16\n    swap: {a: 1}\n")
    made = load(file, {"MORAY_ENGINE__EXTRA__BLOCK_SIZE": "32"}, None, TWO_CPUS)
    assert made.settings.engine.extra == {"block_size": 32, "swap": {"a": 1}}
    assert made.origins["engine.extra.block_size"] == "MORAY_ENGINE__EXTRA__BLOCK_SIZE"


def test_an_extra_argument_with_a_setting_of_its_own_is_refused():
    (said,) = problems(overrides={"engine.extra.dtype": "float16"})
    assert "dtype has a setting of its own: model.dtype" in said


def test_a_relative_model_path_is_the_files_or_the_callers(yaml, tmp_path, monkeypatch):
    file = yaml("model:\n  path: models/x\n")
    assert load(file, machine=TWO_CPUS).settings.model.path == tmp_path / "models/x"
    monkeypatch.chdir("/")
    assert settings(model__path="models/x").model.path == Path("/models/x")


def test_all_mistakes_are_told_at_once_each_with_its_place(yaml):
    file = yaml("gateway:\n  prot: 1\n  port: 1\n  port: 2\nengin:\n  a: 1\nray: 5\nmodel:\n  dtype: float8\n")
    env = {"MORAY_GATEWAY_PORT": "1", "MORAY_ROUTER__RETRY_AFTER": "1"}
    assert problems(file, env, {"port": 1}) == (
        f"unknown setting gateway.prot ({file}:2): did you mean gateway.port?",
        f"gateway.port ({file}:4) was set before, at {file}:3",
        f"unknown group engin ({file}:5): did you mean engine?",
        f"ray ({file}:7) must be a group of `name: value` lines",
        "unknown variable MORAY_GATEWAY_PORT: did you mean MORAY_GATEWAY__PORT (two underscores)?",
        "unknown setting router.retry_after (MORAY_ROUTER__RETRY_AFTER): did you mean router.retry_after_s?",
        "unknown setting port (command line): did you mean gateway.port or metrics.port?",
        f"model.dtype ({file}:9): input should be 'auto', 'float32', 'bfloat16' or 'float16', not 'float8'",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "the file ({file}:1) must be a group"),
        ("gateway: [\n", "{file}:2 is not valid YAML"),
        ("gateway:\n  port: x\n", "gateway.port ({file}:2): input should be a valid integer"),
        ("gateway:\n  port: 0\n", "greater than or equal to 1, not 0"),
        ("1: {}\n", "unknown setting 1 ({file}:1)"),
    ],
)
def test_files_that_are_no_settings(yaml, text, said):
    file = yaml(text)
    assert said.format(file=file) in problems(file)[0]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "gateway:\n", "---\n{}\n"])
def test_empty_files_and_groups_are_fine(yaml, text):
    assert load(yaml(text), machine=TWO_CPUS).settings == settings()


def test_a_file_that_cannot_be_read(tmp_path):
    assert "No such file" in problems(tmp_path / "no.yaml")[0]
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in problems(binary)[0]


def test_variables_that_are_no_settings_are_left_alone():
    env = {
        "MORAY_SESSION": "x",
        "MORAY_SPARE_CORES": "x",
        "MORAY_PARENT_PID": "1",
        "MORAY_STATE_DIR": "/x",
        "MORAY_CONFIG": "x.yaml",
        # Kubernetes makes these for Services named moray-gateway and moray.
        "MORAY_GATEWAY_PORT": "tcp://10.0.0.1:8000",
        "MORAY_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "MORAY_GATEWAY_SERVICE_PORT_HTTP": "8000",
        "MORAY_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, env, None, TWO_CPUS).settings == settings()


@pytest.mark.parametrize(
    ("overrides", "machine", "said"),
    [
        ({"experts.expert_parallel": 8}, TWO_CPUS, "expert_parallel is 8, but this machine has 2 CPUs"),
        ({"replicas.count": 3}, TWO_CPUS, "needs 3 CPUs, but this machine has 2"),
        ({"engine.device": "cuda"}, TWO_CPUS, "shows no NVIDIA GPU"),
        ({"experts.expert_parallel": 4, "replicas.count": 3}, EIGHT_GPUS, "needs 12 GPUs, but this machine has 8"),
        ({"experts.plan": "p.json", "engine.device": "cuda"}, Machine(8, 2), "there vLLM's EPLB moves them"),
        ({"experts.plan": "p.json", "experts.expert_parallel": 1}, TWO_CPUS, "one shard holds every expert"),
        ({"engine.own_cpu": True}, TWO_CPUS, "experts.expert_parallel 2, engine.device cpu; leave it null"),
        ({"engine.own_cpu": True, "experts.expert_parallel": 1}, Machine(1, 0), "this is 1 CPUs"),
        ({"gateway.port": 8265}, TWO_CPUS, "both 8265"),
        ({"engine.host": "thread", "experts.expert_parallel": 2}, TWO_CPUS, "each shard is a process of its own"),
        ({"autoscaling.max_replicas": 3}, TWO_CPUS, "autoscaling.max_replicas 3 x experts.expert_parallel 1 x"),
        ({"autoscaling.max_replicas": 1, "replicas.count": 2}, TWO_CPUS, "autoscaling.max_replicas is 1"),
        ({"autoscaling.max_replicas": 1, "autoscaling.min_replicas": 2}, TWO_CPUS, "from 0 to max_replicas (1)"),
        ({"autoscaling.min_replicas": 0}, TWO_CPUS, "autoscaling.min_replicas is set, but nothing scales"),
        (
            {"autoscaling.max_replicas": 1, "autoscaling.min_replicas": 0, "router.no_replica_wait_s": 60},
            TWO_CPUS,
            "requests wait only 60 s for a replica (router.no_replica_wait_s), and one may take 900 s to load",
        ),
        ({"autoscaling.max_replicas": 2, "engine.own_cpu": True}, TWO_CPUS, "2 replicas, experts.expert_parallel 1"),
    ],
)
def test_settings_that_contradict_each_other_or_the_machine(overrides, machine, said):
    assert said in problems(overrides=overrides, machine=machine)[0]


def test_requests_wait_for_a_replica_to_load_where_there_may_be_none():
    held = settings(autoscaling__max_replicas=1, autoscaling__min_replicas=0)
    assert held.router.no_replica_wait_s == held.replicas.start_timeout_s == 900
    known = {"autoscaling__load_s": 60, "router__no_replica_wait_s": 60}
    assert settings(autoscaling__max_replicas=1, autoscaling__min_replicas=0, **known).router.no_replica_wait_s == 60
    assert settings(autoscaling__max_replicas=2, router__no_replica_wait_s=5).router.no_replica_wait_s == 5


def test_autoscaling_has_the_defaults_of_its_decision():
    assert settings(autoscaling__max_replicas=8, ray__address="auto").autoscaling.scaling() == Scaling()
    assert not settings().autoscaling.on and settings().most_replicas == 1


def test_an_unknown_policy_is_refused_with_those_that_there_are():
    assert settings(router__policy="round_robin").router.policy == "round_robin"
    (problem,) = problems(overrides={"router.policy": "best"})
    assert all(word in problem for word in ("router.policy", "'best'", "continuous", "prefix_and_load"))


def test_another_cluster_is_not_measured_by_this_machine():
    made = settings(ray__address="auto", experts__expert_parallel=8, engine__device="cuda", replicas__count=4)
    assert made.experts.shards == 8


def test_settings_travel_between_processes_and_stay_as_they_are():
    loaded = load(machine=TWO_CPUS)
    assert pickle.loads(pickle.dumps(loaded.settings)) == loaded.settings
    assert Settings.model_validate_json(loaded.settings.model_dump_json()) == loaded.settings
    with pytest.raises(ValueError, match="frozen"):
        loaded.settings.gateway.port = 1


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3))
def test_any_override_is_taken_or_refused_by_name(overrides):
    try:
        load(None, {}, overrides, TWO_CPUS)
    except ConfigError as error:
        assert error.problems


def test_reading_settings_imports_nothing_heavy():
    code = "import sys, cluster.config; print(*{'ray', 'vllm', 'torch', 'experts.tiny_r1'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_profile_lies_under_all_that_is_given(yaml):
    file = yaml("model:\n  profile: 32b\n  path: /models/x\nengine:\n  extra: {enable_chunked_prefill: false}\n")
    loaded = load(file, {"MORAY_REPLICAS__COUNT": "1"}, {"engine.max_num_seqs": 9}, EIGHT_GPUS)
    made, origins = loaded.settings, loaded.origins
    assert (made.experts.shards, origins["experts.expert_parallel"]) == (4, "profile 32b")
    assert (made.replicas.count, origins["replicas.count"]) == (1, "MORAY_REPLICAS__COUNT")
    assert (made.engine.max_num_seqs, origins["engine.max_num_seqs"]) == (9, "command line")
    assert (made.model.dtype, origins["model.dtype"]) == ("bfloat16", "profile 32b")
    assert made.engine.extra["enable_chunked_prefill"] is False
    assert origins["engine.extra.enable_chunked_prefill"] == f"{file}:5"
    assert origins["engine.extra.long_prefill_token_threshold"] == "profile 32b"
    assert origins["gateway.port"] == "default"


def test_no_profile_is_the_default_and_another_name_is_refused():
    assert settings().model.profile is None and settings().model.embedded
    (problem,) = problems(env={"MORAY_MODEL__PROFILE": "33b"})
    assert (
        problem
        == "model.profile (MORAY_MODEL__PROFILE): there is no profile '33b'; there are 7b, 16b, 32b, and FILE.yaml"
    )


def test_what_this_machine_lacks_is_told_and_refused_only_to_run():
    said = problems(overrides={"model.profile": "16b"})
    assert "no model is given" in said[0] and "shows no NVIDIA GPU" in said[1]
    shown = load(None, {}, {"model.profile": "16b"}, TWO_CPUS, to_run=False)
    assert shown.lacking == said and shown.settings.engine.device == "cuda"
    assert load(None, {}, {"model.profile": "16b", "model.path": "/x"}, EIGHT_GPUS).lacking == ()


def test_another_model_on_a_cpu_does_not_take_all_memory():
    assert settings(model__path="m").engine.kv_cache_mib == 4096
    assert settings(model__path="m", engine__kv_cache_mib=100).engine.kv_cache_mib == 100
    assert settings(model__path="m", machine=EIGHT_GPUS).engine.kv_cache_mib is None  # vLLM measures the GPU
    assert settings().engine.kv_cache_mib == 64


def test_the_embedded_model_has_a_store_of_versions():
    from experts.tiny_r1 import checkpoint_path, store_path

    made = settings().model
    assert (made.version, made.version_name, made.store_directory) == ("v1", "v1", store_path())
    assert made.directory == checkpoint_path("v1")
    second = load(None, {}, {"model.version": "v2"}, TWO_CPUS)
    assert second.settings.model.embedded and second.settings.model.directory == checkpoint_path("v2")
    assert second.origins["model.version"] == "command line" and second.settings.model.served_name == "tiny-r1"


def test_a_store_is_served_under_its_name_and_needs_a_version(yaml, tmp_path):
    file = yaml("model:\n  store: models/Qwen3\n  version: v7\n")
    made = load(file, machine=TWO_CPUS).settings.model
    assert not made.embedded and made.served_name == "Qwen3" and made.dtype == "auto"
    assert made.store_directory == tmp_path / "models/Qwen3" and made.directory == tmp_path / "models/Qwen3" / "v7"
    assert "`moray model list --store /m` shows them" in problems(overrides={"model.store": "/m"})[0]


def test_a_directory_has_no_versions():
    made = settings(model__path="/m").model
    assert (made.store_directory, made.version, made.version_name) == (None, None, "")
    for other in ({"model.store": "/s"}, {"model.version": "v2"}):
        assert "are both set" in problems(overrides={"model.path": "/m", **other})[0]
    (problem,) = problems(overrides={"model.version": "../v1"})
    assert problem.startswith("model.version (command line): '../v1' cannot be a version's name")

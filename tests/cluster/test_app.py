"""Settings become specs; Serve's import path; the environment of a local session."""

import os

import pytest

from cluster import app
from cluster.batching import ContinuousBatcher
from cluster.config import ConfigError, Machine, load
from cluster.peers import TokenLoad
from cluster.settings import Settings

MACHINE = Machine(cpus=2, gpus=0)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.config.this_machine", lambda: MACHINE)
    for name in [name for name in os.environ if name.startswith("MORAY_")]:
        monkeypatch.delenv(name)


def settings(machine: Machine = MACHINE, **overrides: object) -> Settings:
    return load(None, {}, {key.replace("__", "."): value for key, value in overrides.items()}, machine).settings


def test_the_embedded_model_in_one_shard():
    made = app.engine_spec(settings(experts__expert_parallel=1))
    from experts.tiny_r1 import checkpoint_path

    assert made.engine_args == {
        "model": str(checkpoint_path()),
        "served_model_name": "tiny-r1",
        "dtype": "float32",
        "tensor_parallel_size": 1,
        "enable_expert_parallel": False,
        "enable_prefix_caching": True,
        "reasoning_parser": "deepseek_r1",
        "max_num_seqs": 64,
        "max_num_batched_tokens": 1024,
        "kv_cache_memory_bytes": 64 << 20,
        "enforce_eager": True,
    }
    assert (made.model, made.host, made.device, made.shards) == ("tiny-r1", "process", "cpu", 1)
    assert made.listen == "127.0.0.1" and made.start_timeout_s == 900.0
    assert made.core == "replicas.vllm_core:VllmCore"


def test_a_version_of_a_store_is_named_and_loaded(tmp_path):
    assert app.engine_spec(settings()).version == "v1"
    assert app.engine_spec(settings(model__path="/m")).version == ""
    made = app.engine_spec(settings(model__store=str(tmp_path), model__version="v7"))
    assert (made.version, made.engine_args["model"]) == ("v7", str(tmp_path / "v7"))


def test_shards_are_processes_that_share_the_experts():
    made = app.engine_spec(settings())
    assert (made.shards, made.host) == (2, "process")
    args = made.engine_args
    assert (args["tensor_parallel_size"], args["enable_expert_parallel"]) == (2, True)
    assert args["distributed_executor_backend"] == "mp"


def test_a_plan_of_experts_goes_to_the_replicas(tmp_path):
    assert app.engine_spec(settings()).expert_plan is None
    assert app.engine_spec(settings(experts__plan=str(tmp_path / "p.json"))).expert_plan == str(tmp_path / "p.json")


def test_another_model_gets_vllms_own_defaults_and_what_was_set(tmp_path):
    gpus = Machine(cpus=16, gpus=2)
    made = app.engine_spec(
        settings(
            gpus,
            model__path=str(tmp_path / "DeepSeek"),
            model__max_model_len=4096,
            engine__enable_prefix_caching=False,
            engine__extra={"block_size": 32},
            experts__expert_parallel=2,
            ray__address="auto",
        )
    )
    assert made.engine_args == {
        "model": str(tmp_path / "DeepSeek"),
        "served_model_name": "DeepSeek",
        "dtype": "auto",
        "tensor_parallel_size": 2,
        "enable_expert_parallel": True,
        "enable_prefix_caching": False,
        "distributed_executor_backend": "mp",
        "max_model_len": 4096,
        "enforce_eager": False,
        "block_size": 32,
    }
    assert (made.model, made.host, made.device, made.listen) == ("DeepSeek", "process", "cuda", None)


def test_unresolved_settings_are_refused():
    with pytest.raises(AssertionError, match="resolved"):
        app.engine_spec(Settings())


def test_what_every_gateway_starts():
    made = app.gateway_spec(
        settings(
            gateway__max_body_mib=1.5,
            gateway__allowed_origins=("http://a",),
            router__retry_after_s=3,
            model__tool_call_parser="hermes",
        )
    )
    assert (made.max_body_bytes, made.retry_after_s) == (3 << 19, 3)
    assert (made.allowed_origins, made.tool_call_parser) == (("http://a",), "hermes")
    assert made.engine == app.engine_spec(settings(model__tool_call_parser="hermes"))


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings that an application was made of."""
    made: list[Settings] = []
    monkeypatch.setattr(app, "application", lambda settings: made.append(settings) or "application")
    return made


def test_build_takes_settings_by_group_and_by_dotted_key(applied, monkeypatch):
    monkeypatch.setenv("MORAY_GATEWAY__COUNT", "3")
    args = {"gateway": {"port": 9000}, "engine": {"extra": {"block_size": 32}}, "router.retry_after_s": "9"}
    assert app.build(args) == "application"
    (made,) = applied
    assert (made.gateway.port, made.gateway.count, made.router.retry_after_s) == (9000, 3, 9)
    assert made.engine.extra == {"block_size": 32} and made.engine.device == "cpu"


@pytest.mark.parametrize("args", [None, {}])
def test_build_needs_no_arguments(applied, args):
    app.build(args)
    assert applied == [settings()]


@pytest.mark.parametrize(
    ("args", "said"), [({"gateway": {"prot": 1}}, "gateway.prot"), ({"port": 1}, "port"), ({"gateway": 5}, "gateway")]
)
def test_build_names_what_it_does_not_know(applied, args, said):
    with pytest.raises(ConfigError) as caught:
        app.build(args)
    assert said in caught.value.problems[0] and applied == []


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    file = tmp_path / "moray.yaml"
    file.write_text("model: {store: /m, version: v2}\nrouter: {max_queue: 7}\n")
    monkeypatch.setenv("MORAY_CONFIG", str(file))
    return file


def test_build_takes_the_version_of_the_file_and_all_else_of_its_arguments(applied, config_file):
    """The file is an older ConfigMap's, perhaps: what was taken out of the settings must not come back by it."""
    app.build({"model": {"store": "/m"}, "gateway": {"port": 9000}})
    (made,) = applied
    assert (made.model.version, made.gateway.port, made.router.max_queue) == ("v2", 9000, 2048)


def test_arguments_and_variables_win_over_the_files_version(applied, config_file, monkeypatch):
    monkeypatch.setenv("MORAY_MODEL__VERSION", "v3")
    app.build({"model": {"store": "/m"}})
    app.build({"model": {"store": "/m", "version": "v4"}})
    assert [made.model.version for made in applied] == ["v3", "v4"]


def test_without_arguments_the_whole_file_counts(applied, config_file):
    app.build()
    (made,) = applied
    assert (str(made.model.store), made.model.version, made.router.max_queue) == ("/m", "v2", 7)


def test_the_router_runs_the_policy_that_was_set():
    assert type(app.router_spec(settings()).batcher()) is ContinuousBatcher
    assert type(app.router_spec(settings(router__policy="token_load")).batcher()) is TokenLoad


def test_the_proxys_end_waits_for_the_longest_stream():
    for timeout_s in (0.5, 600.0, 86_400.0):
        env = app.serve_environment(settings(gateway__request_timeout_s=timeout_s))
        assert int(env["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > timeout_s
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_sessions_stand_side_by_side():
    one, other = (app.serve_environment(settings()) for _ in range(2))
    own = ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC")
    ports = [env[f"RAY_SERVE_{what}_PORT"] for env in (one, other) for what in own]
    assert len(set(ports)) == 8
    files = [v for k, v in one.items() if k.endswith(("_LOC", "_PATH", "_BASE", "_FILE"))]
    assert len(files) == 5 and all(str(os.getpid()) in v for v in files)


def test_without_haproxy_nothing_is_said_of_it():
    env = app.serve_environment(settings(gateway__haproxy=False))
    assert not any("HA_PROXY" in name or "HAPROXY" in name for name in env)
    assert all(isinstance(v, str) for v in env.values())


def test_a_local_session_does_not_dwell_on_draining():
    def draining(**overrides: object) -> str:
        return app.serve_environment(settings(**overrides))["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]

    assert (draining(), draining(ray__address="auto")) == ("1", "30")


def test_requests_are_held_to_the_slo_or_else_to_the_alarms_limits() -> None:
    assert app.gateway_spec(settings()).telemetry.slo == (1.0, 0.05)
    assert app.gateway_spec(settings(alarms__ttft_s=3.0)).telemetry.slo == (3.0, 0.05)
    slo = app.gateway_spec(settings(router__ttft_slo_s=2.0, alarms__ttft_s=3.0, alarms__tpot_s=0.1)).telemetry.slo
    assert slo == (2.0, 0.1)


def test_haproxys_ports_are_none_that_the_gateway_was_promised() -> None:
    ports = app._free_ports(50, taken=1)
    again = app._free_ports(50, taken=int(ports[0]))
    assert len(set(ports)) == 50 and ports[0] not in again


def test_what_is_changed_in_ray_is_there() -> None:
    from ray._private import auto_init_hook
    from ray.serve._private import client

    assert client.CLIENT_POLLING_INTERVAL_S == 1.0, "else nobody needs to change it"
    assert auto_init_hook.enable_auto_connect

"""All wiring: settings -> specs -> Serve application. The Serve import path is `cluster.app:build`.

Nothing of Ray is imported at the top: Ray Serve reads its environment when it is imported, and we set it first.
"""

import contextlib
import logging
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from cluster.config import Settings, load
from cluster.start_failure import cause_of
from replicas.engine_spec import EngineSpec

if TYPE_CHECKING:
    from ray.serve import Application

    from cluster.gateway import GatewaySpec
    from cluster.router import RouterSpec

APPLICATION = "moray"
_HAPROXY_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)

Report = Callable[[str, str], None]  # (stage, detail)
T = TypeVar("T")


class StartFailed(Exception):
    """The application could not be started; the message is for the operator."""


# -- settings -> specs ------------------------------------------------------------------------------------------------


def engine_spec(settings: Settings) -> EngineSpec:
    """What every replica starts, in vLLM's own argument names. `settings` must be resolved (`config.load` does it)."""
    model, engine, shards = settings.model, settings.engine, settings.experts.shards
    args: dict[str, Any] = {
        "model": str(model.directory),
        "served_model_name": model.served_name,
        "dtype": model.dtype,
        "tensor_parallel_size": shards,
        "enable_expert_parallel": shards > 1,
        "enable_prefix_caching": engine.enable_prefix_caching,
    }
    if shards > 1:
        args["distributed_executor_backend"] = "mp"
    optional = {
        "max_model_len": model.max_model_len,
        "reasoning_parser": model.reasoning_parser,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "kv_cache_memory_bytes": engine.kv_cache_mib << 20 if engine.kv_cache_mib else None,
        "enforce_eager": engine.enforce_eager,
    }
    args |= {name: value for name, value in optional.items() if value is not None}
    assert engine.device != "auto", "settings must be resolved"
    return EngineSpec(
        model=model.served_name,
        version=model.version_name,
        engine_args=args | dict(engine.extra),
        host=engine.host,
        device=engine.device,
        shards=shards,
        listen="127.0.0.1" if settings.ray.address is None else None,
        start_timeout_s=settings.replicas.start_timeout_s,
        drain_s=settings.replicas.drain_s,
        hang_timeout_s=settings.replicas.hang_timeout_s,
        expert_plan=str(settings.experts.plan) if settings.experts.plan else None,
        tuned_kernels=str(engine.tuned_kernels) if engine.tuned_kernels else None,
        own_cpu=max(os.sched_getaffinity(0)) if engine.own_cpu else None,  # the last: interrupts favour the first
    )


def gateway_spec(settings: Settings) -> "GatewaySpec":
    """What every gateway starts."""
    from cluster.gateway import GatewaySpec
    from cluster.request_metrics import Slo
    from cluster.telemetry import TelemetrySpec

    router = settings.router
    return GatewaySpec(
        engine=engine_spec(settings),
        tool_call_parser=settings.model.tool_call_parser,
        allowed_origins=settings.gateway.allowed_origins,
        max_body_bytes=int(settings.gateway.max_body_mib * (1 << 20)),
        retry_after_s=settings.router.retry_after_s,
        stream_interval=settings.gateway.stream_interval,
        keys_file=str(settings.gateway.keys_file) if settings.gateway.keys_file else None,
        operators=settings.gateway.operators,
        ttft_s=settings.router.ttft_slo_s,
        tpot_s=settings.router.tpot_slo_s,
        telemetry=TelemetrySpec(
            enabled=settings.metrics.enabled,
            port=settings.metrics.port,
            gateways=settings.gateway.count or 1,
            tenants=settings.metrics.tenants,
            vllm=settings.metrics.vllm,
            otlp_endpoint=settings.metrics.otlp_endpoint,
            slo=Slo(router.ttft_slo_s or settings.alarms.ttft_s, router.tpot_slo_s or settings.alarms.tpot_s),
        ),
    )


def router_spec(settings: Settings) -> "RouterSpec":
    """What the router starts."""
    from cluster.router import RouterSpec

    router = settings.router
    assert router.no_replica_wait_s is not None, "settings must be resolved"
    return RouterSpec(
        model=settings.model.served_name,
        listen=engine_spec(settings).listen,
        policy=router.policy,
        max_queue=router.max_queue,
        no_replica_wait_s=router.no_replica_wait_s,
        tpot_s=router.tpot_slo_s,
        starvation_s=router.starvation_s,
        autoscaled=settings.autoscaling.on,
        cold_start=settings.autoscaling.to_zero,
    )


def replica_numbers(settings: Settings) -> dict[str, Any]:
    """Options of the replicas' Serve deployment that say how many there are."""
    auto = settings.autoscaling
    if not auto.on:
        return {"num_replicas": settings.replicas.count}
    scaling = asdict(auto.scaling())
    if auto.load_s is None:
        del scaling["load_s"]  # it is measured
    policy = {
        "policy_function": "cluster.serve_scaling:RouterScaling",
        "policy_kwargs": {
            "model": settings.model.served_name,
            "scaling": scaling,
            "interval_s": auto.interval_s,
            "start_timeout_s": settings.replicas.start_timeout_s,
        },
    }
    start = settings.replicas.count
    return {
        "autoscaling_config": {
            "min_replicas": auto.min_replicas,
            "max_replicas": settings.most_replicas + settings.rollout.surge,  # the policy itself keeps to the former
            # Else null: Serve then leaves as many as there are when an application is deployed anew.
            "initial_replicas": start if start > auto.min_replicas else None,
            # The decision has been thought over: Serve adds no delay of its own.
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "downscale_to_zero_delay_s": 0.0,
            "policy": policy,
        }
    }


# -- specs -> Serve ---------------------------------------------------------------------------------------------------


def build(args: Mapping[str, Any] | None = None) -> "Application":
    """Serve's import path. `args` are settings by group, as in YAML, or by dotted key; MORAY_ variables count too.

    Beneath both lies the file that MORAY_CONFIG names; where there are `args`, only its `model.version`. Whoever
    deploys leaves that out of them: another version is then no other application and restarts nothing, and a new Ray
    cluster still learns it. All else is told by `args`, for Kubernetes brings a changed file a minute later.
    """
    overrides: dict[str, Any] = {}
    for key, value in (args or {}).items():
        overrides |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, Mapping) else {key: value}
    file = Path(named) if (named := os.environ.get("MORAY_CONFIG")) else None
    return application(load(file, os.environ, overrides, of_file={"model.version"} if overrides else None).settings)


def application(settings: Settings) -> "Application":
    """The Serve application: gateways in front, replicas behind; the router is started with it."""
    from ray import serve

    from cluster.extensions import start_companions
    from cluster.gateway import Gateway
    from cluster.router import start_router
    from replicas.replica import Replica

    engine = engine_spec(settings)
    start_router(router_spec(settings))
    start_companions(settings)
    per_shard = settings.replicas
    replica = serve.deployment(
        Replica,
        name="Replica",
        **replica_numbers(settings),
        max_ongoing_requests=100,  # control calls only: requests go straight to the core
        ray_actor_options={
            "num_cpus": per_shard.cpus_per_shard * engine.shards,
            "num_gpus": (per_shard.gpus_per_shard or 0) * engine.shards,
        },
        health_check_period_s=1.0,  # how soon a dead replica is replaced
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=settings.replicas.drain_s + 15,  # the core's own end included
        graceful_shutdown_wait_loop_s=1.0,
        max_constructor_retry_count=2,
    ).bind(msgspec.json.encode(engine).decode())
    gateway = serve.deployment(
        Gateway,
        name="Gateway",
        num_replicas=settings.gateway.count or 1,
        max_ongoing_requests=100_000,  # the router's queue bounds requests, by what the replicas can hold
        ray_actor_options={"num_cpus": 0 if settings.ray.address is None else 1},
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=settings.replicas.drain_s,
        max_constructor_retry_count=2,
        # A change of it starts a rollout and restarts nothing (ops/rollout/wanted.py).
        user_config={"version": engine.version} if engine.version else None,
    )
    return gateway.bind(msgspec.json.encode(gateway_spec(settings)).decode(), replica)


# -- a session --------------------------------------------------------------------------------------------------------


@dataclass
class Serving:
    """A running application, held by the process that started it."""

    url: str
    dashboard_url: str | None
    engine_cpu: int | None  # which nothing else shall run on
    _own_ray: bool
    _spares: "list[subprocess.Popen[bytes]]"  # kept, as `start_spares` asks

    def shutdown(self) -> None:
        """Stops the application, and the Ray cluster if it is ours."""
        import ray
        from ray import serve

        stop = threading.Thread(target=serve.delete, args=(APPLICATION,), kwargs={"_blocking": False}, daemon=True)
        stop.start()
        stop.join(timeout=5)
        if self._own_ray:
            serve_gone = threading.Thread(target=serve.shutdown, daemon=True)
            serve_gone.start()
            serve_gone.join(timeout=10)
        ray.shutdown()


def run(settings: Settings, report: Report) -> Serving:
    """Starts the application and returns when the first replica is ready. Raises StartFailed.

    To be called in a thread that lives as long as the session: engine cores end with it.
    """
    own_ray = settings.ray.address is None
    os.environ.update(serve_environment(settings))
    spares = _start_spares(settings) if own_ray else []
    import ray
    from ray import serve
    from ray._private import auto_init_hook
    from ray.serve._private import client

    client.CLIENT_POLLING_INTERVAL_S = 0.2  # Ray's 1 s is how late it sees that all is ready, or gone
    auto_init_hook.enable_auto_connect = False  # who asks for Ray when the session ends would start another one
    for name in ("ray", "ray.serve"):  # our progress says it in fewer words
        logging.getLogger(name).setLevel(logging.ERROR)
    report("ray", "starting a local Ray" if own_ray else f"joining Ray at {settings.ray.address}")
    context = _init_ray(settings)
    dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
    try:
        report("serve", "starting Ray Serve")
        built = _beside(partial(application, settings))  # the router needs no Serve
        proxies = _beside(
            partial(
                serve.start,
                proxy_location="HeadOnly" if own_ray else "EveryNode",
                http_options={
                    "host": settings.gateway.host,
                    "port": settings.gateway.port,
                    "request_timeout_s": settings.gateway.request_timeout_s,
                },
                logging_config={"log_level": settings.log.level, "enable_access_log": False},
            )
        )
        _await_serve(proxies)
        _deploy(settings, built, report)
        proxies.result()
    except BaseException:
        ray.shutdown()
        raise
    host = "127.0.0.1" if settings.gateway.host in ("0.0.0.0", "::") else settings.gateway.host
    url = f"http://{host}:{settings.gateway.port}"
    return Serving(url, dashboard, engine_spec(settings).own_cpu, own_ray, spares)


def _start_spares(settings: Settings) -> "list[subprocess.Popen[bytes]]":
    """vLLM's import takes longer than Ray's start, and needs nothing of it."""
    from replicas.engine_host import core_environment
    from replicas.spare_core import start_spares

    spec = engine_spec(settings)
    return start_spares(spec, settings.replicas.count, core_environment(spec)) if spec.host == "process" else []


def _await_serve(started: "Future[None]") -> None:
    """Until an application can be deployed, which is some seconds before Serve's proxies listen."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    while not wait([started], timeout=0.05).done:
        with contextlib.suppress(ValueError):  # it is not there yet
            controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            ray.get(controller.check_alive.remote())
            return
    started.result()


def _beside(work: Callable[[], T]) -> "Future[T]":
    """Does it in another thread, which an interrupted start does not wait for."""
    future: Future[T] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future


def _init_ray(settings: Settings) -> Any:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if settings.ray.address is not None:
        return ray.init(address=settings.ray.address, **quiet)
    dashboard = {"dashboard_host": "127.0.0.1", "dashboard_port": settings.ray.dashboard_port}
    return ray.init(
        num_cpus=settings.ray.num_cpus,
        object_store_memory=256 << 20,  # nothing of ours goes through it; Ray's default takes 30% of the memory
        include_dashboard=settings.ray.dashboard,
        **(dashboard if settings.ray.dashboard else {}),
        **quiet,
    )


def _deploy(settings: Settings, built: "Future[Application]", report: Report) -> None:
    """Deploys and waits, telling what Serve is doing; raises StartFailed with the first cause that Serve names."""
    from ray import serve

    def deploy() -> None:
        by_hand = not settings.autoscaling.on  # for rollouts that add replicas; where it is on, its policy does
        serve.run(built.result(), name=APPLICATION, route_prefix="/", external_scaler_enabled=by_hand)

    report("model", f"loading {settings.model.served_name}")
    deployed = _beside(deploy)
    told = ""
    while not wait([deployed], timeout=0.3).done:
        deployments = _deployments()
        if cause := _failure(deployments):
            raise StartFailed(cause)
        state = _progress(deployments)
        if state and state != told:
            report("model", told := state)
    if error := deployed.exception():
        raise StartFailed(_failure(_deployments()) or str(error)) from error


def _deployments() -> Mapping[str, Any]:
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    return application.deployments if application else {}


def _progress(deployments: Mapping[str, Any]) -> str:
    states = []
    for name, deployment in sorted(deployments.items()):
        ready = deployment.replica_states.get("RUNNING", 0)
        total = sum(deployment.replica_states.values())
        states.append(f"{name.lower()} {ready}/{total}")
    return ", ".join(states)


def _failure(deployments: Mapping[str, Any]) -> str:
    """The cause of a failed start in one line."""
    for name, deployment in deployments.items():
        if cause := cause_of(deployment.message or ""):
            return f"{name} did not start: {cause}"
    return ""


def serve_environment(settings: Settings) -> dict[str, str]:
    """Environment of Ray Serve's processes for a local session; a cluster's own environment is its operator's."""
    files = haproxy_files()
    env = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1" if settings.ray.address is None else "30",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",  # Ray's 0.1 takes 4% of a core for nothing
        "RAY_worker_niceness": "0",  # Ray's 15 yields to whatever else runs: right for batch jobs, wrong for serving
    }
    if settings.gateway.haproxy:
        stop_after = int(settings.gateway.request_timeout_s) + 60
        env |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            # A config change starts a new HAProxy; the old one must outlive the longest stream.
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(stop_after),
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 2))),
            # Files and ports of our own, so that sessions can stand side by side.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(files / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(files / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(files),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(files / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(files / "metrics.sock"),
            # Ports; the last two are where HAProxy sends what no gateway is there for: another session would answer.
            **dict(zip(_HAPROXY_PORTS, _free_ports(len(_HAPROXY_PORTS), settings.gateway.port), strict=True)),
        }
    return env


def haproxy_files() -> Path:
    """Where this session's HAProxy keeps its configuration and sockets; the session's guardian removes it."""
    return Path(tempfile.gettempdir()) / f"moray-haproxy-{os.getpid()}"


def _free_ports(count: int, taken: int) -> list[str]:
    """So many different ports. `taken`: one that is free as yet, and promised to somebody."""
    with contextlib.ExitStack() as held:
        ports: list[str] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) != taken:
                ports.append(str(port))
        return ports

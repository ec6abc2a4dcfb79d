"""What follows from settings and the machine: values that were left open, contradictions, what is lacking. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.model_settings import PROFILES, Model
from cluster.settings import Gateway, Machine, Settings

# With so many CPUs or fewer, gateway, proxy, router and client want the CPU that the engine is on.
FEW_CPUS = 4
GATEWAYS, GATEWAY_CPUS = 4, 4  # a replica on a GPU is to have so many, and each so many CPUs of the machine
LEAST_NO_TOKEN_S = 3.0  # gateways report once a second: less would judge by one report or two
NO_REPLICA_WAIT_S = 30.0


@dataclass(frozen=True)
class Resolved:
    settings: Settings
    # Dotted key -> why it has the value that it has, for every key that was filled in.
    reasons: Mapping[str, str]


def resolve(settings: Settings, machine: Machine) -> Resolved:
    """Fill in what follows from the model and the machine: no `auto`, and no null that has a meaning of its own."""
    model, engine = settings.model, settings.engine
    embedded = model.embedded
    which = "the embedded model" if embedded else "the model's directory"
    reasons: dict[str, str] = {}

    def filled(key: str, value: Any, unset: object, derived: Any, reason: str) -> Any:
        if value != unset or derived == unset:
            return value
        reasons[key] = reason
        return derived

    device = filled(
        "engine.device",
        engine.device,
        "auto",
        "cuda" if machine.gpus else "cpu",
        f"{machine.gpus} GPUs here" if machine.gpus else "no GPU here",
    )
    on_cpu = device == "cpu"
    units, unit = (machine.cpus, "CPUs") if on_cpu else (machine.gpus, "GPUs")
    if on_cpu and settings.ray.num_cpus is not None:
        units = settings.ray.num_cpus
    shards = filled(
        "experts.expert_parallel",
        settings.experts.expert_parallel,
        None,
        2 if embedded and units >= 2 * settings.most_replicas else 1,
        f"{units} {unit} here" if embedded else which,
    )
    own_cpu = filled(
        "engine.own_cpu",
        engine.own_cpu,
        None,
        on_cpu and 2 <= machine.cpus <= FEW_CPUS and _has_one_engine_here(settings, shards),
        f"{machine.cpus} CPUs here, {settings.most_replicas} replicas of {shards} shards",
    )
    before_gpus = not on_cpu and settings.ray.address is None
    gateways = filled(
        "gateway.count",
        settings.gateway.count,
        None,
        max(min(GATEWAYS * settings.most_replicas, machine.cpus // GATEWAY_CPUS), 1) if before_gpus else 1,
        f"{machine.cpus} CPUs here, {settings.most_replicas} replicas" if before_gpus else "no GPUs of this machine",
    )
    to_zero = settings.autoscaling.to_zero
    no_replica_wait_s = filled(
        "router.no_replica_wait_s",
        settings.router.no_replica_wait_s,
        None,
        settings.replicas.start_timeout_s if to_zero else NO_REPLICA_WAIT_S,
        "requests wait for a replica to load" if to_zero else "replicas are there all the time",
    )
    small = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "kv_cache_mib": 64} if embedded else {}
    if on_cpu and not embedded:
        small["kv_cache_mib"] = 4096
    why = which if embedded else device
    parser = filled("model.reasoning_parser", model.reasoning_parser, None, "deepseek_r1" if embedded else None, which)
    resolved = settings.model_copy(
        update={
            "model": model.model_copy(
                update={
                    "version": filled("model.version", model.version, None, model.version_name or None, which),
                    "name": filled("model.name", model.name, None, model.served_name, which),
                    "dtype": filled(
                        "model.dtype", model.dtype, "auto", "float32" if embedded and on_cpu else "auto", which
                    ),
                    "reasoning_parser": None if parser == "none" else parser,
                }
            ),
            "engine": engine.model_copy(
                update={
                    "device": device,
                    "own_cpu": own_cpu,
                    "enforce_eager": filled("engine.enforce_eager", engine.enforce_eager, None, on_cpu, device),
                    **{key: filled(f"engine.{key}", getattr(engine, key), None, n, why) for key, n in small.items()},
                }
            ),
            "gateway": settings.gateway.model_copy(update={"count": gateways}),
            "experts": settings.experts.model_copy(update={"expert_parallel": shards}),
            "replicas": settings.replicas.model_copy(
                update={
                    "gpus_per_shard": filled(
                        "replicas.gpus_per_shard",
                        settings.replicas.gpus_per_shard,
                        None,
                        0.0 if on_cpu else 1.0,
                        device,
                    )
                }
            ),
            "router": settings.router.model_copy(update={"no_replica_wait_s": no_replica_wait_s}),
            "alarms": settings.alarms.model_copy(update=_alarms(settings, filled)),
        }
    )
    return Resolved(resolved, reasons)


def _alarms(settings: Settings, filled: Callable[..., Any]) -> dict[str, Any]:
    alarms, router, hang_s = settings.alarms, settings.router, settings.replicas.hang_timeout_s
    slo = ("router.ttft_slo_s", router.ttft_slo_s, 1.0), ("router.tpot_slo_s", router.tpot_slo_s, 0.05)
    limits = {
        name: filled(f"alarms.{name}", getattr(alarms, name), None, set_to or usual, key if set_to else f"no {key}")
        for name, (key, set_to, usual) in zip(("ttft_s", "tpot_s"), slo, strict=True)
    }
    reason = f"replicas.hang_timeout_s {hang_s:g}"
    no_token_s = filled("alarms.no_token_s", alarms.no_token_s, None, max(hang_s / 3.0, LEAST_NO_TOKEN_S), reason)
    return limits | {"no_token_s": no_token_s}


def _has_one_engine_here(settings: Settings, shards: int) -> bool:
    return settings.ray.address is None and settings.most_replicas == shards == 1


def contradictions(settings: Settings, machine: Machine) -> list[str]:
    """Sentences about resolved settings that cannot all be had. Empty: none."""
    found: list[str] = []
    shards, count = settings.experts.shards, settings.most_replicas
    if settings.ray.address is None and settings.ray.dashboard and settings.gateway.port == settings.ray.dashboard_port:
        found.append(f"gateway.port and ray.dashboard_port are both {settings.gateway.port}: choose another for one")
    found += _open_to_others(settings.gateway) + _versions(settings.model)
    if settings.engine.own_cpu and (
        settings.engine.device != "cpu" or machine.cpus < 2 or not _has_one_engine_here(settings, shards)
    ):
        found.append(
            "engine.own_cpu is true, but only a local session has such a CPU, for one replica with one shard on a CPU, "
            f"and a machine with 2 CPUs or more: this is {machine.cpus} CPUs, {count} replicas, "
            f"experts.expert_parallel {shards}, engine.device {settings.engine.device}; leave it null"
        )
    if settings.experts.plan is not None and settings.engine.device == "cuda":
        found.append(
            "experts.plan places experts on a CPU's workers, and engine.device is cuda: there vLLM's EPLB moves them "
            "by the load that it counts, with Moray's policy; set engine.extra.enable_eplb to true, and no plan"
        )
    if settings.experts.plan is not None and shards == 1:
        found.append("experts.plan is set, but one shard holds every expert: set experts.expert_parallel, or no plan")
    if settings.engine.host == "thread" and shards > 1:
        found.append(
            f"engine.host is thread, but experts.expert_parallel is {shards}: each shard is a process of its own; "
            "leave engine.host on process, or set experts.expert_parallel to 1"
        )
    return found + _autoscaling(settings)


def _versions(model: Model) -> list[str]:
    if model.path is not None and (model.store or model.version):
        which = "model.store" if model.store else "model.version"
        return [
            f"model.path and {which} are both set, but a directory of model.path has no versions: set one of the two; "
            f"`moray model add {model.path} --store DIR --version v1` makes a version of it"
        ]
    if model.store is not None and model.version is None:
        return [
            f"model.store is set, but not which version a new cluster serves: set model.version; "
            f"`moray model list --store {model.store}` shows them"
        ]
    return []


def _autoscaling(settings: Settings) -> list[str]:
    auto, wait_s = settings.autoscaling, settings.router.no_replica_wait_s or 0.0
    if not auto.on:
        changed = [f"autoscaling.{name}" for name in auto.model_fields_set if name != "max_replicas"]
        return [f"{changed[0]} is set, but nothing scales: set autoscaling.max_replicas too"] if changed else []
    found: list[str] = []
    if settings.replicas.count > settings.most_replicas:
        found.append(
            f"replicas.count, with which a session starts, is {settings.replicas.count}, but "
            f"autoscaling.max_replicas is {auto.max_replicas}: lower the one or raise the other"
        )
    load_s = auto.load_s or settings.replicas.start_timeout_s
    if auto.to_zero and wait_s < load_s:
        which = "autoscaling.load_s" if auto.load_s else "replicas.start_timeout_s, as autoscaling.load_s is not set"
        found.append(
            f"autoscaling.min_replicas is 0, but requests wait only {wait_s:g} s for a replica "
            f"(router.no_replica_wait_s), and one may take {load_s:g} s to load ({which}): raise the one or lower the "
            "other"
        )
    return found


def lacking(settings: Settings, machine: Machine) -> list[str]:
    """Sentences about what a session with these resolved settings would miss here. Empty: nothing."""
    found: list[str] = []
    if settings.model.profile in PROFILES and settings.model.embedded:
        found.append(
            f"model.profile is {settings.model.profile}, but no model is given: name its checkpoint by model.path "
            "(--model DIR) or model.store; the embedded model needs no profile"
        )
    if settings.ray.address is None:
        found += _beyond_this_machine(settings, machine)
    return found


def _open_to_others(gateway: Gateway) -> list[str]:
    if gateway.keys_file is not None or gateway.allow_unauthenticated or _is_loopback(gateway.host):
        return []
    return [
        f"gateway.host is {gateway.host}, which other machines can reach, but no API keys are configured: set "
        "gateway.keys_file (`moray key new --tenant NAME --file keys.yaml` makes one), or gateway.host to 127.0.0.1, "
        "or gateway.allow_unauthenticated to true if whoever reaches it may use it"
    ]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may stand for any address


def _beyond_this_machine(settings: Settings, machine: Machine) -> list[str]:
    shards, count = settings.experts.shards, settings.most_replicas
    cpus = settings.ray.num_cpus or machine.cpus
    if settings.engine.device == "cuda":
        gpus = shards * count * (settings.replicas.gpus_per_shard or 0)
        if machine.gpus == 0:
            return [
                "engine.device is cuda, but this machine shows no NVIDIA GPU: set it to cpu, or ray.address to a "
                "cluster that has some"
            ]
        if gpus > machine.gpus:
            return [_too_many(settings, gpus, "GPUs", machine.gpus)]
    if shards > cpus and settings.engine.device == "cpu":
        return [
            f"experts.expert_parallel is {shards}, but this machine has {cpus} CPUs: shards that take turns on one CPU "
            f"stall each other; set it to {cpus} or less"
        ]
    wanted = shards * count * settings.replicas.cpus_per_shard
    return [_too_many(settings, wanted, "CPUs", cpus)] if wanted > cpus else []


def _too_many(settings: Settings, wanted: float, unit: str, there: int) -> str:
    each = unit.lower() + "_per_shard"
    most = f"{'autoscaling.max_replicas' if settings.autoscaling.on else 'replicas.count'} {settings.most_replicas}"
    return (
        f"{most} x experts.expert_parallel {settings.experts.shards} x replicas.{each} needs {wanted:g} {unit}, but "
        f"this machine has {there}: the last replica would wait for ever; lower one of them"
    )

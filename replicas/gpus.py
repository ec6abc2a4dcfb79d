"""What NVML says of this process's GPUs. Where it does not answer there are none to tell of, and nobody is bothered."""

import logging
import os
from typing import Any, NamedTuple

logger = logging.getLogger("ray.serve")


class Gpu(NamedTuple):
    """One GPU now."""

    name: str  # NVML's index on its machine
    utilization: float  # share of the last second (or less) in which a kernel ran, 0..1
    memory_used: int  # bytes, by all processes
    memory_total: int


class Gpus:
    """The GPUs that this process may use, by CUDA_VISIBLE_DEVICES as Ray sets it."""

    def __init__(self, wanted: bool) -> None:
        """`wanted`: whether the engine computes on GPUs at all."""
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        if not wanted:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            for n in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(n)
                if _is_visible(str(n), pynvml.nvmlDeviceGetUUID(handle)):
                    self._handles[str(n)] = handle
            self._nvml = pynvml
        except Exception as error:  # no library, no driver, no permission: each has its own exception
            self._handles = {}
            logger.info("NVML does not answer (%s): there will be no GPU metrics.", error)

    def read(self) -> list[Gpu]:
        """Each GPU now; none where NVML does not answer."""
        gpus = []
        for name, handle in self._handles.items():
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                used = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            except self._nvml.NVMLError as error:
                logger.info("NVML does not answer for GPU %s (%s): it is told no more.", name, error)
                self._handles = {n: h for n, h in self._handles.items() if n != name}
                continue
            gpus.append(Gpu(name, used, int(memory.used), int(memory.total)))
        return gpus


def _is_visible(index: str, uuid: str) -> bool:
    """CUDA_VISIBLE_DEVICES holds indexes or (the beginnings of) UUIDs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is None or any(one and (one == index or uuid.startswith(one)) for one in visible.split(","))

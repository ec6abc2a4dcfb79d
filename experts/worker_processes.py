"""vLLM's worker processes on Linux: forked rather than spawned where that is safe, on their own CPUs, never orphans."""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

from experts.linux import die_with_parent


def fork_workers() -> None:
    """Let the executor of this process fork its CPU workers instead of spawning them.

    Call it between `EngineArgs.create_engine_config()`, which sets "spawn" on CPU (vllm/platforms/cpu.py), and
    `EngineCore(...)`. A forked worker shares the pages of vLLM's import and skips its 10 s.

    Only in a process that runs nothing but its engine core: a forked child owns one thread, so a lock that another
    thread held stays held for ever. vLLM itself goes back to "spawn" inside a Ray actor.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(
            f"Workers cannot be forked safely: this process already runs {threads} threads (Python's: {names}). "
            "Call fork_workers in a fresh process with OMP_NUM_THREADS=1, or leave vLLM's default, spawn."
        )
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"


def in_forked_child(_: object) -> None:
    if _is_vllm_worker():
        vllm_worker_dies_with_parent()
        _keep_to_own_cpus()


def _is_vllm_worker() -> bool:
    """Is this a child of vLLM's MultiprocExecutor? Its WorkerProc.make_worker_process names it "VllmWorker-<rank>".

    An engine core or an API server is none: whoever starts those decides how long they live.
    """
    name = multiprocessing.current_process().name
    return multiprocessing.parent_process() is not None and name.startswith("VllmWorker")


def vllm_worker_dies_with_parent() -> None:
    """Have Linux SIGKILL this worker when its engine core is gone, also when that was killed by SIGKILL.

    vLLM's own death pipe only closes queues, from a Python thread: a worker inside a collective lives on, and a forked
    sibling can hold the pipe open. The kernel's signal needs no cooperation.

    The signal comes when the *thread* that started the worker ends, so an engine core must be built in a thread that
    lives as long as the engine.
    """
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None and parent.pid is not None and _is_vllm_worker():
        die_with_parent(parent.pid)


def _keep_to_own_cpus() -> None:
    """Pin a forked worker to the CPUs that vLLM chose for it.

    vLLM hands them over in OMP_PLACES (vllm/utils/ompmultiprocessing.py), which OpenMP reads when it is loaded: in a
    forked child that was long ago, in the parent. The same goes for OMP_NUM_THREADS, so that must be right (CPUs per
    shard) in the engine core's own environment.
    """
    places = os.environ.get("OMP_PLACES", "")
    cpus = {int(cpu) for cpu in places.strip("{}").split(",") if cpu.isdigit()}
    if cpus:
        os.sched_setaffinity(0, cpus)

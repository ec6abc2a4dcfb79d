"""Starts a core host in a thread or in a process of its own, and holds the replica's end of its pipe."""

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection as Pipe

import msgspec

from experts.linux import remove_unmapped_shared_memory
from experts.placement import omp_binding
from experts.vllm_plugin import EXPERT_PLAN, OF_A_REPLICA
from replicas.core import CoreLoad, EngineCore, Probed
from replicas.core_host import (
    Answers,
    Failed,
    Ready,
    Reload,
    ReloadEnded,
    Routed,
    RunProbes,
    Stop,
    hang_up,
    host_core,
)
from replicas.engine_spec import EngineSpec
from replicas.importing import no_collections
from replicas.messages import Probe
from replicas.spare_core import PARENT, AdoptedProcess, adopt

STOP_GRACE_S = 10.0  # seconds in which a core that was told to stop finishes its step and hangs up


class EngineFailed(Exception):
    """The engine core could not start, or died. The message is one sentence; `detail` is the core's traceback."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def core_environment(spec: EngineSpec) -> dict[str, str]:
    """Environment of the process that runs the core; must be set before torch and vLLM are imported."""
    env = {
        "HF_HUB_OFFLINE": "1",  # models are directories; a look at a hub would only delay the start
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # we host the core; vLLM shall not start a process for it
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        OF_A_REPLICA: "1",
        EXPERT_PLAN: spec.expert_plan or "",
    }
    if spec.tuned_kernels is not None:
        env["VLLM_TUNED_CONFIG_FOLDER"] = spec.tuned_kernels
    if spec.device == "cuda" and spec.shards == 1:
        # What vLLM has measured of a GPU's memory is kept beside its compiled kernels, and taken if the settings are
        # the same and at least as much is free (vllm/v1/worker/startup_plan.py): 5 s of a start. Each shard would
        # decide that for itself, and one that measures again waits for the others in the midst of it.
        env["VLLM_ENABLE_STARTUP_PLAN"] = os.environ.get("VLLM_ENABLE_STARTUP_PLAN", "1")
    if spec.device == "cpu":
        env["TORCHDYNAMO_DISABLE"] = "1"  # the first request with logprobs would compile C++ for 20 s
        env["OMP_NUM_THREADS"] = "1"  # one thread a shard: small models lose more by waking threads than they gain
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if spec.shards > 1:
            env["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool would forbid to fork the workers
            env["VLLM_CPU_OMP_THREADS_BIND"] = omp_binding(spec.shards, sorted(os.sched_getaffinity(0)))
    return env


class EngineHost:
    """A running core host, seen from its replica. Start with `await EngineHost.start(...)`."""

    def __init__(
        self, spec: EngineSpec, pipe: Pipe, process: "subprocess.Popen[bytes] | AdoptedProcess | None"
    ) -> None:
        self._spec = spec
        self._pipe = pipe
        self._process = process
        self._thread: threading.Thread | None = None
        self._ending = False  # by our own will: the core's end is then no failure
        self._answer: asyncio.Future[ReloadEnded | Answers] | None = None  # that somebody waits for
        self.failure: EngineFailed | None = None

    @classmethod
    async def start(cls, spec: EngineSpec, listen: str) -> "tuple[EngineHost, Ready]":
        """Starts the core and waits until it is ready. EngineFailed if it cannot load within start_timeout_s."""
        if spec.host == "process":
            spare = await asyncio.to_thread(adopt, spec, listen, core_environment(spec))
            host = cls(spec, *(spare or _spawn(spec, listen)))
        else:
            ours, theirs = multiprocessing.Pipe()
            host = cls(spec, ours, None)
            os.environ.update(core_environment(spec))
            host._thread = threading.Thread(
                target=host_core, args=(partial(build_core, spec), theirs, listen), name="engine", daemon=True
            )
            host._thread.start()
        try:
            return host, await host._ready()
        except BaseException:
            host.kill()
            raise

    async def _ready(self) -> Ready:
        limit = self._spec.start_timeout_s
        try:
            async with asyncio.timeout(limit):
                first = await asyncio.to_thread(self._receive)
        except TimeoutError:
            raise EngineFailed(
                f"the engine core was not ready within {limit:g} s; "
                "a large model or slow storage needs a larger replicas.start_timeout_s"
            ) from None
        if isinstance(first, Ready):
            return first
        raise first if isinstance(first, EngineFailed) else EngineFailed("the engine core spoke out of turn")

    def _receive(self) -> Ready | CoreLoad | Routed | ReloadEnded | Answers | EngineFailed:
        """The next message from the core (blocking)."""
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            return EngineFailed(f"the engine core's process ended{self._exit_words()}")
        if isinstance(message, Failed):
            return EngineFailed(message.reason, message.detail)
        assert isinstance(message, Ready | CoreLoad | Routed | ReloadEnded | Answers)
        return message

    def _exit_words(self) -> str:
        if self._process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1)
            if code is None:
                return ""
            return f" by signal {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"
        return ""

    def watch(
        self,
        on_load: Callable[[CoreLoad], None],
        on_failure: Callable[[EngineFailed], None],
        on_routed: Callable[[Routed], None] = lambda _: None,
    ) -> None:
        """Calls back on this event loop: each report, and once when the core has died by itself."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            while True:
                message = self._receive()
                if self._ending:
                    return
                with contextlib.suppress(RuntimeError):  # the loop closed before us
                    if isinstance(message, CoreLoad):
                        loop.call_soon_threadsafe(on_load, message)
                    elif isinstance(message, Routed):
                        loop.call_soon_threadsafe(on_routed, message)
                    elif isinstance(message, ReloadEnded | Answers):
                        loop.call_soon_threadsafe(self._on_answer, message)
                    elif isinstance(message, EngineFailed):
                        self.failure = message
                        loop.call_soon_threadsafe(self._on_answer, message)
                        loop.call_soon_threadsafe(on_failure, message)
                if isinstance(message, EngineFailed):
                    return

        threading.Thread(target=read, name="engine-watch", daemon=True).start()

    async def reload(self, directory: str, expected: str, limit_s: float) -> ReloadEnded:
        """As `core_host.Reload`; `watch` must have been called. EngineFailed: no end after `limit_s` seconds."""
        ended = await self._ask(Reload(directory, expected), limit_s)
        assert isinstance(ended, ReloadEnded)
        return ended

    async def probe(self, probes: tuple[Probe, ...], limit_s: float) -> list[Probed]:
        """As `EngineCore.probe`. EngineFailed: no end after `limit_s` seconds."""
        answers = await self._ask(RunProbes(probes), limit_s)
        assert isinstance(answers, Answers)
        return answers.probed

    async def _ask(self, command: Reload | RunProbes, limit_s: float) -> ReloadEnded | Answers:
        """One at a time."""
        self._answer = asyncio.get_running_loop().create_future()
        try:
            with contextlib.suppress(OSError):
                self._pipe.send(command)
            return await asyncio.wait_for(self._answer, limit_s)
        except TimeoutError:
            raise EngineFailed(f"the engine core did not {_TODO[type(command)]} within {limit_s:g} s") from None
        finally:
            self._answer = None

    def _on_answer(self, message: ReloadEnded | Answers | EngineFailed) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(message, EngineFailed):
            self._answer.set_exception(message)
        else:
            self._answer.set_result(message)

    def stop(self) -> None:
        """Ends the core in order, by force after STOP_GRACE_S seconds. Blocking; safe to call twice."""
        if self._ending:
            return
        self._ending = True
        with contextlib.suppress(OSError):
            self._pipe.send(Stop())
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=STOP_GRACE_S)
        elif self._thread is not None:
            self._thread.join(timeout=STOP_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """Ends the core's process at once, its workers with it. A core in a thread ends when it has taken its step.

        Not the whole process group: Python's resource tracker in it lives on to unlink the workers' shared memory.
        """
        self._ending = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            remove_unmapped_shared_memory()
        hang_up(self._pipe)


_TODO = {Reload: "load other weights", RunProbes: "answer the golden prompts"}


def build_core(spec: EngineSpec) -> EngineCore:
    """Builds the engine core, in the thread that will run it; imports vLLM, unless `preload` has."""
    if spec.own_cpu is not None:
        os.sched_setaffinity(0, {spec.own_cpu})  # this thread, and those that it starts
    preload(spec)
    core: EngineCore = pkgutil.resolve_name(spec.core)(spec)
    return core


def preload(spec: EngineSpec) -> None:
    """Imports what `build_core` needs, as far as the core's module knows that beforehand: its `preload(spec)`."""
    with no_collections():
        module = importlib.import_module(spec.core.partition(":")[0])
        if hasattr(module, "preload"):
            module.preload(spec)


def _spawn(spec: EngineSpec, listen: str) -> "tuple[Pipe, subprocess.Popen[bytes]]":
    """`replicas.core_process` in a session of its own: it and its workers can be ended, and share CPUs, together."""
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        fd = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "replicas.core_process", str(fd), msgspec.json.encode(spec).decode(), listen],
            pass_fds=(fd,),
            env=os.environ | core_environment(spec) | {PARENT: str(os.getpid())},
            start_new_session=True,
        )
    return ours, process

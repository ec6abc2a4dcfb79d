"""`moray up`: one session, from its checks to the last of its processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text

from cluster.config import Settings
from ops.bytecode import keep_bytecode
from ops.errors import UserError
from ops.progress import Stages
from ops.session import Record, Session, check_port, running, state_directory
from replicas.model_directory import (
    Flaw,
    check_context,
    check_cpu,
    check_plan,
    check_version,
    has_zentorch,
    runs_int8_experts,
)
from replicas.model_directory import check as check_model

if TYPE_CHECKING:
    from cluster.app import Serving

# Direct children without which Ray, and with it the session, is over.
_VITAL = frozenset({"raylet", "gcs_server"})
_LAST_LINES = 25


class StartError(UserError):
    """The session did not come up, or broke down."""


class _Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP came. No Exception: nothing on the way may take it for an error of its own."""


def check_before_start(settings: Settings, dashboard_port_chosen: bool) -> None:
    """All that can be known to go wrong before anything runs. Raises UserError."""
    store = settings.model.store_directory
    problems = check_version(store, settings.model.version_name) if store is not None else []
    problems = problems or check_model(settings.model.directory, settings.experts.shards)
    if settings.engine.extra.get("load_format") == "dummy":  # vLLM makes weights up
        problems = [problem for problem in problems if problem.flaw is not Flaw.WEIGHTS]
    problems = problems or check_context(
        settings.model.directory, settings.model.max_model_len, settings.engine.extra.get("hf_overrides") or {}
    )
    if not problems and settings.experts.plan is not None:
        name, shards = settings.model.served_name, settings.experts.shards
        problems = check_plan(settings.model.directory, settings.experts.plan, name, shards)
    if not problems and settings.ray.address is None and settings.engine.device == "cpu":
        int8_experts = runs_int8_experts(Path("/proc/cpuinfo").read_text(errors="replace"), has_zentorch())
        problems = check_cpu(settings.model.directory, int8_experts, settings.experts.shards, settings.model.dtype)
    if problems:
        raise StartError("\n".join(str(problem) for problem in problems))
    check_port(settings.gateway.host, settings.gateway.port)
    # Ray moves on from its default dashboard port by itself, but not from one that was asked for.
    if dashboard_port_chosen and settings.ray.address is None and settings.ray.dashboard:
        check_port("127.0.0.1", settings.ray.dashboard_port, "--set ray.dashboard_port=…")


def foreground(settings: Settings, config: Path | None, console: Console) -> None:
    """Run a session until a signal ends it. Raises StartError if it fails; leaves no process behind either way."""
    _on_signals(_stop)
    keep_bytecode()
    try:
        with Session(settings.gateway.host, settings.gateway.port, config) as session:
            try:
                _serve(session, settings, console)
            finally:
                # Leaving the session stops its processes; that is not to be interrupted, only cut short.
                _kill_on_next_interrupt()
    except (_Stopped, KeyboardInterrupt, SystemExit):
        # SystemExit: Ray sets a SIGTERM handler of its own while it starts, which raises that.
        pass
    console.print("stopped")


def _serve(session: Session, settings: Settings, console: Console) -> None:
    serving = _started(settings, console)
    broken = None
    try:
        _on_signals(_stop)
        if serving.engine_cpu is not None:
            session.keep_off(serving.engine_cpu)  # not before: to start, everything wants every CPU
        session.ready(serving.url, serving.dashboard_url, _VITAL)
        _announce(console, settings, serving.url, serving.dashboard_url)
        broken = _wait(session)
    except (_Stopped, KeyboardInterrupt, SystemExit):
        _kill_on_next_interrupt()
    if broken:
        # Nothing would answer an orderly shutdown any more.
        raise StartError(f"Ray's {broken} has ended (out of memory? see dmesg): the session is over")
    with Stages(console) as stages:
        stages.report("shutting down", "Ctrl-C again kills at once")
        try:
            serving.shutdown()
        except Exception as error:  # whatever it was, leaving the session stops the rest
            stages.report("shutting down", f"not in order: {_sentence(error)}")


def _started(settings: Settings, console: Console) -> Serving:
    try:
        with Stages(console) as stages:
            stages.report("loading the libraries")
            from cluster.app import run  # Ray and Serve take seconds: not before the checks have passed

            return run(settings, stages.report)
    except Exception as error:
        if settings.log.level == "DEBUG":
            raise
        hint = "--set log.level=DEBUG shows the traceback, `moray doctor` checks this machine"
        raise StartError(f"the session did not start: {_sentence(error)}\n({hint})") from error


def detached(settings: Settings, arguments: Sequence[str], console: Console) -> None:
    """Start `moray up` with `arguments` as a daemon, follow it until it is ready. Raises StartError, its last words."""
    log = state_directory() / f"moray-{settings.gateway.port}.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-P", "-u", "-m", "ops.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        record = _follow(child, log, console)
    except KeyboardInterrupt:
        console.print("stopping it")
        child.terminate()
        child.wait()
        raise
    if record is None:
        last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        raise StartError(
            "\n".join(["the session ended before it was ready. Its last words:", *last, f"(all of it: {log})"])
        )
    _announce(console, settings, record.url or "", record.dashboard_url)
    port = settings.gateway.port
    console.print(f"It runs in the background: `moray down --port {port}` ends it, its log is {log}", soft_wrap=True)


def _follow(child: subprocess.Popen[bytes], log: Path, console: Console) -> Record | None:
    """Show the daemon's progress until it is ready; None if it ended instead."""
    with log.open(errors="replace") as lines:
        while True:
            ended = child.poll() is not None
            ready = next((r for r in running() if r.pid == child.pid and r.url), None)
            for line in lines:
                if line.startswith("["):
                    console.print(line.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
            if ended:
                return None
            if ready:
                return ready
            time.sleep(0.1)


def _wait(session: Session) -> str | None:
    """Until a signal (raises _Stopped), or a part without which nothing works has ended: then its name."""
    forever = threading.Event()
    while not forever.wait(1.0):
        if name := session.lost():
            return name
    return None


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped


def _on_signals(handler: object) -> None:
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, handler)  # type: ignore[arg-type]


def _kill_on_next_interrupt() -> None:
    """From here the next Ctrl-C is the kernel's: it ends us whatever we wait for, and the guardian stops the rest."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)  # `moray down` may say it twice; it is being done


def _announce(console: Console, settings: Settings, url: str, dashboard_url: str | None) -> None:
    body = {
        "model": settings.model.served_name,
        "messages": [{"role": "user", "content": "What is 27 + 48?"}],
        "max_tokens": 256,
    }
    console.print(f"\n[bold green]ready[/] {settings.model.served_name} at [bold]{url}[/] (OpenAI API under /v1)")
    console.print(f"Console: {url}/console")
    if dashboard_url:
        console.print(f"Ray's dashboard: {dashboard_url}")
    key = ' -H "Authorization: Bearer $MORAY_API_KEY"' if settings.gateway.keys_file else ""
    command = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    # On one line however narrow the terminal is: it is there to be copied.
    console.print(Text(f"\n  {command}\n"), soft_wrap=True, highlight=False)


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"

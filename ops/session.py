"""A local session: what `moray up` starts, what is known of it outside, and how it ends without a trace.

The leader (`moray up`) opens a Session; everything it starts from then on carries the session's mark, a guardian
watches the leader, and a small record in the state directory tells `moray status`, `ask` and `down` where it is.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from ops.errors import UserError
from ops.processes import GUARDIAN, MARKER, Process, children, identify, is_alive, keep_off, members, send, sweep

STATE_VARIABLE = "MORAY_STATE_DIR"
_SUFFIX = ".session.json"


class SessionError(UserError):
    """A session that cannot be started, found or stopped."""


class PortTakenError(SessionError):
    """Something else listens where this session would."""


class NoSessionError(SessionError):
    """Nothing runs (on that port)."""


@dataclass(frozen=True)
class Record:
    """What is known of a session outside its own processes."""

    id: str
    pid: int
    started: int  # of the leader, clock ticks after boot: tells it from a later process with the same pid
    host: str
    port: int
    config: str | None
    log: str | None
    url: str | None = None  # None until the first replica answers
    dashboard_url: str | None = None

    @property
    def leader(self) -> Process:
        return Process(self.pid, self.started)

    @property
    def file(self) -> Path:
        return state_directory() / f"{self.id}{_SUFFIX}"

    def write(self) -> None:
        """Atomically: a reader sees the old record or the new one."""
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)))
        part.replace(self.file)


def state_directory(env: Mapping[str, str] = os.environ) -> Path:
    """MORAY_STATE_DIR, or moray/ under XDG_STATE_HOME, or under ~/.local/state."""
    if chosen := env.get(STATE_VARIABLE):
        return Path(chosen)
    return Path(env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "moray"


class Session:
    """The leader's side. Use as a context: on leaving it, whatever is left of the session is stopped."""

    def __init__(self, host: str, port: int, config: Path | None) -> None:
        here = identify(os.getpid())
        if here is None:
            raise SessionError("/proc is not readable: a session cannot watch over its processes without it")
        log = Path("/proc/self/fd/1").resolve()
        self.record = Record(
            id=secrets.token_hex(6),
            pid=here.pid,
            started=here.started,
            host=host,
            port=port,
            config=str(config) if config else None,
            log=str(log) if log.is_file() else None,
        )
        self._guardian: subprocess.Popen[bytes] | None = None
        self._vital: dict[Process, str] = {}

    def __enter__(self) -> Session:
        # The guardian itself is unmarked, so that no sweep stops it. -I: the folder it starts in cannot shadow `ops`.
        leader = (self.record.id, str(self.record.pid), str(self.record.started), str(self.record.file))
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-m", GUARDIAN, *leader],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k != MARKER},
            start_new_session=True,
        )
        os.environ[MARKER] = self.record.id
        self.record.write()
        return self

    def ready(self, url: str, dashboard_url: str | None, vital: frozenset[str] = frozenset()) -> None:
        """Tell the world where it is. `vital`: names of direct children without which the session is lost."""
        self.record = replace(self.record, url=url, dashboard_url=dashboard_url)
        self.record.write()
        self._vital = {child: name for child, name in children(os.getpid()).items() if name in vital}

    def keep_off(self, cpu: int) -> None:
        """Leaves this CPU to the threads that have bound themselves to it; what is started later inherits that."""
        leader = self.record.leader
        while sum(keep_off(process.pid, cpu) for process in {leader, *members(self.record.id, leader)}):
            pass  # again: one of them may have started a process meanwhile

    def lost(self) -> str | None:
        """The name of a vital child that has ended, if any."""
        return next((name for child, name in self._vital.items() if not is_alive(child)), None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sweep(self.record.id, self.record.leader)
        os.environ.pop(MARKER, None)
        if self._guardian:
            with suppress(subprocess.TimeoutExpired):
                self._guardian.communicate(b"!", timeout=10)  # it stops what only it knows of
        self.record.file.unlink(missing_ok=True)


def running() -> list[Record]:
    """Sessions whose leader lives, by port. What a dead leader left, its record and its processes, is removed."""
    found = []
    for file in sorted(state_directory().glob(f"*{_SUFFIX}")):
        try:
            record = Record(**json.loads(file.read_text()))
        except FileNotFoundError:
            continue  # its session ended this moment
        except (OSError, ValueError, TypeError):
            file.unlink(missing_ok=True)  # not one of ours, or of another version: no process can be found by it
            continue
        if is_alive(record.leader):
            found.append(record)
        else:
            sweep(record.id)
            file.unlink(missing_ok=True)
    return sorted(found, key=lambda record: record.port)


def find(port: int | None) -> Record:
    """The session on `port`, or the only one. Raises NoSessionError, or SessionError if there are several."""
    records = running()
    if port is not None:
        records = [record for record in records if record.port == port]
    if not records:
        where = "" if port is None else f" on port {port}"
        raise NoSessionError(f"no session runs{where}; `moray up` starts one")
    if len(records) > 1:
        ports = ", ".join(str(record.port) for record in records)
        raise SessionError(f"{len(records)} sessions run, on ports {ports}: choose one with --port")
    return records[0]


def find_url(port: int | None) -> str:
    """Where the session that `find` finds answers. Raises as it does, and SessionError while the session starts."""
    if (url := find(port).url) is None:
        raise SessionError("the session is still starting; `moray status` tells when it is ready")
    return url


def stop(record: Record, report: Callable[[str], None], patience_s: float = 60.0) -> None:
    """End a session from outside: ask its leader, wait, stop what is left. Raises SessionError if something stays."""
    report("asking it to shut down")
    known = frozenset(members(record.id, record.leader))
    send(record.leader, signal.SIGTERM)
    begin = time.monotonic()
    said = 0
    while is_alive(record.leader) and (waited := time.monotonic() - begin) < patience_s:
        if waited >= said + 5:
            said = int(waited)
            report(f"waiting for {len(members(record.id, record.leader))} processes, {said} s")
        time.sleep(0.1)
    if is_alive(record.leader):
        report(f"it did not end in {patience_s:.0f} s: stopping its processes")
    left = sweep(record.id, record.leader, known)
    if left:
        raise SessionError(f"still there: pids {', '.join(str(p.pid) for p in left)}; try kill -9, or look at dmesg")
    record.file.unlink(missing_ok=True)


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Raises PortTakenError, with the holder if it can be found, unless `host:port` is free to listen on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier session that linger in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise PortTakenError(f"port {port} needs root: choose one above 1023 with {option}") from None
        except socket.gaierror:
            raise PortTakenError(f"{host} is no address of this machine: 127.0.0.1 or 0.0.0.0 are") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise PortTakenError(f"{host} is no address of this machine: 127.0.0.1 or 0.0.0.0 are") from None
            holder = _holder(port)
            raise PortTakenError(f"port {port} is in use{holder}: end that, or choose another with {option}") from None


def _holder(port: int) -> str:
    ours = next((record for record in running() if record.port == port), None)
    if ours:
        return f" by another Moray session (pid {ours.pid}, `moray down --port {port}` ends it)"
    import psutil

    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                with suppress(psutil.Error):
                    return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""

"""Engine cores' processes that start before there is a replica to start them, and import vLLM while Ray comes up.

A session's leader starts as many as it wants replicas. Each imports what its core is made of, then waits to be adopted:
a replica that starts finds them by the name of a socket in its environment, hands one its own environment, outputs and
EngineSpec, and has from there on what it would have had by starting it: the other end of its pipe, and a core that the
kernel kills with it. No GPU is touched before that, for nobody has said which. A replica that finds none, or none of
the environment that its core must be imported in, starts its core's process itself.

The socket is in Linux's abstract namespace (no file is left behind) and both ends ask the kernel whose the other is.
"""

import contextlib
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import NamedTuple

import msgspec

from experts.linux import die_with_peer
from replicas.engine_spec import EngineSpec

SPARES = "MORAY_SPARE_CORES"  # in the environment of a session's processes: the socket's name
PARENT = "MORAY_PARENT_PID"  # in the environment of a core's process: who started it
_EXIT_CODE = 49  # its place in /proc/PID/stat, counted from the field after the name (proc(5))


class Adoption(NamedTuple):
    """What a replica tells the spare core that it adopts."""

    spec: EngineSpec
    listen: str
    imported_in: Mapping[str, str]  # `core_environment(spec)`: what must have been there before torch was imported
    environment: Mapping[str, str]  # the whole of it, that included
    directory: str  # the working one


class AdoptedProcess:
    """As far as `EngineHost` needs it, what `subprocess.Popen` is for a child."""

    def __init__(self, pid: int, leash: socket.socket) -> None:
        self._pid = pid
        self._fd = os.pidfd_open(pid)
        self._leash = leash  # the core dies when this end closes, which is when this process ends

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, as Popen's; None: nobody knows it any more. Raises subprocess.TimeoutExpired."""
        if not select.select([self._fd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("an adopted engine core", timeout or 0.0)
        try:
            stat = Path(f"/proc/{self._pid}/stat").read_text(errors="replace")
        except OSError:
            return None  # its parent has collected it
        return os.waitstatus_to_exitcode(int(stat.rpartition(")")[2].split()[_EXIT_CODE]))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)


# -- the session's leader ---------------------------------------------------------------------------------------------


def start_spares(spec: EngineSpec, count: int, imported_in: Mapping[str, str]) -> "list[subprocess.Popen[bytes]]":
    """Starts so many spare cores for what will be started with this environment and `spec`.

    They are this process's children, and die with the thread that called this. Keep what is returned: a core that has
    died is to be left uncollected, so that its replica can still read what of.
    """
    name = f"moray-core-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"\0{name}")
        door.listen(64)
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "replicas.core_process", str(door.fileno()), msgspec.json.encode(spec).decode()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # until it is adopted: then it says what it has to say where a core would
                stderr=subprocess.DEVNULL,
                pass_fds=(door.fileno(),),
                env=os.environ | imported_in | {PARENT: str(os.getpid())},
                start_new_session=True,
            )
            for _ in range(count)
        ]
    os.environ[SPARES] = name
    return started


# -- the replica ------------------------------------------------------------------------------------------------------


def adopt(spec: EngineSpec, listen: str, imported_in: Mapping[str, str]) -> tuple[Pipe, AdoptedProcess] | None:
    """The next spare core, which begins to build. Blocking, while it imports yet. None: there is none (any more)."""
    if not (name := os.environ.get(SPARES)):
        return None
    with contextlib.ExitStack() as undo, contextlib.suppress(OSError, EOFError):
        door = undo.enter_context(socket.socket(socket.AF_UNIX))
        door.connect(f"\0{name}")
        if not _is_ours(door):
            return None
        leash, other_end = socket.socketpair()
        undo.enter_context(leash)
        with other_end:
            socket.send_fds(door, [b"\0"], [1, 2, other_end.fileno()])
        pipe = undo.enter_context(Pipe(door.detach()))
        pipe.send(Adoption(spec, listen, imported_in, os.environ | imported_in, str(Path.cwd())))
        if not pipe.poll(spec.start_timeout_s):
            return None
        adopted = AdoptedProcess(pipe.recv(), leash)
        undo.pop_all()
        return pipe, adopted
    return None


# -- the spare core ---------------------------------------------------------------------------------------------------


def wait_to_be_adopted(door_fd: int, preload: Callable[[], None]) -> tuple[Pipe, Adoption] | None:
    """Imports, then waits. None: it is of no use to the replica that came."""
    with socket.socket(fileno=door_fd) as door:
        preload()
        while True:
            replica, _ = door.accept()
            if _is_ours(replica):
                break
            replica.close()
    with contextlib.suppress(OSError, EOFError):  # the replica is gone
        _, fds, _, _ = socket.recv_fds(replica, 1, 3)
        for fd, standard in zip(fds[:2], (1, 2), strict=True):
            os.dup2(fd, standard)
            os.close(fd)
        die_with_peer(fds[2])
        pipe = Pipe(replica.detach())
        adoption = pipe.recv()
        if any(os.environ.get(name) != value for name, value in adoption.imported_in.items()):
            return None
        _become(adoption.environment)
        os.chdir(adoption.directory)
        pipe.send(os.getpid())
        return pipe, adoption
    return None


def _become(environment: Mapping[str, str]) -> None:
    """Changes only what differs: setproctitle, by which vLLM names its workers, looks for what the kernel has put."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})


def _is_ours(peer: socket.socket) -> bool:
    """Whether the other end is of this very user."""
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(uid == os.getuid())

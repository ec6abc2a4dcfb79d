"""What Linux offers to keep processes in order."""

import ctypes
import errno
import fcntl
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_VLLM_SEGMENTS = "vllm_dist_*"  # vLLM's CPU collectives (vllm/distributed/device_communicators/cpu_communicator.py)


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when the parent's process ends; exits at once if it has ended already.

    The signal comes when the *thread* that started us ends: start such children from a thread that lives on.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def die_with_peer(fd: int) -> None:
    """Has the kernel kill this process when the other end of this socket is closed; exits at once if it is already.

    As sure as `die_with_parent`, of a process that is not our parent: one that hangs or is stopped dies of it too.
    `fd` is an end of a socket pair on which nothing is ever sent; it stays open from here on.
    """
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([fd], [], [], 0)[0]:
        os._exit(1)


def name_thread(name: str) -> None:
    """Names the calling thread for `top -H` and `moray bench frontend`; the kernel keeps 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def yield_cpus(nice: int) -> None:
    """Lets others have the CPUs before this process, and before those that it starts.

    Call it in a process that has just become the leader of its Unix session: where the kernel shares CPUs among such
    sessions (sched_autogroup, as on most desktops), a nice value only counts within one, and this gives the session
    that value too.
    """
    os.nice(nice)
    autogroup = Path("/proc/self/autogroup")
    for _ in range(5 if autogroup.exists() else 0):
        try:
            autogroup.write_text(str(nice))
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:  # the kernel takes one such wish in 0.1 s, of all processes together
                return
            time.sleep(0.1)


def remove_unmapped_shared_memory(older_than_s: float = 1.0) -> None:
    """Unlinks the shared memory of vLLM workers that were killed: segments in /dev/shm that no process maps.

    A killed worker cannot unlink its own. `older_than_s` spares a segment that is just being made.
    """
    found = {p for p in Path("/dev/shm").glob(_VLLM_SEGMENTS) if time.time() - _created(p) > older_than_s}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if not found:
            return
        with suppress(OSError):  # it ended, or is somebody else's
            mapped = maps.read_text(errors="replace")
            found = {p for p in found if str(p) not in mapped}
    for segment in found:
        with suppress(OSError):
            segment.unlink()


def _created(path: Path) -> float:
    try:
        return path.stat().st_ctime
    except OSError:
        return time.time()

"""Finding and stopping every process of a session, whoever its parent is by now.

All that a session starts inherits MORAY_SESSION=<id>; a part of it that is to be found by itself, <id>-<part>. A child
whose parent was killed moves to init, but its /proc/<pid>/environ goes with it, so that it is found all the same.
Nothing beyond the standard library is imported here: the guardian runs this code, and it has to be small, quick to
start and independent of what it guards.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from experts.linux import remove_unmapped_shared_memory

MARKER = "MORAY_SESSION"
GUARDIAN = "ops.guardian"
_POLL_S = 0.05
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: int  # clock ticks after boot


@dataclass(frozen=True)
class _Stat:
    process: Process
    parent: int
    name: str


def identify(pid: int) -> Process | None:
    """The process that has this number now; None if there is none, or only a zombie that nobody has collected."""
    stat = _stat(pid)
    return stat.process if stat else None


def is_alive(process: Process) -> bool:
    return identify(process.pid) == process


def children(pid: int) -> dict[Process, str]:
    """Living direct children, with the name of each."""
    return {s.process: s.name for s in _all() if s.parent == pid}


def members(session: str, leader: Process | None = None) -> set[Process]:
    """The session's processes but the caller's own and guardians: those that carry its mark, and all their descendants.

    Descent is followed as well because a process may overwrite the memory that /proc shows as its environment (Ray's
    agents set their title there), and because the leader carries the mark in its children only.
    """
    stats = list(_all())
    mark = f"{MARKER}={session}".encode()
    found = {s.process.pid for s in stats if s.process == leader or _carries(s.process.pid, mark)}
    # A guardian is its leader's child, but ends by itself when the session has.
    guardians = {s.process.pid for s in stats if leader and s.parent == leader.pid and _is_guardian(s.process.pid)}
    while more := {s.process.pid for s in stats if s.parent in found} - found - guardians:
        found |= more
    return {s.process for s in stats if s.process.pid in found - {os.getpid()}}


def sweep(
    session: str,
    leader: Process | None = None,
    known: frozenset[Process] = frozenset(),
    grace_s: float = 2.0,
    kill_s: float = 3.0,
) -> set[Process]:
    """Stop the session's processes except the caller: SIGTERM, after `grace_s` SIGKILL.

    `known`: members seen earlier, which may have lost mark and parent since. Returns those that are still there
    `kill_s` later (a process can hang in the kernel); empty as a rule.
    """
    seen = set(known)

    def remaining() -> set[Process]:
        seen.update(members(session, leader))
        return {process for process in seen if is_alive(process)}

    left = _signal_until_gone(remaining, signal.SIGTERM, grace_s)
    if left:
        left = _signal_until_gone(remaining, signal.SIGKILL, kill_s)
    remove_unmapped_shared_memory(older_than_s=0)
    return left


def keep_off(pid: int, cpu: int) -> bool:
    """Has the process's threads run on other CPUs, but for those that run on this one only; whether any had to go."""
    moved = False
    with suppress(OSError):  # it ended, or is another user's
        for thread in (_PROC / str(pid) / "task").iterdir():
            with suppress(OSError):
                others = os.sched_getaffinity(int(thread.name)) - {cpu}
                if others and cpu in os.sched_getaffinity(int(thread.name)):
                    os.sched_setaffinity(int(thread.name), others)
                    moved = True
    return moved


def send(process: Process, sig: signal.Signals) -> None:
    """Signal exactly this process; nothing happens if it is gone, even if its number is in use again."""
    with suppress(ProcessLookupError, PermissionError):
        if is_alive(process):
            os.kill(process.pid, sig)


def _signal_until_gone(remaining: Callable[[], set[Process]], sig: signal.Signals, limit_s: float) -> set[Process]:
    """Each process gets the signal once; those that are started meanwhile (a supervisor's restarts) get theirs too."""
    end = time.monotonic() + limit_s
    told: set[Process] = set()
    while left := remaining():
        for process in left - told:
            send(process, sig)
        told |= left
        if time.monotonic() >= end:
            return remaining()
        time.sleep(_POLL_S)
    return set()


def _all() -> Iterator[_Stat]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            yield stat


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # "pid (name) state ppid …"; the name may hold spaces and brackets, so the fields are counted from its last bracket.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    if fields[0] in ("Z", "X"):
        return None
    return _Stat(Process(pid, int(fields[19])), int(fields[1]), head.partition("(")[2])


def _is_guardian(pid: int) -> bool:
    try:
        return f"\0{GUARDIAN}\0".encode() in (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def _carries(pid: int, mark: bytes) -> bool:
    """Whether it bears this mark, or that of a part of the session."""
    try:
        entries = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        return any(entry == mark or entry.startswith(mark + b"-") for entry in entries)
    except OSError:  # gone meanwhile, or another user's
        return False

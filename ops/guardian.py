"""What remains when `moray up` dies in whatever way, SIGKILL included, and then stops all that it had started.

    python -I -m ops.guardian SESSION LEADER_PID LEADER_STARTED RECORD

Its standard input is a pipe whose other end only the leader holds: the kernel closes that end when the leader is gone,
so no death is missed. A leader that has tidied up by itself says so with one byte. Meanwhile the guardian keeps in mind
who belongs to the session: once their parents are dead, Ray's agents bear no sign of it any more.
"""

import select
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from ops.processes import Process, is_alive, members, sweep

# A look costs some milliseconds; what is started and orphaned between two looks still carries its mark as a rule.
_LOOK_EVERY_S = 2.0


def main(session: str, leader_pid: str, leader_started: str, record: str) -> int:
    # It has to outlive whatever is sent to the session: a Ctrl-C to all, a `kill` of the group.
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)
    leader = Process(int(leader_pid), int(leader_started))
    known: frozenset[Process] = frozenset()
    while not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        known = frozenset(p for p in known | members(session, leader) if is_alive(p))
    orderly = bool(sys.stdin.buffer.read(1))
    if orderly:
        left = sweep(session, None, known - {leader}, grace_s=1.0)
    else:
        left = sweep(session, leader, known, grace_s=1.0)
    # HAProxy's configuration and sockets, see cluster.app.haproxy_files: what was killed could not tidy them up.
    shutil.rmtree(Path(tempfile.gettempdir()) / f"moray-haproxy-{leader_pid}", ignore_errors=True)
    if not left:
        Path(record).unlink(missing_ok=True)
    return len(left)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

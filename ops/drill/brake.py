"""A brake on one process: SIGSTOP and SIGCONT in turns, and SIGCONT at the end, whoever ends.

    python -P -m ops.drill.brake PID STARTED SECONDS STOPPED_S RUNNING_S

Started as a process of its own by whoever brakes. Its standard input is a pipe whose other end only that one holds: the
kernel closes it when the drill is gone, in whatever way, and then the process goes on. SECONDS 0: until then, or
until the process is gone. RUNNING_S 0: it is stopped all the time.

It says its process id when the process has been stopped for the first time, and closes its output when it lets go. It
is nobody's child: Ray kills those of a worker that ends, and a brake that is killed leaves its process stopped.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from ops.processes import Process, is_alive, send

_LOOK_EVERY_S = 0.2


def brake(process: Process, seconds: float, stopped_s: float, running_s: float) -> None:
    """Until `seconds` are over (0: for ever), the process is gone, or standard input ends."""
    end = time.monotonic() + seconds if seconds else float("inf")
    stopped, told = False, False
    try:
        while is_alive(process) and (left := end - time.monotonic()) > 0:
            if not stopped:
                send(process, signal.SIGSTOP)
            elif running_s:
                send(process, signal.SIGCONT)
            stopped = not (stopped and running_s)
            if not told:
                told = True
                sys.stdout.write(f"{os.getpid()}\n")
                sys.stdout.flush()
            turn = (stopped_s if stopped else running_s) if running_s else _LOOK_EVERY_S
            if select.select([sys.stdin], [], [], min(turn, left))[0]:
                return
    finally:
        send(process, signal.SIGCONT)


def main(pid: str, started: str, seconds: str, stopped_s: str, running_s: str) -> None:
    if os.fork():
        os._exit(0)
    # What is sent to the drill's group ends the drill, and its end ends us, in order.
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, _leave)
    brake(Process(int(pid), int(started)), float(seconds), float(stopped_s), float(running_s))


def _leave(*_: object) -> None:
    sys.exit(1)  # by way of `finally`


if __name__ == "__main__":
    main(*sys.argv[1:])

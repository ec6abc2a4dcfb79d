"""What does it to a process of this host: kills it, or has it stopped for as long as is wanted."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from ops.drill.choosing import DrillRefused
from ops.processes import Process, is_alive, send
from ops.victims import engine_here

_LET_GO_S = 10.0  # it takes a slice; to kill it would leave its victim stopped


class Hold(NamedTuple):
    """How a process is stopped: for so long in each turn, or all the time."""

    seconds: float = 0.0  # in all; 0: until it is let go, or gone
    stopped_s: float = 0.0
    running_s: float = 0.0  # 0: it never runs


class Arm(Protocol):
    """Reaches one replica's engine, wherever that is."""

    def kill(self) -> None:
        """SIGKILL."""

    def hold(self, how: Hold) -> None:
        """Stops it by SIGSTOP; returns when it has been stopped. It is let go when whoever holds the arm is gone."""

    def holds(self) -> bool:
        """Whether it is still being stopped."""

    def let_go(self) -> None:
        """SIGCONT, for good. Nothing happens if it was not held."""


class Brake:
    """A running `ops.drill.brake`: see there. It brakes once this is made."""

    def __init__(self, process: Process, how: Hold) -> None:
        """Raises DrillRefused: it does not brake."""
        arguments = (process.pid, process.started, *how)
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", "ops.drill.brake", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for us
        )
        assert started.stdin is not None and started.stdout is not None
        self._input, self._output = started.stdin, started.stdout
        self.pid = int(self._output.readline() or 0)
        started.wait()  # its parent, which has ended
        if not self.pid:
            why = "what was to stop it has ended" if is_alive(process) else "it was gone this moment"
            raise DrillRefused(f"process {process.pid} could not be stopped: {why}")

    def holds(self) -> bool:
        """Whether its process is still being stopped: its output ends when it is let go, or gone."""
        return not select.select([self._output], [], [], 0)[0]

    def let_go(self) -> None:
        """Returns when the process goes on."""
        self._input.close()
        select.select([self._output], [], [], _LET_GO_S)


class LocalArm:
    """`Arm` on an engine of this host; made where the engine runs."""

    def __init__(self, replica: Mapping[str, Any]) -> None:
        """`replica`: one of `/moray/status`. Raises victims.NotOurs."""
        self._process = engine_here(replica)
        self._brake: Brake | None = None

    def reaches(self) -> bool:
        """Whether the engine is on this host."""
        return self._process is not None

    def kill(self) -> None:
        if self._process is not None:
            send(self._process, signal.SIGKILL)

    def hold(self, how: Hold) -> None:
        if self._process is not None:
            self._brake = Brake(self._process, how)

    def holds(self) -> bool:
        return self._brake is not None and self._brake.holds()

    def let_go(self) -> None:
        if self._brake is not None:
            self._brake.let_go()
            self._brake = None

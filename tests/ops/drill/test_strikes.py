"""A brake stops a real process and always lets it go; an arm reaches engines of this host only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ops.drill.choosing import DrillRefused
from ops.drill.strikes import Brake, Hold, LocalArm
from ops.processes import Process, identify, is_alive
from ops.victims import engine_here, router_here

# Stands in for an engine core: listens, and counts time that it was let run.
ENGINE = """
import socket, time
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    while True:
        time.sleep(0.001)
"""
BRAKING = """
import sys, time
from ops.drill.choosing import DrillRefused
from ops.drill.strikes import Brake, Hold
from ops.processes import identify
brake = Brake(identify(int(sys.argv[1])), Hold(*map(float, sys.argv[2:])))
print("on", flush=True)
time.sleep(60)
"""


class Engine:
    def __init__(self) -> None:
        self.popen = subprocess.Popen([sys.executable, "-S", "-c", ENGINE], stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        self.port = int(self.popen.stdout.readline())
        found = identify(self.popen.pid)
        assert found is not None
        self.process: Process = found

    @property
    def state(self) -> str:
        """R, S: it runs; T: it is stopped."""
        return Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def replica(self, host: str = "127.0.0.1") -> dict[str, Any]:
        return {"id": "abc", "address": f"{host}:{self.port}", "engine": {"pid": self.popen.pid}}

    def states(self, seconds: float) -> list[str]:
        end, seen = time.monotonic() + seconds, []
        while time.monotonic() < end:
            seen.append(self.state)
            time.sleep(0.001)
        return seen


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.popen.kill()
    made.popen.communicate()


def test_it_is_stopped_until_it_is_let_go(engine: Engine, until: Callable[..., float]) -> None:
    brake = Brake(engine.process, Hold())
    until(lambda: engine.state == "T")
    assert brake.holds()
    brake.let_go()
    assert engine.state != "T" and not brake.holds()
    brake.let_go()


def test_it_goes_on_by_itself_when_the_time_is_over(engine: Engine, until: Callable[..., float]) -> None:
    brake = Brake(engine.process, Hold(0.5))
    until(lambda: engine.state == "T")
    until(lambda: not brake.holds())
    assert engine.state != "T"
    brake.let_go()


def test_a_slowed_one_runs_in_turns(engine: Engine) -> None:
    brake = Brake(engine.process, Hold(0.0, 0.01, 0.01))
    seen = engine.states(1.0)
    brake.let_go()
    turns = sum((one == "T") != (other == "T") for one, other in pairwise(seen))
    assert turns > 10
    assert engine.state != "T" and is_alive(engine.process)


def test_a_brake_ends_with_its_victim(engine: Engine, until: Callable[..., float]) -> None:
    brake = Brake(engine.process, Hold())
    engine.popen.kill()
    engine.popen.wait()
    until(lambda: not brake.holds())
    brake.let_go()


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("turns", [("0", "0", "0"), ("0", "0.01", "0.01")], ids=["frozen", "slowed"])
def test_it_goes_on_however_the_drill_ends(engine: Engine, until: Callable[..., float], sig: int, turns: Any) -> None:
    drill = subprocess.Popen([sys.executable, "-c", BRAKING, str(engine.popen.pid), *turns], stdout=subprocess.PIPE)
    assert drill.stdout is not None
    drill.stdout.readline()
    drill.send_signal(sig)
    drill.wait()
    until(lambda: "T" not in engine.states(0.1))
    drill.stdout.close()


def test_a_brake_that_does_not_brake_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        with pytest.raises(DrillRefused, match="what was to stop it has ended"):
            Brake(engine.process, Hold())
    engine.popen.kill()
    engine.popen.wait()
    with pytest.raises(DrillRefused, match="gone this moment"):
        Brake(engine.process, Hold())


def test_the_brake_lets_go_when_it_is_told_to_end(engine: Engine, until: Callable[..., float]) -> None:
    brake = Brake(engine.process, Hold())
    os.kill(brake.pid, signal.SIGTERM)
    until(lambda: not brake.holds())
    assert engine.state != "T"
    brake.let_go()


def test_an_engine_is_one_that_listens_on_its_port(engine: Engine) -> None:
    assert engine_here(engine.replica()) == engine.process
    assert engine_here(engine.replica("192.0.2.1")) is None  # another host's, with the same process id here
    assert engine_here(engine.replica() | {"address": "127.0.0.1:1"}) is None
    assert engine_here(engine.replica() | {"engine": {"pid": os.getpid()}}) is None
    engine.popen.kill()
    engine.popen.wait()
    assert engine_here(engine.replica()) is None


def test_a_router_is_one_that_bears_its_title(engine: Engine) -> None:
    assert router_here({"router": {"pid": engine.popen.pid}}) is None
    code = "import time; print(flush=True); time.sleep(60)"
    titled = subprocess.Popen(["ray::Router.status", "-S", "-c", code], executable=sys.executable, stdout=-1)
    try:
        titled.stdout.readline()  # type: ignore[union-attr]
        assert router_here({"router": {"pid": titled.pid}}) == identify(titled.pid)
    finally:
        titled.kill()
        titled.communicate()


def test_an_arm_kills_and_holds_what_it_reaches(engine: Engine, until: Callable[..., float]) -> None:
    arm = LocalArm(engine.replica())
    assert arm.reaches() and not arm.holds()
    arm.hold(Hold())
    until(lambda: engine.state == "T")
    assert arm.holds()
    arm.let_go()
    assert not arm.holds() and engine.state != "T"
    arm.kill()
    assert engine.popen.wait(5) == -signal.SIGKILL


def test_an_arm_does_nothing_to_what_it_does_not_reach(engine: Engine) -> None:
    arm = LocalArm(engine.replica("192.0.2.1"))
    assert not arm.reaches()
    arm.kill()
    arm.hold(Hold())
    arm.let_go()
    assert engine.state != "T" and is_alive(engine.process)

"""Real processes for the tests of sessions: quick to start, and none outlives its test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops import processes

# Stands in for Ray, Serve and the replicas: a child that obeys SIGTERM, one that left for a session of its own
# with its parent gone (as HAProxy does when its proxy is killed), one named as Ray's raylet; FAKE_DEAF: one that
# ignores SIGTERM.
FAKE_APP = r"""
import os, subprocess, sys, threading, time, types
from dataclasses import dataclass

SLEEP = "import time; time.sleep(300)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(300)"
ORPHAN = "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', %r], start_new_session=True)" % SLEEP

@dataclass
class Serving:
    url: str
    dashboard_url: str | None
    engine_cpu: int | None
    def shutdown(self):
        print("orderly shutdown", flush=True)
        time.sleep(float(os.environ.get("FAKE_SHUTDOWN_S", "0")))

def run(settings, report):
    report("ray", "pretending")
    if os.environ.get("FAKE_FAILS"):
        print("a line of the engine's log", flush=True)
        raise RuntimeError("no replica came up")
    subprocess.Popen([sys.executable, "-S", "-c", SLEEP])
    if os.environ.get("FAKE_DEAF"):
        subprocess.Popen([sys.executable, "-S", "-c", DEAF], stdout=subprocess.PIPE).stdout.readline()
    subprocess.run([sys.executable, "-S", "-c", ORPHAN])
    raylet = os.path.join(os.environ["FAKE_DIRECTORY"], "raylet")
    if not os.path.exists(raylet):
        os.symlink("/bin/sleep", raylet)
    subprocess.Popen([raylet, "300"])
    report("replica", "loading")
    time.sleep(float(os.environ.get("FAKE_START_S", "0")))
    return Serving(f"http://127.0.0.1:{settings.gateway.port}", None, None)

if sys.argv[0] == "-c" or "FAKE_DIRECTORY" not in os.environ:
    pass  # one of the children above
else:
    app = types.ModuleType("cluster.app")
    app.run, app.Serving = run, Serving
    sys.modules["cluster.app"] = app
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of the test's own; what a failed test leaves of a session is stopped."""
    monkeypatch.setenv("MORAY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv(processes.MARKER, raising=False)
    marker = f"test-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("PYTEST_MORAY", marker)
    yield tmp_path / "state"
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "environ").read_text(errors="replace"):
                os.kill(int(entry.name), 9)
        except OSError:
            continue


@pytest.fixture
def fake_app(tmp_path: Path) -> dict[str, str]:
    """Environment of a `moray` with the fake application behind it."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text(FAKE_APP)
    return {"PYTHONPATH": str(fake), "FAKE_DIRECTORY": str(fake)}


@pytest.fixture
def moray(fake_app: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Start `moray …` with the fake application behind it."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ops.cli", *arguments],
            env=os.environ | fake_app | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def until() -> Callable[..., float]:
    """Wait for a condition; the seconds that it took."""

    def wait(condition: Callable[[], object], limit_s: float = 10.0) -> float:
        begin = time.monotonic()
        while not condition():
            assert time.monotonic() - begin < limit_s, "it did not come true in time"
            time.sleep(0.02)
        return time.monotonic() - begin

    return wait

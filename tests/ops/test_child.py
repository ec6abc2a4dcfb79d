"""A process that answers a line with a line: what happens when it ends, hangs, or its parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops.child import Child, Died
from ops.processes import identify, is_alive

ANSWERING = """
import subprocess, sys, time
from experts.linux import die_with_parent
die_with_parent(int(sys.argv[-1]))
grandchild = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
for line in sys.stdin:
    if line == "end\\n":
        sys.exit("no more memory")
    if line == "hang\\n":
        time.sleep(60)
    print(line.strip(), grandchild.pid, flush=True)
"""
OWNER = """
import os, sys
from ops.child import Child
child = Child("the child", "answering", [], dict(os.environ))
print(child.ask(b"pid", 20).split()[1].decode(), child._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "answering.py").write_text(ANSWERING)
    return os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}


@pytest.fixture
def child(env: dict[str, str], tmp_path: Path) -> Iterator[Child]:
    made = Child("the child", "answering", [], env, tmp_path / "log")
    yield made
    made.end()


def test_it_answers_and_takes_what_it_started_with_it(child: Child, until: Callable[..., float]) -> None:
    said, grandchild = child.ask(b"hello", 20).split()
    assert said == b"hello"
    process = identify(int(grandchild))
    assert process is not None and is_alive(process)
    child.end()
    child.end()
    until(lambda: not is_alive(process))


def test_one_that_ends_is_told_with_its_last_words(child: Child, tmp_path: Path) -> None:
    for _ in range(2):  # while it is asked, and when it has ended
        with pytest.raises(Died, match="the child's process ended: no more memory"):
            child.ask(b"end", 20)
    assert "no more memory" in (tmp_path / "log").read_text()


def test_one_that_hangs_is_given_up(child: Child) -> None:
    child.ask(b"hello", 20)
    with pytest.raises(Died, match="gave no answer within 0 s"):
        child.ask(b"hang", 0.2)


def test_it_does_not_outlive_its_parent(env: dict[str, str], until: Callable[..., float]) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdin is not None
    grandchild, pid = map(int, owner.stdout.readline().split())
    process = identify(pid)
    assert process is not None
    owner.kill()
    owner.communicate()
    until(lambda: not is_alive(process))
    os.kill(grandchild, signal.SIGKILL)  # what it had started was its own affair

"""A bench's session lives no longer than the bench, however that ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops import processes
from ops.own_session import NotStarted, own_session

OWNER = """
import os, time
os.environ.update(%r)
from ops.own_session import own_session
with own_session({}) as own:
    print(own.id, own.env["MORAY_STATE_DIR"], flush=True)
    time.sleep(60)
"""


@pytest.fixture
def fake(monkeypatch, fake_app):
    for name, value in fake_app.items():
        monkeypatch.setenv(name, value)


def test_it_is_down_when_the_context_is_left(fake):
    with own_session({"log.level": "ERROR"}) as own:
        assert own.url == f"http://127.0.0.1:{own.port}" and processes.members(own.id)
        assert own.moray("config").returncode == 0
    assert not processes.members(own.id)
    assert not Path(own.env["MORAY_STATE_DIR"]).exists()


def test_a_killed_owner_leaves_no_process_and_no_file(until, fake_app):
    owner = subprocess.Popen([sys.executable, "-c", OWNER % fake_app], stdout=subprocess.PIPE, text=True)
    session, state = owner.stdout.readline().split()
    assert processes.members(session) and Path(state).exists()
    owner.kill()
    owner.communicate()
    until(lambda: not processes.members(session) and not Path(state).exists())


def test_an_owner_killed_during_the_start_leaves_nothing_either(until, fake_app, tmp_path):
    environment = fake_app | {"FAKE_START_S": "1", "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", OWNER % environment], env=os.environ | environment)
    until(lambda: list(tmp_path.glob("moray-own-*/*.session.json")))
    owner.kill()
    owner.communicate()
    began = time.monotonic()
    until(lambda: not list(tmp_path.glob("moray-own-*")))
    assert time.monotonic() - began > 0.3  # it was starting indeed


def test_a_session_that_fails_tells_its_last_words(fake, monkeypatch):
    monkeypatch.setenv("FAKE_FAILS", "1")
    with pytest.raises(NotStarted, match="RuntimeError: no replica came up"), own_session({}):
        pass

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from ops import processes, session
from ops.session import NoSessionError, PortTakenError, Record, SessionError

# A leader with a child that obeys, an orphan and, if asked, a child that ignores SIGTERM; says so, then waits.
LEADER = """
import subprocess, sys, time
from ops.session import Session
sleep = "import time; time.sleep(60)"
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); " + sleep
with Session("127.0.0.1", int(sys.argv[1]), None) as s:
    subprocess.Popen([sys.executable, "-S", "-c", sleep])
    if sys.argv[2:]:
        subprocess.Popen([sys.executable, "-S", "-c", deaf], stdout=subprocess.PIPE).stdout.readline()
    subprocess.run([sys.executable, "-S", "-c",
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {sleep!r}], start_new_session=True)"])
    s.ready("http://127.0.0.1:" + sys.argv[1], None)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def leader():
    started = []

    def start(port=8000, *deaf):
        process = subprocess.Popen(
            [sys.executable, "-c", LEADER, str(port), *deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def of(record):
    """The session's processes but its leader (and never its guardian, which carries no mark)."""
    return processes.members(record.id)


def test_a_session_is_found_while_its_leader_lives_and_leaves_nothing(leader, state):
    process = leader(8123)
    record = session.find(None)
    assert (record.pid, record.port, record.url) == (process.pid, 8123, "http://127.0.0.1:8123")
    assert len(of(record)) == 2
    process.communicate("")
    assert process.returncode == 0
    assert of(record) == set() and session.running() == [] and list(state.iterdir()) == []


def test_all_is_gone_five_seconds_after_the_leader_was_killed(leader, state, until):
    process = leader(8000, "deaf")
    record = session.find(None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert until(lambda: not of(record), 5.0) < 5.0
    until(lambda: not list(state.iterdir()))


def test_a_leader_killed_with_its_guardian_leaves_a_stale_record_that_the_next_look_tidies_up(leader, state):
    process = leader()
    record = session.find(None)
    guardian = next(p for p, _ in processes.children(process.pid).items() if p not in of(record))
    processes.send(guardian, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(of(record)) == 2
    assert session.running() == []
    assert of(record) == set() and list(state.iterdir()) == []


def test_stop_ends_the_leader_and_what_it_does_not_stop_itself(leader, state):
    process = leader()
    record = session.find(None)
    said = []
    session.stop(record, said.append)
    assert process.wait(1) == -signal.SIGTERM
    assert said == ["asking it to shut down"]
    assert of(record) == set() and list(state.iterdir()) == []


def test_several_sessions_need_a_port_to_choose(leader):
    leader(8001)
    leader(8002)
    with pytest.raises(SessionError, match=r"2 sessions run, on ports 8001, 8002: choose one with --port"):
        session.find(None)
    assert session.find(8002).port == 8002
    with pytest.raises(NoSessionError, match="no session runs on port 8003"):
        session.find(8003)


def test_no_session():
    with pytest.raises(NoSessionError, match="no session runs; `moray up` starts one"):
        session.find(None)


def test_unreadable_records_are_dropped(state):
    state.mkdir()
    (state / "x.session.json").write_text("{")
    (state / "y.session.json").write_text(json.dumps({"id": "y", "of": "another version"}))
    assert session.running() == []
    assert list(state.iterdir()) == []


def test_a_reused_pid_is_not_the_leader(state):
    here = processes.identify(os.getpid())
    Record("dead", here.pid, here.started - 100, "127.0.0.1", 8000, None, None).write()
    assert session.running() == []


def test_the_state_directory_follows_the_environment(tmp_path):
    assert str(session.state_directory({"MORAY_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"})) == "/a"
    assert str(session.state_directory({"XDG_STATE_HOME": "/b"})) == "/b/moray"
    assert str(session.state_directory({})).endswith("/.local/state/moray")


def test_a_taken_port_is_refused_with_its_holder_and_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"port {port} is in use by .*\(pid {os.getpid()}\).*--port"):
            session.check_port("127.0.0.1", port)
    session.check_port("127.0.0.1", port)


def test_a_port_held_by_another_session_names_it(leader):
    process = leader(8200)
    with socket.create_server(("127.0.0.1", 8200)), pytest.raises(PortTakenError, match=f"session .pid {process.pid}"):
        session.check_port("127.0.0.1", 8200)


def test_an_address_that_is_not_here_is_refused():
    with pytest.raises(PortTakenError, match=r"203\.0\.113\.1 is no address of this machine"):
        session.check_port("203.0.113.1", 8000)

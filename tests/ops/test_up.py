"""`moray up` and `moray down` as processes, with small children in the place of Ray."""

import signal
import socket

import pytest

from ops import processes, session


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.fixture
def ready(moray, port):
    """A session that answers: its process and its record."""

    def start(**environment):
        process = moray("up", "--port", port, **environment)
        said = []
        while not said or "curl" not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], process.stderr.read()
        return process, session.find(None), "".join(said)

    return start


def leftovers(record):
    return processes.members(record.id) | ({record.leader} if processes.is_alive(record.leader) else set())


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_shuts_down_in_order(ready, sig, port):
    process, record, said = ready()
    assert said.index("replica: loading") < said.index(f"ready tiny-r1 at http://127.0.0.1:{port}")
    process.send_signal(sig)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert out.index("shutting down") < out.index("orderly shutdown") and out.endswith("stopped\n")
    assert leftovers(record) == set()


def test_a_signal_during_the_start_stops_what_there_is(moray, until, port):
    process = moray("up", "--port", port, FAKE_START_S="60")
    until(lambda: session.running() and len(processes.members(session.running()[0].id)) == 3)
    record = session.running()[0]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "") and out.endswith("stopped\n")
    assert leftovers(record) == set()


def test_a_second_interrupt_kills_at_once(ready, until):
    process, record, _ = ready(FAKE_SHUTDOWN_S="60")
    process.send_signal(signal.SIGINT)
    assert any("orderly shutdown" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == -signal.SIGINT
    until(lambda: not leftovers(record), 5.0)
    process.communicate()


def test_sigkill_of_the_leader_leaves_nothing(ready, until):
    process, record, _ = ready(FAKE_DEAF="1")
    process.kill()
    process.communicate()
    assert until(lambda: not leftovers(record), 5.0) < 5.0


def test_the_session_ends_when_rays_raylet_does(ready):
    process, record, _ = ready()
    raylet = next(p for p, name in processes.children(process.pid).items() if name == "raylet")
    processes.send(raylet, signal.SIGKILL)
    _, err = process.communicate(timeout=15)
    assert process.returncode == 1 and "Ray's raylet has ended" in err and "Traceback" not in err
    assert leftovers(record) == set()


def test_down_ends_a_session_started_with_detach(moray, port):
    up = moray("up", "--port", port, "--detach")
    out, err = up.communicate(timeout=15)
    assert (up.returncode, err) == (0, "")
    assert "replica: loading" in out and f"at http://127.0.0.1:{port}" in out and f"moray down --port {port}" in out
    record = session.find(int(port))
    assert record.log and len(processes.members(record.id)) == 3
    down = moray("down")
    assert down.communicate(timeout=10)[0].endswith("stopped\n") and down.returncode == 0
    assert leftovers(record) == set()


def test_detach_shows_the_last_words_of_a_session_that_fails(moray, port):
    up = moray("up", "--port", port, "--detach", FAKE_FAILS="1")
    _, err = up.communicate(timeout=15)
    assert up.returncode == 1 and "Traceback" not in err
    assert "a line of the engine's log" in err and "RuntimeError: no replica came up" in err
    assert session.running() == []


def test_a_failed_start_is_one_message_or_a_traceback_on_request(moray, port):
    up = moray("up", "--port", port, FAKE_FAILS="1")
    _, err = up.communicate(timeout=15)
    assert up.returncode == 1
    assert (
        err.startswith("error: the session did not start: RuntimeError: no replica came up") and "Traceback" not in err
    )
    debug = moray("up", "--port", port, "--set", "log.level=DEBUG", FAKE_FAILS="1")
    assert "Traceback" in debug.communicate(timeout=15)[1]


def test_a_taken_port_is_found_before_anything_starts(moray, state):
    with socket.create_server(("127.0.0.1", 0)) as held:
        up = moray("up", "--port", str(held.getsockname()[1]))
        out, err = up.communicate(timeout=15)
    assert (up.returncode, out) == (1, "") and "is in use by" in err and "--port" in err
    assert not state.exists()


def test_a_model_that_cannot_be_served_is_found_before_anything_starts(moray, tmp_path, port):
    up = moray("up", "--port", port, "--model", str(tmp_path / "nowhere"))
    _, err = up.communicate(timeout=15)
    assert up.returncode == 1 and f"the model directory {tmp_path}/nowhere does not exist" in err


def test_weights_that_vllm_makes_up_need_no_files(tmp_path, port):
    from cluster.config import load
    from ops.bench.gpu.checkpoint import tier, write
    from ops.up import StartError, check_before_start

    model = write(tmp_path / "model", tier("32b") | {"vocab_size": 20_000})
    given = {"model.path": str(model), "gateway.port": port, "ray.dashboard": "false"}
    with pytest.raises(StartError, match="holds no weights"):
        check_before_start(load(None, {}, given).settings, False)
    check_before_start(load(None, {}, given | {"engine.extra.load_format": "dummy"}).settings, False)

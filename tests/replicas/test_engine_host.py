"""One contract for a core in a thread and a core in a process of its own; then what only a process can do."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from scripted_core import PATH, Client, Hosted, alive, continuation, spec, until

from experts.vllm_plugin import EXPERT_PLAN, OF_A_REPLICA
from replicas.core import CoreLoad
from replicas.core_host import Ready
from replicas.engine_host import EngineFailed, EngineHost, core_environment
from replicas.engine_spec import EngineSpec
from replicas.messages import Probe
from replicas.spare_core import SPARES, start_spares

Child = subprocess.Popen[bytes]

EVENT_LOOPS = ["uvloop"]  # Ray Serve's; the connections' own tests take both


@pytest.fixture(params=["thread", "process", "spare"])
def kind(request: pytest.FixtureRequest, spares: Callable[[int], object]) -> str:
    """Of the core's host; a spare is a process that is there already."""
    if request.param == "spare":
        spares(1)
    return "thread" if request.param == "thread" else "process"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core's process finds the scripted core, and takes nothing else of ours."""
    monkeypatch.setenv("PYTHONPATH", PATH)


@pytest.fixture
def spares(importable: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[Child]]]:
    """Starts spare cores that this process's hosts find."""
    started: list[Child] = []
    monkeypatch.setenv(SPARES, "")

    def start(count: int) -> list[Child]:
        started.extend(start_spares(spec("process"), count, core_environment(spec("process"))))
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


class Started:
    """An engine host and all that it told."""

    def __init__(self, host: EngineHost, ready: Ready) -> None:
        self.host, self.ready = host, ready
        self.loads: list[CoreLoad] = []
        self.failures: list[EngineFailed] = []
        host.watch(self.loads.append, self.failures.append)


@pytest.fixture
def start() -> Iterator[object]:
    hosts: list[EngineHost] = []

    async def start(kind: str, **script: object) -> Started:
        host, ready = await EngineHost.start(spec(kind, **script), "127.0.0.1")
        hosts.append(host)
        return Started(host, ready)

    yield start
    for host in hosts:
        host.kill()


async def client_of(started: Started) -> Client:
    hosted = Hosted.__new__(Hosted)
    hosted.ready = started.ready
    return await Client.to(hosted)


async def test_it_serves_and_reports_its_load(start, kind):
    started = await start(kind, max_num_seqs=3, step_s=0.005)
    assert started.ready.capacity.max_num_seqs == 3
    assert (started.ready.pid == os.getpid()) is (kind == "thread")
    client = await client_of(started)
    for n in range(5):
        client.add(f"r{n}", [n], max_tokens=20)
    await until(lambda: len(client.finished) == 5)
    assert client.tokens == {f"r{n}": continuation([n], 20) for n in range(5)}
    await until(lambda: started.loads and started.loads[-1][:3] == (0, 0, 0.0))
    assert any(load.running == 3 and load.waiting == 2 for load in started.loads)
    assert started.failures == [] and started.host.failure is None


async def test_stopping_is_no_failure_and_may_be_asked_twice(start, kind):
    started = await start(kind)
    client = await client_of(started)
    begin = time.monotonic()
    await asyncio.to_thread(started.host.stop)
    assert time.monotonic() - begin < 3
    await asyncio.wait_for(client.lost.wait(), 2)
    started.host.stop()
    started.host.kill()
    assert kind == "thread" or not alive(started.ready.pid)
    await asyncio.sleep(0.1)
    assert started.failures == [] and started.host.failure is None


async def test_a_core_that_dies_is_told_once_with_its_reason(start, kind):
    started = await start(kind, fail_at_step=2)
    client = await client_of(started)
    client.add("r", [1], max_tokens=5)
    await until(lambda: started.failures)
    await asyncio.wait_for(client.lost.wait(), 2)
    await asyncio.sleep(0.1)
    (failure,) = started.failures
    assert str(failure) == "RuntimeError: the script says so" and "in step" in failure.detail
    assert started.host.failure is failure


async def test_a_core_that_cannot_load_says_why(start, kind):
    with pytest.raises(EngineFailed, match="ValueError: no such model") as caught:
        await start(kind, fail_to_load="no such model")
    assert "Traceback" in caught.value.detail


async def test_a_core_that_loads_for_too_long_is_given_up(start, kind):
    before, others = threads(), children()
    begin = time.monotonic()
    with pytest.raises(EngineFailed, match=r"not ready within 0.2 s; .* replicas.start_timeout_s"):
        await start(kind, start_timeout_s=0.2, load_s=0.8)
    assert time.monotonic() - begin < 0.7
    # Nothing goes on behind our back: the core, should it load after all, finds its replica's end closed.
    await asyncio.get_running_loop().shutdown_default_executor()
    assert time.monotonic() - begin < 0.75
    await until(lambda: threads() <= before)
    assert set(children()) <= set(others)  # a spare has not waited for it


async def test_a_start_that_is_cancelled_leaves_nothing(start, kind):
    others = children()
    task = asyncio.ensure_future(start(kind, load_s=1.0))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(children()) <= set(others)  # a spare has not waited for it


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def children() -> list[int]:
    """Processes of ours that live."""
    found = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [int(pid) for pid in found if alive(int(pid))]


# -- only a process ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [False, True])
async def test_a_killed_process_is_told_with_its_signal(start, spares, spare):
    spares(int(spare))
    started = await start("process")
    client = await client_of(started)
    os.kill(started.ready.pid, signal.SIGKILL)
    await until(lambda: started.failures)
    assert str(started.failures[0]) == "the engine core's process ended by signal SIGKILL"
    await asyncio.wait_for(client.lost.wait(), 2)


async def test_a_process_that_ends_while_loading_is_told_with_its_exit_code(monkeypatch):
    broken = msgspec.structs.replace(spec("process"), core="os:_exit")  # builds a core by _exit(spec): a TypeError
    with pytest.raises(EngineFailed, match="TypeError"):
        await EngineHost.start(broken, "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with pytest.raises(EngineFailed, match="No module named 'scripted_core'"):
        await EngineHost.start(spec("process"), "127.0.0.1")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineFailed, match="process ended with exit code 1"):
        await EngineHost.start(spec("process"), "127.0.0.1")


@pytest.mark.parametrize("spare", [False, True])
async def test_a_process_deaf_to_stop_is_killed(start, spares, spare, monkeypatch):
    spares(int(spare))
    monkeypatch.setattr("replicas.engine_host.STOP_GRACE_S", 0.3)
    started = await start("process", step_s=30.0)
    client = await client_of(started)
    client.add("r", [1], max_tokens=5)
    await asyncio.sleep(0.2)
    begin = time.monotonic()
    await asyncio.to_thread(started.host.stop)
    assert time.monotonic() - begin < 2 and not alive(started.ready.pid)


async def test_ctrl_c_is_the_replicas_affair(start):
    started = await start("process")
    os.kill(started.ready.pid, signal.SIGINT)
    client = await client_of(started)
    client.add("r", [1], max_tokens=5)
    await until(lambda: "r" in client.finished)


REPLICA = """
import asyncio, sys, time, msgspec
from replicas.engine_host import EngineHost
from replicas.engine_spec import EngineSpec

async def main():
    host, ready = await EngineHost.start(msgspec.json.decode(sys.argv[1], type=EngineSpec), "127.0.0.1")
    print(ready.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("spare", [False, True])
def test_a_core_does_not_outlive_its_replica(spares, spare):
    """Not even while it is in a step that never ends, deaf to the pipe."""
    waiting = {process.pid for process in spares(int(spare))}
    arguments = [sys.executable, "-c", textwrap.dedent(REPLICA), msgspec.json.encode(spec("process")).decode()]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdout is not None
        core = int(replica.stdout.readline())
        assert alive(core) and core != replica.pid and (core in waiting) is spare
        os.kill(core, signal.SIGSTOP)  # it can read no pipe; only the kernel can end it
        replica.kill()
        end = time.monotonic() + 2
        while alive(core) and time.monotonic() < end:
            time.sleep(0.02)
        died = not alive(core)
        if not died:
            os.kill(core, signal.SIGKILL)
    assert died


# -- spare cores -------------------------------------------------------------------------------------------------------


async def test_each_spare_core_is_adopted_once_and_then_cores_are_started(spares, start):
    waiting = spares(2)
    hosts = [await start("process") for _ in range(3)]
    pids = [host.ready.pid for host in hosts]
    assert {process.pid for process in waiting} == set(pids[:2])
    assert pids[2] not in pids[:2] and alive(pids[2])
    for host in hosts:
        client = await client_of(host)
        client.add("r", [1], max_tokens=5)
        await until(lambda: "r" in client.finished)  # noqa: B023


async def test_a_spare_core_takes_the_replicas_environment_outputs_and_spec(spares, start, monkeypatch, capfd):
    spares(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # Ray says it to the replica, after the spare has started
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.delenv("PYTHONPATH")
    started = await start("process", max_num_seqs=7, shout=True)
    assert started.ready.capacity.max_num_seqs == 7
    said = json.loads(capfd.readouterr().out)
    assert said["CUDA_VISIBLE_DEVICES"] == "3" and "PYTHONPATH" not in said
    assert said | core_environment(spec("process")) == said


async def test_a_spare_core_that_imported_in_another_environment_is_not_adopted(spares, start):
    waiting = spares(1)
    other = msgspec.structs.replace(spec("process"), expert_plan="/plan.json")
    host, ready = await EngineHost.start(other, "127.0.0.1")
    try:
        assert ready.pid != waiting[0].pid
        assert waiting[0].wait(5) in (0, -signal.SIGKILL)  # of itself, or of its end of the replica
    finally:
        host.kill()


async def test_without_a_spare_core_that_lives_a_core_is_started(spares, start, monkeypatch):
    [dead] = spares(1)
    dead.kill()
    dead.wait()
    assert (await start("process")).ready.pid != dead.pid


async def test_spare_cores_wait_for_the_user_who_started_them_only(spares, start, monkeypatch):
    [waiting] = spares(1)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert (await start("process")).ready.pid != waiting.pid


def test_spare_cores_end_with_the_process_that_started_them():
    leader = """
        import sys, time
        from replicas.spare_core import start_spares
        from scripted_core import spec
        print(*(process.pid for process in start_spares(spec("process"), 2, {})), flush=True)
        time.sleep(60)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(leader)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        pids = [int(pid) for pid in running.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        running.kill()
    end = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(alive, pids))


# -- the environment ---------------------------------------------------------------------------------------------------


def cpus_of_threads(pid: int, name: str) -> dict[int, set[int]]:
    tasks = {int(task.name): (task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}
    return {thread: os.sched_getaffinity(thread) for thread, known_as in tasks.items() if known_as == f"{name}\n"}


def environment(**changes: object) -> dict[str, str]:
    return core_environment(msgspec.structs.replace(spec(), **changes))


def test_workers_are_told_to_count_experts_and_of_a_plan():
    assert environment()[OF_A_REPLICA] == "1"
    assert environment(expert_plan="/plan.json")[EXPERT_PLAN] == "/plan.json"
    assert environment()[EXPERT_PLAN] == "", "whatever this process itself was told"


def test_a_gpus_memory_is_measured_once(monkeypatch):
    assert environment(device="cuda")["VLLM_ENABLE_STARTUP_PLAN"] == "1"
    assert "VLLM_ENABLE_STARTUP_PLAN" not in environment(device="cpu")
    assert "VLLM_ENABLE_STARTUP_PLAN" not in environment(device="cuda", shards=4), "ranks may not agree"
    monkeypatch.setenv("VLLM_ENABLE_STARTUP_PLAN", "0")
    assert environment(device="cuda")["VLLM_ENABLE_STARTUP_PLAN"] == "0", "somebody chose"


def test_each_shard_of_a_cpu_core_gets_cpus_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    assert environment(device="cpu", shards=2)["VLLM_CPU_OMP_THREADS_BIND"] == "4|5"
    assert environment(device="cpu")["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert not any("OMP" in name for name in environment())


def test_an_engine_keeps_to_the_cpu_that_it_has_for_itself(kind):
    own = max(os.sched_getaffinity(0))
    code = f"""
        import asyncio, json, msgspec, os
        from scripted_core import spec
        from test_engine_host import cpus_of_threads
        from replicas.engine_host import EngineHost

        async def main():
            host, ready = await EngineHost.start(msgspec.structs.replace(spec("{kind}"), own_cpu={own}), "127.0.0.1")
            engine = [list(cpus) for cpus in cpus_of_threads(ready.pid, "engine").values()]
            print(json.dumps({{"engine": engine, "replica": list(os.sched_getaffinity(0))}}))
            host.kill()

        asyncio.run(main())
    """
    # In a process of its own: threads of engines that earlier tests ended in this one may still be starting others.
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, check=True, timeout=60)
    cpus = json.loads(done.stdout)
    assert cpus["engine"] and all(allowed == [own] for allowed in cpus["engine"])
    assert set(cpus["replica"]) == os.sched_getaffinity(0)


def test_vllm_starts_no_process_for_a_core_that_we_host():
    assert environment()["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_replicas_build_vllms_core_unless_told_otherwise():
    fields = {field.name: field.default for field in msgspec.structs.fields(EngineSpec)}
    assert fields["core"] == "replicas.vllm_core:VllmCore"


async def test_other_weights_are_loaded_and_probed(start, kind):
    started = await start(kind, step_s=0.002, model="/models/v1", version="v1")
    assert started.ready.checksum == "checksum of v1"
    ended = await started.host.reload("/models/v2", "", 10.0)
    assert (ended.checksum, ended.failure) == ("checksum of v2", "") and ended.token != started.ready.token
    probe = Probe(prompt=(1, 2), max_tokens=3, logprobs=(-1.0,))
    [probed] = await started.host.probe((probe,), 10.0)
    assert probed.tokens == tuple(continuation([1, 2], 3, "v2")) and probed.logprobs == (-0.5,)
    refused = await started.host.reload("/models/missing", "", 10.0)
    assert not refused.touched and "missing" in refused.failure and started.failures == []


async def test_a_reload_that_takes_too_long_is_given_up(start, kind):
    started = await start(kind, reload_s=1.0)
    with pytest.raises(EngineFailed, match=r"did not load other weights within 0\.2 s"):
        await started.host.reload("/models/v2", "", 0.2)


async def test_who_waits_for_a_reload_hears_of_the_cores_death(start):
    started = await start("process", reload_s=20.0)
    waiting = asyncio.ensure_future(started.host.reload("/models/v2", "", 60.0))
    await asyncio.sleep(0.1)
    os.kill(started.ready.pid, signal.SIGKILL)
    with pytest.raises(EngineFailed, match="SIGKILL"):
        await asyncio.wait_for(waiting, 10.0)

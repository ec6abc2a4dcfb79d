"""A core host with a scripted core, over real TCP, seen by its gateways and by its replica."""

import asyncio
import multiprocessing
import threading
import time

import msgspec
import pytest
from scripted_core import REFUSED, Client, Hosted, ScriptedCore, continuation, spec, until

from replicas import core_host
from replicas.core import CoreLoad
from replicas.core_host import Answers, Failed, Reload, ReloadEnded, Routed, RunProbes, host_core
from replicas.messages import Probe
from replicas.wire import Kind


async def test_frames_go_only_to_the_client_that_asked(hosted):
    host = hosted(step_s=0.002)
    one, other, idle = [await Client.to(host) for _ in range(3)]
    prompts = {f"r{n}": [n, n + 1] for n in range(6)}
    for n, (request_id, prompt) in enumerate(prompts.items()):
        (one, other)[n % 2].add(request_id, prompt, max_tokens=20)
    await until(lambda: len(one.finished) == len(other.finished) == 3)
    expected = {request_id: continuation(prompt, 20) for request_id, prompt in prompts.items()}
    assert one.tokens == {r: expected[r] for r in ("r0", "r2", "r4")}
    assert other.tokens == {r: expected[r] for r in ("r1", "r3", "r5")}
    assert idle.messages == []


async def test_one_frame_a_step_holds_all_of_a_clients_tokens(hosted):
    host = hosted(step_s=0.02)
    client = await Client.to(host)
    for n in range(8):
        client.add(f"r{n}", [n], max_tokens=5)
    await until(lambda: len(client.finished) == 8)
    assert len(client.messages) == host.core.steps <= 6


async def test_an_aborted_request_falls_silent_and_the_others_go_on(hosted):
    host = hosted(step_s=0.002)
    client = await Client.to(host)
    client.add("kept", [1], max_tokens=60)
    client.add("dropped", [2], max_tokens=4000)
    await until(lambda: "dropped" in client.tokens)
    client.abort("dropped", "never heard of")
    await until(lambda: "kept" in client.finished)
    assert client.tokens["kept"] == continuation([1], 60)
    assert not host.core.requests and len(client.tokens["dropped"]) < 60


async def test_a_client_that_goes_takes_its_requests_with_it(hosted):
    host = hosted(step_s=0.002)
    leaver, stayer = await Client.to(host), await Client.to(host)
    for n in range(3):
        leaver.add(f"l{n}", [n], max_tokens=4000)
    stayer.add("s", [9], max_tokens=4000)
    await until(lambda: len(leaver.tokens) == 3 and stayer.tokens)
    leaver.connection.close()
    await until(lambda: list(host.core.requests) == ["s"])
    stayer.connection.close()
    await until(lambda: not host.core.has_work())


async def test_a_finished_request_is_not_aborted_when_its_client_goes(hosted):
    """Its id may be another client's by then: a gateway that lost its connection resumes over the next one."""
    host = hosted(step_s=0.002)
    first, second = await Client.to(host), await Client.to(host)
    first.add("r", [1], max_tokens=2)
    await until(lambda: "r" in first.finished)
    second.add("r", [1], max_tokens=50)
    await until(lambda: "r" in second.tokens)
    first.connection.close()
    await until(lambda: "r" in second.finished)


async def test_a_request_aborted_and_moved_is_not_its_first_clients_any_more(hosted):
    host = hosted(step_s=0.002)
    first, second = await Client.to(host), await Client.to(host)
    first.add("r", [1], max_tokens=4000)
    await until(lambda: "r" in first.tokens)
    first.abort("r")
    await until(lambda: not host.core.requests)
    second.add("r", [1], max_tokens=50)
    await until(lambda: "r" in second.tokens)
    first.connection.close()
    await until(lambda: "r" in second.finished)


async def test_a_refused_request_is_answered_and_the_core_is_well(hosted):
    client = await Client.to(hosted())
    client.add("bad", [1, REFUSED], max_tokens=5)
    client.add("good", [1], max_tokens=5)
    await until(lambda: "good" in client.finished)
    (reply,) = [buffers for kind, buffers in client.messages if kind is Kind.REJECTED]
    assert msgspec.msgpack.decode(reply[0]) == ["bad", "the prompt has the refused token"]
    assert client.tokens == {"good": continuation([1], 5)}


@pytest.mark.parametrize("garbage", [[b"\xc1"], [], [msgspec.msgpack.encode(5)]])
async def test_garbage_costs_its_sender_the_connection_and_nobody_else(hosted, garbage):
    host = hosted(step_s=0.002)
    honest, broken = await Client.to(host), await Client.to(host)
    honest.add("r", [1], max_tokens=40)
    await until(lambda: honest.tokens)
    broken.connection.send(Kind.ABORT, garbage)
    await asyncio.wait_for(broken.lost.wait(), 5)
    await until(lambda: "r" in honest.finished)


async def test_a_wrong_token_reaches_nothing(hosted):
    host = hosted()
    stranger = await Client.to(host, token="0" * 32)
    stranger.add("r", [1], max_tokens=1)
    await asyncio.wait_for(stranger.lost.wait(), 5)
    assert host.core.prompts == {}


async def end_by_stop(host: Hosted) -> None:
    await asyncio.to_thread(host.stop)
    assert not any(isinstance(message, Failed) for message in host.said())


async def end_by_eof(host: Hosted) -> None:
    host.pipe.close()
    await asyncio.to_thread(host.thread.join, 5)


async def end_by_kill(host: Hosted) -> None:
    await asyncio.to_thread(host.kill)


@pytest.mark.parametrize("end", [end_by_stop, end_by_eof, end_by_kill])
async def test_the_end_closes_every_connection_and_thread(hosted, end):
    host = hosted(step_s=0.002)
    busy, idle = await Client.to(host), await Client.to(host)
    silent, _ = await asyncio.open_connection("127.0.0.1", host.ready.port)  # has not even said hello
    busy.add("r", [1], max_tokens=4000)
    await until(lambda: busy.tokens)
    await end(host)
    assert not host.thread.is_alive() and host.core.was_shut_down
    await asyncio.wait_for(asyncio.gather(busy.lost.wait(), idle.lost.wait()), 2)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(silent.readexactly(1), 2)
    await until(lambda: not host.own_threads)
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", host.ready.port)


async def test_an_idle_core_stops_too(hosted):
    host = hosted()
    begin = time.monotonic()
    await end_by_stop(host)
    assert time.monotonic() - begin < 1 and host.core.was_shut_down


async def test_a_step_that_raises_ends_the_core(hosted):
    host = hosted(fail_at_step=3)
    busy, idle = await Client.to(host), await Client.to(host)
    busy.add("r", [1], max_tokens=10)
    await asyncio.wait_for(asyncio.gather(busy.lost.wait(), idle.lost.wait()), 5)
    failure = await asyncio.to_thread(host.failure)
    assert failure.reason == "RuntimeError: the script says so" and "in step" in failure.detail
    await until(lambda: host.core.was_shut_down and not host.own_threads)
    tokens = busy.tokens["r"]
    assert tokens == continuation([1], 10)[: len(tokens)] and len(tokens) <= 2


async def test_a_resumed_request_goes_on_after_what_was_delivered(hosted):
    client = await Client.to(hosted())
    whole = continuation([1, 2], 20)
    client.resume("r", [1, 2], 20, whole[:8])
    await until(lambda: "r" in client.finished)
    assert client.tokens["r"] == whole[8:]


async def test_what_is_given_back_has_no_frame_after_the_word_of_it(hosted):
    host = hosted(step_s=0.001)
    client = await Client.to(host)
    client.add("kept", [1], max_tokens=4000)
    client.add("moved", [2], max_tokens=4000)
    await until(lambda: len(client.tokens.get("moved", ())) > 5)
    client.connection.send(Kind.GIVE_BACK, [msgspec.msgpack.encode(["moved", "unknown"])])
    await until(lambda: any(kind is Kind.GIVEN_BACK for kind, _ in client.messages))
    had = list(client.tokens["moved"])
    at = len(client.tokens["kept"])
    await until(lambda: len(client.tokens["kept"]) > at + 5)
    assert client.tokens["moved"] == had == continuation([2], len(had)) and list(host.core.requests) == ["kept"]
    [ids] = [msgspec.msgpack.decode(b[0]) for kind, b in client.messages if kind is Kind.GIVEN_BACK]
    assert ids == ["moved", "unknown"]


async def test_a_gateway_whose_request_waits_hears_that_the_core_lives(hosted, monkeypatch):
    monkeypatch.setattr("replicas.core_host.ALIVE_INTERVAL_S", 0.02)
    host = hosted(step_s=0.005, max_num_seqs=1)
    running, waiting, idle = [await Client.to(host) for _ in range(3)]
    running.add("a", [1], max_tokens=4000)
    await until(lambda: running.tokens)
    waiting.add("b", [2], max_tokens=4000)
    await until(lambda: len(waiting.messages) > 3)
    assert {kind for kind, _ in waiting.messages} == {Kind.ALIVE}
    assert {kind for kind, _ in running.messages} == {Kind.FRAME} and idle.messages == []


@pytest.mark.parametrize("stop", ["in order", "gone"])
async def test_only_a_core_that_stops_by_its_own_will_says_so(hosted, stop):
    host = hosted(step_s=0.005)
    client = await Client.to(host)
    client.add("r", [1], max_tokens=4000)
    await until(lambda: client.tokens)
    await asyncio.to_thread(host.stop if stop == "in order" else host.kill)
    await asyncio.wait_for(client.lost.wait(), 5)
    assert (client.messages[-1][0] is Kind.LEAVING) == (stop == "in order")


async def test_a_core_that_hangs_in_its_first_step_has_said_that_it_has_work(hosted):
    host = hosted()
    client = await Client.to(host)
    host.core.go_on.clear()
    client.add("r", [1], max_tokens=5)
    await until(lambda: [load.running for load in loads(host)] == [1])
    host.core.go_on.set()
    await until(lambda: "r" in client.finished)


def loads(host: Hosted) -> list[CoreLoad]:
    return [message for message in host.said() if isinstance(message, CoreLoad)]


async def test_what_experts_were_given_is_told_now_and_then_and_once_more_when_idle(hosted, monkeypatch):
    monkeypatch.setattr(core_host, "ROUTED_INTERVAL_S", 0.1)
    monkeypatch.setattr(core_host, "IDLE_LOOK_S", 0.05)
    host = hosted(step_s=0.002)
    client = await Client.to(host)
    client.add("r", [1, 2, 3], max_tokens=300)
    said = []
    await until(lambda: said.extend(host.said()) or "r" in client.finished, limit_s=10)
    await until(lambda: said.extend(host.said()) or routed(said)[-1:] == [303], limit_s=5)
    counts = routed(said)
    assert counts == sorted(counts) and 3 <= len(counts) < host.core.steps / 3
    await asyncio.sleep(0.3)
    assert routed(host.said()) == []  # nothing new


def routed(said: list[object]) -> list[int]:
    return [int(message.tokens.sum()) for message in said if isinstance(message, Routed)]


async def test_load_is_reported_on_change_and_not_too_often(hosted):
    host = hosted(step_s=0.001)
    client = await Client.to(host)
    begin = time.monotonic()
    for n in range(4):
        client.add(f"r{n}", [n], max_tokens=400)
    await until(lambda: len(client.finished) == 4, limit_s=60)
    took = time.monotonic() - begin
    await until(lambda: not host.core.has_work())
    await asyncio.sleep(0.1)
    reports = loads(host)
    assert host.core.steps > 3 * len(reports)  # or it would not have been held back
    assert took * 20 / 10 < len(reports) <= took * 20 + 2  # a starved machine reports less
    assert reports[0].running and reports[-1][:3] == (0, 0, 0.0)
    assert reports[-1].work.decode_tokens == 1600 and reports[-1].work.prefill_tokens == 4


async def test_an_idle_core_does_nothing(hosted):
    host = hosted()
    client = await Client.to(host)
    client.add("r", [1], max_tokens=3)
    await until(lambda: "r" in client.finished)
    await asyncio.sleep(0.1)
    polls, steps = host.core.polls, host.core.steps
    loads(host)
    await asyncio.sleep(0.4)
    assert (host.core.polls, host.core.steps, loads(host)) == (polls, steps, [])


async def test_an_idle_core_says_now_and_then_that_it_is_there(hosted, monkeypatch):
    """Else one that hangs while it has nothing to do would never be told from it."""
    monkeypatch.setattr("replicas.core_host.IDLE_LOOK_S", 0.05)
    host = hosted()
    client = await Client.to(host)
    client.add("r", [1], max_tokens=3)
    await until(lambda: "r" in client.finished)
    await asyncio.sleep(0.1)
    loads(host)
    await asyncio.sleep(0.4)
    said = loads(host)
    assert 3 <= len(said) <= 9 and {load[:3] for load in said} == {(0, 0, 0.0)}
    assert not any(load.stored or load.removed for load in said)  # each block is told of once


def test_a_core_that_cannot_be_built_says_why():
    ours, theirs = multiprocessing.Pipe()
    host_core(lambda: ScriptedCore(spec(fail_to_load="no such model")), theirs, "127.0.0.1")
    failure = ours.recv()
    assert failure.reason == "ValueError: no such model" and "Traceback" in failure.detail
    with pytest.raises(EOFError):
        ours.recv()


def test_an_address_that_is_not_ours_is_a_failure():
    ours, theirs = multiprocessing.Pipe()
    before = threading.active_count()
    host_core(lambda: ScriptedCore(spec()), theirs, "192.0.2.1")
    assert isinstance(failure := ours.recv(), Failed) and "192.0.2.1" in failure.reason
    end = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


# -- other weights -----------------------------------------------------------------------------------------------------


async def reload(host, directory: str, expected: str = "") -> ReloadEnded:
    host.pipe.send(Reload(directory, expected))
    return await asyncio.to_thread(lambda: next(m for m in iter(host.pipe.recv, None) if isinstance(m, ReloadEnded)))


async def test_other_weights_are_served_to_who_has_the_new_token(hosted):
    host = hosted(step_s=0.002)
    before = await Client.to(host)
    before.add("old", [1], max_tokens=3)
    await until(lambda: "old" in before.finished)
    ended = await reload(host, "/models/v2")
    assert ended.failure == "" and ended.checksum == "checksum of v2" and ended.token != host.ready.token
    await asyncio.wait_for(before.lost.wait(), 5)
    assert before.messages[-1][0] is Kind.LEAVING

    stranger = await Client.to(host)  # with the old one
    await asyncio.wait_for(stranger.lost.wait(), 5)
    after = await Client.to(host, ended.token)
    after.add("new", [1], max_tokens=5)
    await until(lambda: "new" in after.finished)
    assert before.tokens == {"old": continuation([1], 3)} and after.tokens == {"new": continuation([1], 5, "v2")}
    assert after.tokens["new"][:3] != before.tokens["old"]


async def test_what_runs_yet_is_cut_off_and_never_goes_on_with_other_weights(hosted):
    host = hosted(step_s=0.01)
    client = await Client.to(host)
    client.add("long", [1], max_tokens=4000)
    await until(lambda: client.tokens)
    host.core.go_on.clear()  # what comes now waits behind the step under way, as the command does
    client.resume("late", [1], max_tokens=4000, delivered=[7, 7])
    await asyncio.sleep(0.05)
    ending = asyncio.ensure_future(reload(host, "/models/v2"))
    await asyncio.sleep(0.05)
    host.core.go_on.set()
    assert (await ending).failure == ""
    await asyncio.wait_for(client.lost.wait(), 5)
    assert not host.core.requests and client.tokens.keys() <= {"long", "late"}
    assert client.tokens["long"] == continuation([1], len(client.tokens["long"]))
    steps = host.core.steps
    await asyncio.sleep(0.1)
    assert host.core.steps == steps and host.thread.is_alive()


@pytest.mark.parametrize(("directory", "touched"), [("/models/missing", False), ("/models/bad", True)])
async def test_a_reload_that_fails_says_so_and_another_may_follow(hosted, directory, touched):
    host = hosted(step_s=0.002, model="/models/v1", version="v1", fail_to_reload={"/models/bad": "no such tensor"})
    failed = await reload(host, directory)
    assert failed.failure and (failed.touched, failed.checksum) == (touched, "")
    wrong = await reload(host, "/models/v2", expected="checksum of v3")
    assert "not checksum of v3" in wrong.failure and wrong.touched
    back = await reload(host, "/models/v1", expected="checksum of v1")
    assert back.failure == "" and len({failed.token, wrong.token, back.token}) == 3
    client = await Client.to(host, back.token)
    client.add("r", [1], max_tokens=5)
    await until(lambda: "r" in client.finished)
    assert client.tokens["r"] == continuation([1], 5, "v1")


async def test_probes_are_answered_by_the_core_itself(hosted):
    host = hosted(step_s=0.002)
    await reload(host, "/models/v2")
    probes = (Probe(prompt=(1, 2), max_tokens=4), Probe(prompt=(3,), max_tokens=2, logprobs=()))
    host.pipe.send(RunProbes(probes))
    answers = await asyncio.to_thread(lambda: next(m for m in iter(host.pipe.recv, None) if isinstance(m, Answers)))
    assert [probed.tokens for probed in answers.probed] == [
        tuple(continuation([1, 2], 4, "v2")),
        tuple(continuation([3], 2, "v2")),
    ]

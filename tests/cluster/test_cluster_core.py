"""ClusterCore on a real event loop, with real core hosts and a RouterState: what vLLM's front end sees of it all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from core_cluster import Cluster, request
from scripted_core import LENGTH, REFUSED, Hosted, continuation, until
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.serial_utils import MsgpackEncoder

from cluster.attainment import Attainment
from cluster.journal import Ended, Listener
from cluster.live import Peer
from cluster.outcomes import Ending, RequestContext, context_of_request
from cluster.request_metrics import Slo
from cluster.scaling_window import Decided
from replicas.wire import Kind


@pytest.fixture
def short_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "HANG_TIMEOUT_S", 0.4)
    monkeypatch.setattr("replicas.core_host.ALIVE_INTERVAL_S", 0.05)


@pytest.fixture
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    made = Cluster(no_replica_wait_s=getattr(request, "param", 10.0))
    yield made
    await made.close()


hung_soon = pytest.mark.usefixtures("short_hang")
soon_given_up = pytest.mark.parametrize("cluster", [0.4], indirect=True)


def test_the_scripted_core_speaks_as_vllm_does():
    output = EngineCoreOutput("r", [5], finish_reason=FinishReason.LENGTH)
    encoded = MsgpackEncoder().encode(EngineCoreOutputs(outputs=[output], timestamp=1.0))
    engine, ((*row,),), _, timestamp, *rest = msgspec.msgpack.decode(encoded[0])
    assert (engine, row[:6], timestamp) == (0, ["r", [5], None, None, None, LENGTH], 1.0)
    assert not any(rest) and not any(row[6:])


async def test_many_streams_over_two_cores(cluster):
    hosts = [cluster.host(max_num_seqs=16, step_s=0.002) for _ in range(2)]
    await cluster.ask_many(64)
    await cluster.all_end()
    cluster.assert_exact()
    assert cluster.core.resumes.count == 0
    shares = [len(host.core.prompts) for host in hosts]
    assert sum(shares) == 64 and min(shares) >= 16
    await cluster.nothing_is_left()


async def test_a_request_is_written_down_with_its_times(cluster):
    cluster.host(max_num_seqs=1, step_s=0.01)
    began = time.monotonic()
    await cluster.ask("first", [1, 2, 3], 10)
    await cluster.ask("second", [4] * 5, 5)
    await cluster.all_end()
    first, second = cluster.heard.of("first"), cluster.heard.of("second")
    assert (first.model, first.replica, first.ending, first.resumes, first.ttft_slo_s) == ("m", "r0", "DONE", 0, None)
    assert (first.prompt_tokens, first.output_tokens, second.prompt_tokens, second.output_tokens) == (3, 10, 5, 5)
    for r in (first, second):
        times = [began, r.arrived_at, r.queued_at, r.granted_at, r.submitted_at, r.first_token_at, r.last_token_at]
        assert times == sorted(times) and r.last_token_at <= r.ended_at <= time.monotonic()
        assert r.ttft_s == pytest.approx(r.first_token_at - r.arrived_at)
        assert r.tpot_s >= 0.01
    assert second.granted_at - second.queued_at >= 0.09, "it waited for the first one's ten steps"
    assert second.granted_at >= first.last_token_at


async def test_a_further_turn_of_one_http_request_has_its_own_time(cluster):
    cluster.host(step_s=0.01)
    token = context_of_request.set(RequestContext())
    for turn in ("first", "second"):
        cluster.tokens[turn] = []
        cluster.prompts[turn] = [1], 10
        await cluster.core.add_request_async(request(turn, [1], 10))
        await cluster.all_end()
    context_of_request.reset(token)
    first, second = cluster.heard.records
    assert first.ended_at == second.arrived_at and second.ttft_s < 0.09


async def test_a_stop_string_ends_a_request_well_and_a_client_that_goes_does_not(cluster):
    cluster.host(step_s=0.005)
    await cluster.ask_many(2, max_tokens=400)
    await until(cluster.streaming())
    await cluster.core.abort_requests_async(["q0"])
    assert cluster.heard.of("q0").ending == "ABORTED" and cluster.heard.of("q0").output_tokens >= 3
    cluster._reading.cancel()

    async def reads_a_stop_string() -> None:  # as AsyncLLM's output handler does
        await cluster.core.get_output_async()
        await cluster.core.abort_requests_async(["q1"])

    cluster.core._reader = None
    await asyncio.ensure_future(reads_a_stop_string())
    assert cluster.heard.of("q1").ending == "DONE"
    await cluster.nothing_is_left()


async def test_a_listener_that_fails_harms_no_request(cluster, caplog):
    class Broken(Listener):
        def ended(self, record: Ended) -> None:
            raise ValueError("broken")

    cluster.core.journal.listeners.insert(0, Broken())
    cluster.host(step_s=0.002)
    await cluster.ask_many(3)
    await cluster.all_end()
    cluster.assert_exact()
    await cluster.nothing_is_left()
    assert caplog.text.count("A listener of the journal failed") == 3


async def test_no_core_is_given_more_than_fits(cluster):
    host = cluster.host(max_num_seqs=4, step_s=0.002)
    await cluster.ask_many(12, max_tokens=10)
    most = 0
    while len(cluster.ended) < 12:
        most = max(most, len(host.core.requests))
        await asyncio.sleep(0.001)
    assert most == 4


async def test_a_killed_host_costs_its_streams_no_token(cluster):
    doomed, other = [cluster.host(step_s=0.005) for _ in range(2)]
    await cluster.ask_many(32)
    await until(cluster.streaming())
    assert doomed.core.requests and not cluster.ended
    cluster.kill(doomed)
    await cluster.all_end()
    cluster.assert_exact()
    assert [cause for cause, gap_s in cluster.heard.resumes if gap_s > 0] == ["lost"] * 16
    assert sorted(r.resumes for r in cluster.heard.records) == [0] * 16 + [1] * 16
    assert max(r.longest_gap_s for r in cluster.heard.records) == cluster.core.resumes.longest_gap_s
    assert {r.replica for r in cluster.heard.records} == {"r1"}
    assert len(other.core.prompts) == 32 and cluster.core.resumes.count == 16
    assert 0 < cluster.core.resumes.longest_gap_s < 5
    assert len([1 for delivered in other.core.delivered.values() if delivered]) == 16
    await cluster.nothing_is_left()


async def test_what_ran_on_two_cores_as_they_died_is_not_tried_a_third_time(cluster):
    cluster.host(step_s=0.003, fail_at_step=8)
    await cluster.ask_many(8)
    await until(lambda: not cluster.hosts[0].thread.is_alive())
    cluster.router.alive.clear()
    await cluster.ask("later", [9], 40)
    cluster.host(step_s=0.003, fail_at_step=8)
    await until(lambda: not cluster.hosts[1].thread.is_alive())
    cluster.router.alive.clear()
    last = cluster.host(step_s=0.003)
    await cluster.all_end()
    for n in range(8):
        verdict = cluster.verdicts[f"q{n}"]
        assert cluster.ended[f"q{n}"] is FinishReason.ERROR
        assert verdict.ending is Ending.QUARANTINED and f"q{n}" in verdict.detail
    assert list(last.core.prompts) == ["later"] and cluster.tokens["later"] == continuation([9], 40)
    assert cluster.core.resumes.quarantined == 8
    await cluster.nothing_is_left()


async def test_replicas_that_stop_by_their_own_will_quarantine_nobody(cluster):
    for _ in range(3):
        host = cluster.host(step_s=0.003)
        if len(cluster.hosts) == 1:
            await cluster.ask_many(8, max_tokens=60)
        have = {r: len(t) for r, t in cluster.tokens.items()}
        await until(lambda h=have: all(len(t) > h[r] for r, t in cluster.tokens.items()))
        cluster.router.alive.remove(host.info)
        await asyncio.to_thread(host.stop)
    cluster.host()
    await cluster.all_end()
    cluster.assert_exact()
    assert cluster.core.resumes.count == 24


@hung_soon
async def test_a_hung_replica_loses_its_streams_and_its_late_frames_are_not_heard(cluster):
    hung, _ = [cluster.host(step_s=0.005) for _ in range(2)]
    await cluster.ask_many(16, max_tokens=60)
    await until(cluster.streaming())
    hung.core.go_on.clear()
    cluster.router.alive.remove(hung.info)
    await cluster.all_end()
    cluster.assert_exact()
    assert cluster.core.resumes.count == 8 and cluster.core.resumes.longest_gap_s < 2
    hung.core.go_on.set()
    cluster.router.alive.append(hung.info)  # it reports again
    await until(lambda: not hung.core.requests)
    assert set(cluster.ended) == set(cluster.prompts)
    await cluster.ask("after", [5], 20)
    await cluster.all_end()
    cluster.assert_exact()
    await cluster.nothing_is_left()


@hung_soon
async def test_a_slow_replica_is_not_taken_for_a_hung_one(cluster):
    """One request steps for longer than the bound while another waits in the same core, and nothing comes of it."""
    cluster.host(step_s=0.2, max_num_seqs=2)
    await cluster.ask_many(2, max_tokens=4)
    await cluster.all_end()
    await asyncio.sleep(0.5)  # nor one that has nothing to do
    await cluster.ask("again", [4], 3)
    await cluster.all_end()
    assert cluster.core.resumes.count == 0
    cluster.assert_exact()


async def test_moving_streams_off_a_replica_costs_no_token_and_counts_as_no_death(cluster):
    hosts = [cluster.host(step_s=0.005) for _ in range(2)]
    await cluster.ask_many(16, max_tokens=80)
    for drained, other in (hosts, hosts[::-1], hosts):
        have = {r: len(t) for r, t in cluster.tokens.items()}
        await until(lambda h=have: all(len(t) > h[r] for r, t in cluster.tokens.items()))
        cluster.router.drain(drained.info.replica_id, migrate=True)
        await until(lambda d=drained: not d.core.requests)
        await until(lambda o=other: len(o.core.requests) == 16)
        cluster.router.drain(drained.info.replica_id, undo=True)
    await cluster.all_end()
    cluster.assert_exact()
    assert cluster.core.resumes.count == 0 and cluster.core.resumes.moved == 8 + 16 + 16
    assert [cause for cause, _ in cluster.heard.resumes] == ["moved"] * 40
    await cluster.nothing_is_left()


async def test_scaling_in_moves_streams_before_the_replica_has_gone(cluster):
    """Its host goes on until it has nothing left, as the replica's shutdown has it: no stream waits for its end."""
    cluster.router.scale()
    hosts = [cluster.host(step_s=0.02) for _ in range(2)]
    await cluster.ask_many(12, max_tokens=60)
    await until(cluster.streaming())
    going = hosts[1]
    assert going.core.requests
    cluster.router.alive.remove(going.info)
    cluster.router.state.scaled(Decided(1, "Scale in from 2 to 1."))
    cluster.router.state.stop(going.info.replica_id, going.info.epoch, time.monotonic())
    await until(lambda: not going.core.requests, 1.0)  # sixty steps take longer
    assert not cluster.ended
    going.kill()
    await cluster.all_end()
    cluster.assert_exact()
    assert cluster.core.resumes.moved > 0 and cluster.core.resumes.count == 0
    await cluster.nothing_is_left()


async def test_the_router_hears_which_requests_met_their_slo(cluster):
    cluster.router.scale()
    cluster.host(step_s=0.001)
    slow = Slo(tpot_s=1e-9)
    cluster.core.journal.listeners += [
        Attainment(Slo(), cluster.core.attained),
        Attainment(slow, cluster.core.attained),
    ]
    await cluster.ask_many(15, max_tokens=5)
    await cluster.all_end()
    await cluster.nothing_is_left()
    observed = cluster.router.state.observe_scaling(time.monotonic())
    assert observed is not None and observed.seen.attainment == 0.5  # the one promise is kept, the other is not


async def test_a_drained_replica_finishes_what_it_has_and_gets_no_more(cluster):
    drained, other = [cluster.host(step_s=0.005) for _ in range(2)]
    await cluster.ask_many(8)
    await until(cluster.streaming())
    cluster.router.drain("r0")
    for n in range(8):
        await cluster.ask(f"later{n}", [n], 10)
    await cluster.all_end()
    cluster.assert_exact()
    assert len(drained.core.prompts) == 4 and len(other.core.prompts) == 12
    states = {r["id"]: r["state"] for r in cluster.router.state.status()["replicas"]}
    assert states == {"r0": "draining", "r1": "ready"} and cluster.core.resumes.moved == 0


async def test_samples_get_seeds_of_their_own(cluster):
    cluster.core._seed_samples = True
    shared = request("s", [1], 5)
    shared.sampling_params.temperature = 0.7
    for n in range(3):
        await cluster.core.add_request_async(msgspec.structs.replace(shared, request_id=f"{n}_s"))
    seeds = {live.request.sampling_params.seed for live in cluster.core._live.values()}
    assert len(seeds) == 3 and all(0 <= seed < 1 << 63 for seed in seeds)
    assert shared.sampling_params.seed is None
    for request_id, temperature, seed in (("greedy", 0.0, None), ("own", 0.7, 5)):
        asked = request(request_id, [1], 5, seed=seed)
        asked.sampling_params.temperature = temperature
        await cluster.core.add_request_async(asked)
        assert cluster.core._live[request_id].request.sampling_params.seed == seed
    await cluster.core.abort_requests_async(list(cluster.core._live))


async def test_resumed_streams_go_ahead_of_fresh_ones(cluster):
    doomed = cluster.host(max_num_seqs=2, step_s=0.005)
    await cluster.ask_many(2)
    await until(cluster.streaming())
    for n in range(4):
        await cluster.ask(f"fresh{n}", [n], 5)
    await until(lambda: cluster.router.queued == 4)
    cluster.kill(doomed)
    await until(lambda: cluster.router.queued == 6)  # else the new replica is there before anybody knows of the loss
    other = cluster.host(max_num_seqs=2, step_s=0.005)
    await cluster.all_end()
    assert list(other.core.prompts)[:2] == ["q0", "q1"]
    cluster.assert_exact()


async def test_limits_and_stop_tokens_hold_across_a_loss(cluster):
    """The stop token would end the stream before min_tokens, and ends it after."""
    prompt = next([n] for n in range(1000) if len(set(continuation([n], 30))) == 30)
    tokens = continuation(prompt, 30)
    doomed = cluster.host(step_s=0.005)
    await cluster.ask("r", prompt, 50, min_tokens=12, stop_token_ids=[tokens[7], tokens[20]])
    await until(lambda: len(cluster.tokens["r"]) >= 3)
    cluster.kill(doomed)
    assert len(cluster.tokens["r"]) < 8
    cluster.host(step_s=0.005)
    await cluster.all_end()
    assert cluster.tokens["r"] == tokens[:21] and cluster.ended["r"] is FinishReason.STOP


@soon_given_up
async def test_when_none_comes_back_streams_end_as_lost(cluster):
    hosts = [cluster.host(max_num_seqs=2, step_s=0.005) for _ in range(2)]
    await cluster.ask_many(6, max_tokens=400)
    await until(lambda: cluster.router.queued == 2 and sum(len(t) > 2 for t in cluster.tokens.values()) == 4)
    begin = time.monotonic()
    for host in hosts:
        cluster.kill(host)
    await cluster.all_end()
    assert 0.4 <= time.monotonic() - begin < 1.5
    assert set(cluster.ended.values()) == {FinishReason.ERROR}
    by_tokens = {bool(cluster.tokens[r]): cluster.verdicts[r].ending for r in cluster.ended}
    assert by_tokens == {True: Ending.LOST, False: Ending.NO_REPLICA}
    endings = {r.request_id: (r.ending, r.replica is not None) for r in cluster.heard.records}
    assert endings == {r: (cluster.verdicts[r].ending.name, bool(cluster.tokens[r])) for r in cluster.ended}
    await cluster.nothing_is_left()


@soon_given_up
async def test_without_any_replica_a_request_is_answered_in_time(cluster):
    begin = time.monotonic()
    await cluster.ask("r", [1], 5)
    await cluster.all_end()
    assert 0.4 <= time.monotonic() - begin < 1.5
    assert cluster.verdicts["r"].ending is Ending.NO_REPLICA and cluster.ended["r"] is FinishReason.ERROR
    await cluster.nothing_is_left()


async def test_a_replica_that_comes_in_time_is_waited_for(cluster):
    doomed = cluster.host(step_s=0.005)
    await cluster.ask_many(8)
    await until(cluster.streaming())
    cluster.kill(doomed)
    await cluster.ask("late", [99], 10)
    await asyncio.sleep(0.1)
    assert not cluster.ended and cluster.router.queued == 9
    cluster.host()
    await cluster.all_end()
    cluster.assert_exact()
    await cluster.nothing_is_left()


async def test_a_gateway_that_loses_only_its_connection_resumes_on_the_same_replica(cluster):
    host = cluster.host(step_s=0.005)
    await cluster.ask_many(8)
    await until(cluster.streaming())
    (peer,) = cluster.core._peers.values()
    peer.connection.close()
    await cluster.all_end()
    cluster.assert_exact()
    assert cluster.core.resumes.count == 8 and host.core.delivered["q0"]
    await cluster.nothing_is_left()


async def test_a_replica_that_cannot_be_reached_costs_a_try(cluster):
    dead = Hosted(replica_id="dead", epoch=1)
    dead.kill()  # nobody listens at its address any more
    cluster.router.alive.append(dead.info)
    cluster.router.beat()
    cluster.router.alive.clear()
    await cluster.ask("r", [1], 5)
    await asyncio.sleep(0.05)
    cluster.host()
    await cluster.all_end()
    cluster.assert_exact()
    await cluster.nothing_is_left()


async def test_a_refused_request_ends_with_the_engines_words(cluster):
    cluster.host()
    await cluster.ask("good", [1], 5)
    await cluster.ask("bad", [REFUSED], 5)
    await cluster.all_end()
    verdict = cluster.verdicts["bad"]
    assert (verdict.ending, verdict.detail) == (Ending.REJECTED, "the prompt has the refused token")
    assert cluster.ended == {"good": FinishReason.LENGTH, "bad": FinishReason.ERROR}
    assert cluster.tokens["good"] == continuation([1], 5)
    await cluster.nothing_is_left()


async def test_aborting_what_waits(cluster):
    host = cluster.host(max_num_seqs=1, step_s=0.005)
    await cluster.ask("runs", [1], 30)
    await until(cluster.streaming())
    await cluster.ask("unheard", [2], 5)
    await cluster.core.abort_requests_async(["unheard", "never was"])  # before the router heard of it
    await cluster.ask("waits", [3], 5)
    await until(lambda: cluster.router.queued == 1)
    await cluster.core.abort_requests_async(["waits"])
    await until(lambda: cluster.router.queued == 0)
    await until(lambda: "runs" in cluster.ended)
    await cluster.nothing_is_left()
    assert list(host.core.prompts) == ["runs"] and list(cluster.ended) == ["runs"]


async def test_aborting_what_is_granted_but_not_connected(cluster, monkeypatch):
    loop, connected = asyncio.get_running_loop(), asyncio.Event()
    connect = loop.create_connection

    async def slowly(*args: object) -> object:
        await connected.wait()
        return await connect(*args)

    monkeypatch.setattr(loop, "create_connection", slowly)
    host = cluster.host()
    await cluster.ask("kept", [1], 5)
    await cluster.ask("dropped", [2], 5)
    await until(lambda: cluster.router.placed == 2)
    await until(lambda: sum(len(p.unsent) for p in cluster.core._peers.values()) == 2)
    await cluster.core.abort_requests_async(["dropped"])
    connected.set()
    await until(lambda: "kept" in cluster.ended)
    await cluster.nothing_is_left()
    assert list(host.core.prompts) == ["kept"] and cluster.tokens["dropped"] == []


async def test_aborting_what_runs(cluster):
    host = cluster.host(step_s=0.002)
    await cluster.ask_many(4, max_tokens=4000)
    await until(cluster.streaming())
    await cluster.core.abort_requests_async(["q0", "q1", "q2", "q3"])
    await cluster.nothing_is_left()
    told = {r: len(t) for r, t in cluster.tokens.items()}
    await asyncio.sleep(0.05)
    assert not host.core.requests and told == {r: len(t) for r, t in cluster.tokens.items()} and not cluster.ended


async def test_aborting_what_resumes(cluster):
    doomed = cluster.host(step_s=0.005)
    await cluster.ask_many(4, max_tokens=4000)
    await until(cluster.streaming())
    cluster.kill(doomed)
    await until(lambda: cluster.router.queued == 4)
    await cluster.core.abort_requests_async(["q0", "q1", "q2", "q3"])
    await cluster.nothing_is_left()
    cluster.host()
    await asyncio.sleep(0.05)
    assert cluster.hosts[-1].core.prompts == {}


@pytest.mark.parametrize("rejoin_first", [True, False], ids=["replicas first", "gateways first"])
async def test_a_router_that_dies_is_not_noticed_by_streams(cluster, rejoin_first):
    host = cluster.host(max_num_seqs=4, step_s=0.01)
    await cluster.ask_many(4, max_tokens=60)
    await until(cluster.streaming())
    await cluster.ask("waits", [50], 5)
    await until(lambda: cluster.router.queued == 1)
    cluster.router.die()
    await cluster.ask("meanwhile", [60], 5)
    before = {r: len(t) for r, t in cluster.tokens.items() if t}
    await asyncio.sleep(0.15)
    assert all(len(cluster.tokens[r]) > n for r, n in before.items())
    resyncs, alive = cluster.router.resyncs, list(cluster.router.alive)
    if not rejoin_first:
        cluster.router.alive.clear()
    cluster.router.restart()
    cluster.router.beat()
    await until(lambda: cluster.router.resyncs > resyncs)
    assert (cluster.router.placed, cluster.router.queued) == (4, 2)
    cluster.router.alive[:] = alive
    await asyncio.sleep(0.05)
    assert set(host.core.prompts) == {"q0", "q1", "q2", "q3"}  # the core is full, and the router knows
    await cluster.all_end()
    cluster.assert_exact()
    assert cluster.core.resumes.count == 0
    await cluster.nothing_is_left()


async def test_what_ends_while_the_router_is_away_holds_nothing_after(cluster):
    cluster.host(step_s=0.005)
    await cluster.ask_many(3, max_tokens=20)
    await until(cluster.streaming(1))
    cluster.router.die()
    await cluster.core.abort_requests_async(["q0"])
    await until(lambda: len(cluster.ended) == 2)
    cluster.router.gone = False  # the very same router: it was only out of reach, and still counts all three
    await cluster.nothing_is_left()


# -- one step at a time ------------------------------------------------------------------------------------------------


def frame(request_id: str, *tokens: int, ended: FinishReason | None = None) -> list[bytes]:
    output = EngineCoreOutput(request_id, list(tokens), finish_reason=ended)
    return [bytes(b) for b in MsgpackEncoder().encode(EngineCoreOutputs(outputs=[output]))]


async def test_late_frames_of_an_earlier_life_are_ignored(cluster):
    host = cluster.host(step_s=0.5)
    await cluster.ask("r", [1], 10)
    await until(lambda: cluster.router.placed == 1 and cluster.core._live["r"].grant)
    (peer,) = cluster.core._peers.values()
    earlier = Peer(msgspec.structs.replace(host.info, epoch=0))
    hear = cluster.core._message_from
    hear(earlier)(None, Kind.FRAME, frame("r", 1, 2, 3, ended=FinishReason.STOP))
    hear(peer)(None, Kind.FRAME, frame("r", 4))
    hear(peer)(None, Kind.FRAME, frame("somebody else's", 5))
    await asyncio.sleep(0.01)
    assert cluster.tokens == {"r": [4]} and not cluster.ended
    cluster.core._on_lost(earlier)
    assert cluster.core._live["r"].grant is not None


async def test_a_stream_that_lost_only_its_last_word_is_not_resumed(cluster):
    host = cluster.host(step_s=0.5)
    await cluster.ask("r", [1], 2)
    await until(lambda: cluster.router.placed == 1 and cluster.core._live["r"].grant)
    (peer,) = cluster.core._peers.values()
    await until(lambda: peer.connection)
    cluster.core._message_from(peer)(None, Kind.FRAME, frame("r", 4, 5))
    cluster.router.alive.remove(host.info)
    peer.connection.close()
    await cluster.all_end()
    assert cluster.tokens["r"] == [4, 5] and cluster.ended["r"] is FinishReason.LENGTH
    assert cluster.verdicts["r"].ending is None
    await until(lambda: cluster.router.placed == cluster.router.queued == 0)

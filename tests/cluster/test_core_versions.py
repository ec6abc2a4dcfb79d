"""ClusterCore while several model versions are served: an answer is of one version, and copies are nobody's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from core_cluster import Cluster
from scripted_core import REFUSED, Hosted, continuation, until
from vllm.v1.engine import FinishReason

from cluster.journal import Ended
from cluster.outcomes import Ending, RequestContext
from replicas.assignment import Assignment, Mirror


@pytest.fixture
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    made = Cluster(no_replica_wait_s=getattr(request, "param", 10.0))
    yield made
    await made.close()


soon_given_up = pytest.mark.parametrize("cluster", [0.4], indirect=True)


def assigned(traffic: dict[str, float] | None, mirror: Mirror | None = None) -> Assignment:
    directories = {"v1": "/models/v1", "v2": "/models/v2"}
    return Assignment(
        revision=1, stable="v1", new_replica="v1", directories=directories, traffic=traffic, mirror=mirror
    )


async def connected(cluster: Cluster, **traffic: float) -> None:
    await until(lambda: len(cluster.core._peers) == len(cluster.hosts))
    cluster.router.assign(assigned(traffic or None))


def of_version(cluster: Cluster, version: str) -> list[Hosted]:
    return [host for host in cluster.hosts if host.info.version == version]


def prompts_of(host: Hosted) -> set[str]:
    return set(host.core.prompts)


async def test_streams_go_on_where_their_version_is_and_nowhere_else(cluster):
    doomed, other = cluster.host("v1", step_s=0.005), cluster.host("v2", step_s=0.005)
    await connected(cluster, v1=1.0)
    await cluster.ask_many(12)
    await until(cluster.streaming())
    spare = cluster.host("v1", step_s=0.005)
    cluster.router.assign(assigned({"v2": 1.0}))
    cluster.kill(doomed)
    await cluster.all_end()
    cluster.assert_exact()
    assert len(prompts_of(spare)) == 12 and not prompts_of(other)
    assert {r.version for r in cluster.heard.records} == {"v1"}
    await cluster.nothing_is_left()


@soon_given_up
async def test_a_stream_whose_version_is_gone_ends_and_others_are_served(cluster):
    doomed, other = cluster.host("v1", max_num_seqs=4, step_s=0.005), cluster.host("v2", step_s=0.005)
    await connected(cluster, v1=1.0)
    await cluster.ask_many(4, max_tokens=400)
    await until(cluster.streaming())
    await cluster.ask("waits", [77], 5)
    began = time.monotonic()
    cluster.kill(doomed)
    cluster.router.assign(assigned({"v2": 1.0}))
    await cluster.all_end()
    assert 0.4 <= time.monotonic() - began < 2
    for n in range(4):
        verdict = cluster.verdicts[f"q{n}"]
        assert verdict.ending is Ending.VERSION_GONE and verdict.detail.startswith("Version v1: ")
        assert cluster.ended[f"q{n}"] is FinishReason.ERROR and cluster.heard.of(f"q{n}").ending == "VERSION_GONE"
    assert prompts_of(other) == {"waits"} and cluster.tokens["waits"] == continuation([77], 5)
    await cluster.nothing_is_left()


@soon_given_up
async def test_without_any_replica_it_was_lost_whatever_version_it_had(cluster):
    doomed = cluster.host("v1", step_s=0.005)
    await connected(cluster)
    await cluster.ask_many(2, max_tokens=400)
    await until(cluster.streaming())
    cluster.kill(doomed)
    await cluster.all_end()
    assert {verdict.ending for verdict in cluster.verdicts.values()} == {Ending.LOST}


@soon_given_up
async def test_what_the_edge_can_put_again_is_written_down_as_begun_again(cluster):
    doomed, _ = cluster.host("v1", step_s=0.005), cluster.host("v2")
    await connected(cluster, v1=1.0)
    sent, unsent = RequestContext(), RequestContext()
    for request_id, context in (("sent", sent), ("unsent", unsent)):
        context.may_start_anew = True
        await cluster.ask(request_id, [1], 400, context)
    await until(cluster.streaming())
    sent.answer_begun = True
    cluster.kill(doomed)
    await cluster.all_end()
    assert {r.request_id: r.ending for r in cluster.heard.records} == {"sent": "VERSION_GONE", "unsent": "RESTARTED"}
    assert unsent.starts_anew and not sent.starts_anew
    unsent.start_anew()
    cluster.router.assign(assigned({"v2": 1.0}))
    await cluster.ask("again", [1], 5, unsent)
    await until(lambda: "again" in cluster.ended)
    assert (unsent.restarted_from, unsent.version, unsent.verdict.ending) == ("v1", "v2", None)
    assert cluster.tokens["again"] == continuation([1], 5) and [r.version for r in unsent.records] == ["v2"]
    await cluster.nothing_is_left()


async def test_what_has_no_token_yet_may_begin_on_another_version(cluster):
    doomed, other = cluster.host("v1"), cluster.host("v2")
    doomed.core.go_on.clear()
    await connected(cluster, v1=1.0)
    context = RequestContext()
    await cluster.ask("r", [5], 10, context)
    await until(lambda: "r" in doomed.core.requests and context.version == "v1")
    cluster.router.alive.remove(doomed.info)
    cluster.router.assign(assigned({"v2": 1.0}))
    for peer in list(cluster.core._peers.values()):
        if peer.info == doomed.info:
            peer.connection.close()  # a kill would have it take its step first
    await cluster.all_end()
    cluster.assert_exact()
    assert context.version == "v2" and prompts_of(other) == {"r"}


async def test_all_samples_of_an_answer_are_of_one_version_whatever_the_traffic_says_meanwhile(cluster):
    one, other = cluster.host("v1", max_num_seqs=2, step_s=0.005), cluster.host("v2", max_num_seqs=2, step_s=0.005)
    await connected(cluster, v1=1.0)
    context = RequestContext()
    for n in range(6):
        await cluster.ask(f"s{n}", [n], 30, context)
    await until(lambda: len(one.core.requests) == 2)
    cluster.router.assign(assigned({"v2": 1.0}))  # four of them still wait
    await cluster.all_end()
    cluster.assert_exact()
    assert len(prompts_of(one)) == 6 and not prompts_of(other)
    await cluster.ask("next turn", [9], 5, context)
    await cluster.all_end()
    assert {r.version for r in cluster.heard.records} == {"v1"} and "next turn" in prompts_of(one)
    await cluster.nothing_is_left()


async def test_an_operators_choice_goes_before_the_traffic(cluster):
    one, other = cluster.host("v1"), cluster.host("v2")
    await connected(cluster, v1=1.0)
    await cluster.ask("chosen", [1], 5, RequestContext(pinned="v2"))
    await cluster.ask("any", [2], 5)
    await cluster.all_end()
    assert (prompts_of(one), prompts_of(other)) == ({"any"}, {"chosen"})
    assert cluster.core.versions == {"v1", "v2"}


async def test_versions_are_known_before_a_replica_has_them(cluster):
    cluster.host()
    await until(lambda: cluster.core._peers)
    assert cluster.core.versions == set()
    cluster.router.assign(assigned(None))
    assert cluster.core.versions == {"v1", "v2"}


async def test_a_sessions_requests_have_one_place_and_are_written_down_with_it(cluster):
    cluster.host("v1")
    for n, key in enumerate(("ann", "ann", "ben", "")):
        await cluster.ask(f"r{n}", [n], 3, RequestContext(session_key=key))
    await cluster.all_end()
    first, same, other, unnamed = (cluster.heard.of(f"r{n}").session for n in range(4))
    assert first == same and len({first, other, unnamed}) == 3 and all(0 <= s < 1 << 63 for s in (first, other))


# -- copies ------------------------------------------------------------------------------------------------------------


def copies(cluster: Cluster) -> list[Ended]:
    return [record for record in cluster.heard.records if record.mirror]


async def mirrored(cluster: Cluster, share: float = 1.0) -> tuple[Hosted, Hosted]:
    """A replica that serves, and one that is given copies."""
    hosts = cluster.host("v1", step_s=0.003), cluster.host("v2", step_s=0.003)
    await connected(cluster)
    cluster.router.assign(assigned({"v1": 1.0}, Mirror(version="v2", share=share)))
    return hosts


async def nothing_is_left(cluster: Cluster) -> None:
    await until(lambda: cluster.router.placed == cluster.router.queued == len(cluster.core._live) == 0)
    await until(lambda: not any(host.core.requests for host in cluster.hosts if host.thread.is_alive()))
    assert cluster.core.mirror.open == 0


async def test_copies_run_for_nobody_to_read(cluster):
    serving, trial = await mirrored(cluster)
    await cluster.ask_many(8)
    assert cluster.core.open_requests == 8 and len(cluster.core._live) == 16
    await cluster.all_end()
    cluster.assert_exact()
    await until(lambda: len(copies(cluster)) == 8)
    assert prompts_of(serving) == {f"q{n}" for n in range(8)}
    assert prompts_of(trial) == {f"mirror-q{n}" for n in range(8)}
    for copy in copies(cluster):
        own = cluster.heard.of(copy.request_id.removeprefix("mirror-"))
        assert (copy.version, copy.ending, copy.output_tokens, copy.session) == ("v2", "DONE", 40, own.session)
        assert (copy.tenant, copy.arrived_at) == ("", own.arrived_at)
    await nothing_is_left(cluster)
    tenants = cluster.router.state.status()["tenants"]
    assert [(t["requests"], t["output_tokens"]) for t in tenants] == [(8, 320)]


async def test_a_share_of_the_sessions_is_copied(cluster):
    _, trial = await mirrored(cluster, share=0.5)
    await cluster.ask_many(40, max_tokens=2)
    await cluster.all_end()
    await nothing_is_left(cluster)
    points = {r.request_id: r.session / (1 << 63) for r in cluster.heard.records if not r.mirror}
    assert prompts_of(trial) == {f"mirror-{r}" for r, point in points.items() if point >= 0.5}
    assert 5 < len(prompts_of(trial)) < 35


async def test_what_the_trial_version_serves_itself_is_not_copied_for_it(cluster):
    _, trial = await mirrored(cluster)
    cluster.router.assign(assigned({"v2": 1.0}, Mirror(version="v2", share=1.0)))
    await cluster.ask_many(5, max_tokens=3)
    await cluster.ask("chosen", [3], 3, RequestContext(pinned="v2"))
    await cluster.all_end()
    assert not copies(cluster) and len(prompts_of(trial)) == 6


async def test_one_gateway_has_so_many_copies_and_no_more(cluster, monkeypatch):
    monkeypatch.setattr("cluster.mirror.MOST_OPEN", 3)
    _, trial = await mirrored(cluster)
    await cluster.ask_many(10, max_tokens=20)
    await cluster.all_end()
    await nothing_is_left(cluster)
    assert len(prompts_of(trial)) == len(copies(cluster)) == 3
    await cluster.ask("later", [1], 3)
    await until(lambda: len(copies(cluster)) == 4)


async def test_a_copy_ends_with_its_replica_and_nobody_notices(cluster):
    serving, trial = await mirrored(cluster)
    await cluster.ask_many(6, max_tokens=120)
    await until(lambda: len(trial.core.requests) == 6)
    cluster.kill(trial)
    await until(lambda: len(copies(cluster)) == 6)
    assert {copy.ending for copy in copies(cluster)} == {"LOST"}
    assert (cluster.core.resumes.count, cluster.core.resumes.quarantined) == (0, 0)
    await cluster.ask("later", [1], 5)
    await cluster.all_end()
    cluster.assert_exact()
    await until(lambda: len(copies(cluster)) == 7)  # there was no room for it in time
    assert cluster.heard.of("mirror-later").ending == "TOO_LATE"
    assert cluster.router.state.tally.denials == {} and prompts_of(serving) == {*cluster.prompts}
    await nothing_is_left(cluster)


async def test_a_copy_is_not_moved_off_a_replica_that_drains(cluster):
    _, trial = await mirrored(cluster)
    await cluster.ask_many(4, max_tokens=200)
    await until(lambda: len(trial.core.requests) == 4)
    cluster.router.drain(trial.info.replica_id, migrate=True)
    await until(lambda: len(copies(cluster)) == 4 and not trial.core.requests)
    assert {copy.ending for copy in copies(cluster)} == {"ABORTED"}  # it is nobody's fault
    assert cluster.core.resumes.moved == 0 and not cluster.heard.resumes
    await cluster.all_end()
    cluster.assert_exact()
    await nothing_is_left(cluster)


async def test_copies_survive_the_router_and_what_it_refuses_of_them_is_told_to_nobody(cluster):
    _, trial = await mirrored(cluster)
    await cluster.ask("bad", [REFUSED], 5)
    await cluster.ask_many(4, max_tokens=250)
    await until(lambda: len(trial.core.requests) == 4)
    cluster.router.die()
    cluster.router.restart()
    await until(lambda: cluster.router.placed == 8)
    assert [tenant["open"] for tenant in cluster.router.state.status()["tenants"]] == [4]
    await cluster.all_end()
    await nothing_is_left(cluster)
    endings = {copy.request_id: copy.ending for copy in copies(cluster)}
    assert endings == {f"mirror-q{n}": "DONE" for n in range(4)} | {"mirror-bad": "REJECTED"}


async def test_a_copy_goes_on_when_its_client_has_gone(cluster):
    _, trial = await mirrored(cluster)
    await cluster.ask("r", [1], 50)
    await until(lambda: trial.core.requests and cluster.tokens["r"])
    await cluster.core.abort_requests_async(["r"])
    await until(lambda: len(copies(cluster)) == 1)
    assert copies(cluster)[0].ending == "DONE" and cluster.core.open_requests == 0
    await asyncio.sleep(0)
    await nothing_is_left(cluster)

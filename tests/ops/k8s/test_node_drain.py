"""`moray k8s drain-node`: cordon, streams, waiting, eviction, and the way back."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from cluster_objects import cluster_of, node, pod
from fake_api import LEASES, PODS, SERVICES
from typer.testing import CliRunner

from ops import cli
from ops.errors import UserError
from ops.k8s import node_drain
from ops.status import StatusError

NODE = "/api/v1/nodes/a"
SERVICE = f"{SERVICES}/moray"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_drain, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(node_drain, "EVICT_EVERY_S", 0.05)
    monkeypatch.setattr(node_drain, "WATCHER_S", 0.3)


@pytest.fixture
def moray(kubeconfig: Path):
    def run(*arguments: str):
        done = CliRunner().invoke(cli.app, ["k8s", "drain-node", *arguments, "--kubeconfig", str(kubeconfig)])
        if done.exception is not None and not isinstance(done.exception, (SystemExit, UserError)):
            raise done.exception
        return done

    return run


def test_it_cordons_moves_waits_and_takes_it_all_back(server, gateway, moray):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    done = moray("a", "--url", serving.url)
    assert done.exit_code == 0 and "no request of this RayService runs on a any more" in done.output
    assert "0 requests run there" in done.output
    assert server.objects[NODE]["spec"]["unschedulable"] is True and serving.states() == {
        "r1": "draining",
        "r2": "ready",
    }
    done = moray("a", "--url", serving.url, "--undo")
    assert done.exit_code == 0 and "r1 takes requests again" in done.output
    assert "unschedulable" not in server.objects[NODE]["spec"] and serving.states() == {"r1": "ready", "r2": "ready"}


def test_it_evicts_and_waits_for_disruption_budgets(server, gateway, moray):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    server.budget = 3
    done = moray("a", "--url", serving.url, "--evict")
    assert (
        done.exit_code == 0 and "waits for its disruption budget" in done.output and "worker-1 is gone" in done.output
    )
    assert f"{PODS}/worker-1" not in server.objects and f"{PODS}/worker-2" in server.objects
    assert "no Ray pod of this RayService runs on a any more" in done.output


def test_a_pod_that_came_before_the_cordon_is_moved_too(server, gateway, moray):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2", "r3")

    def place(_) -> bool:
        server.put(f"{PODS}/worker-3", pod("worker-3", "a", "10.0.0.3"))
        return False

    server.fail("PATCH", NODE, place)
    done = moray("a", "--url", serving.url, "--evict")
    assert done.exit_code == 0, done.exception
    assert serving.states() == {"r1": "draining", "r2": "ready", "r3": "draining"}
    assert f"{PODS}/worker-3" not in server.objects


def test_a_router_that_starts_anew_lets_nothing_be_evicted_under_streams(server, gateway, moray, monkeypatch):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    replicas, drain = serving.replicas, serving.drain

    def restart(asked):
        answer = drain(asked)
        replicas["r1"]["granted"] = 2  # they have not moved as yet
        serving.replicas = {}
        return answer

    monkeypatch.setattr(serving, "drain", restart)
    done = moray("a", "--url", serving.url, "--evict", "--timeout", "1")
    assert isinstance(done.exception, UserError) and "the router does not know r1" in str(done.exception)
    assert f"{PODS}/worker-1" in server.objects


def test_one_that_the_router_does_not_know_for_long_is_gone(gateway, monkeypatch):
    monkeypatch.setattr(node_drain, "GONE_AFTER_S", 0.2)
    said: list[str] = []
    began_s = time.monotonic()
    node_drain.wait_until_idle(gateway("r2").url, None, ["r1"], began_s + 10, said.append)
    assert time.monotonic() - began_s >= 0.2 and said == ["the router does not know r1", "0 requests run there"]


def test_a_router_that_knows_nobody_is_waited_for(server, gateway):
    cluster_of(server, "a", "b")
    there = node_drain.pods_on(server.api(), "moray", server.objects[SERVICE], "a")
    serving = gateway("r1", "r2")
    known, serving.replicas = serving.replicas, {}

    def say(text: str) -> None:
        if "knows no replica" in text:
            serving.replicas = known

    until_s = time.monotonic() + 10
    move = partial(node_drain.move_away, serving.url, None, there, force=False, watcher=False)
    assert move(until_s=until_s, report=say) == ["r1"] and serving.states()["r1"] == "draining"
    serving.replicas = {}
    with pytest.raises(node_drain.NotInTime, match="knows no replica"):
        move(until_s=time.monotonic(), report=lambda _: None)


def test_a_gateway_that_fails_for_a_moment_does_not_end_the_wait(gateway, monkeypatch):
    serving = gateway("r1", "r2")
    serving.replicas["r1"]["granted"] = 0
    answers = iter([StatusError("answered 503")])
    real = node_drain.fetch

    def fetch(*asked):
        for error in answers:
            raise error
        return real(*asked)

    monkeypatch.setattr(node_drain, "fetch", fetch)
    node_drain.wait_until_idle(serving.url, None, ["r1"], time.monotonic() + 10, lambda _: None)
    with pytest.raises(StatusError):
        node_drain.wait_until_idle("http://127.0.0.1:9", None, ["r1"], time.monotonic(), lambda _: None)


def test_a_budget_that_never_lets_it_ends_in_an_error(server, gateway, moray):
    cluster_of(server, "a", "b")
    server.budget = 10**6
    done = moray("a", "--url", gateway("r1", "r2").url, "--evict", "--timeout", "1")
    assert isinstance(done.exception, UserError) and "worker-1 (the API server answered 429" in str(done.exception)


def test_streams_that_do_not_end_in_time_are_an_error(server, gateway, moray):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    serving.drain = lambda asked: (200, {"replica": asked["replica"]})  # type: ignore[method-assign]
    done = moray("a", "--url", serving.url, "--timeout", "1", "--evict")
    assert isinstance(done.exception, UserError) and "2 requests still run there" in str(done.exception)
    assert f"{PODS}/worker-1" in server.objects, "nothing is evicted under streams"


def test_the_last_replica_needs_force(server, gateway, moray):
    cluster_of(server, "a")
    serving = gateway("r1")
    done = moray("a", "--url", serving.url)
    assert isinstance(done.exception, UserError) and "the last replica" in str(done.exception)
    assert moray("a", "--url", serving.url, "--force").exit_code == 0 and serving.states() == {"r1": "draining"}


def test_nothing_is_changed_where_the_gateway_cannot_be_reached(server, moray):
    cluster_of(server, "a", "b")
    done = moray("a", "--url", "http://127.0.0.1:9")
    assert isinstance(done.exception, UserError) and "unschedulable" not in server.objects[NODE]["spec"]


@pytest.mark.parametrize("option", ["--evict", "--force"])
def test_the_way_back_takes_no_other_options(server, gateway, moray, option):
    cluster_of(server, "a", "b")
    done = moray("a", "--url", gateway("r1", "r2").url, "--undo", option)
    assert done.exit_code == 2 and "--evict" in done.output and "--force" in done.output


def test_a_node_that_does_not_exist_is_not_made(server, gateway, moray):
    cluster_of(server, "a", "b")
    done = moray("x", "--url", gateway("r1", "r2").url)
    assert isinstance(done.exception, UserError) and "there is no node x" in str(done.exception)
    assert "/api/v1/nodes/x" not in server.objects


def test_a_node_that_another_manager_holds_open(server, gateway, moray):
    cluster_of(server, "a", "b")
    server.put(NODE, node("a") | {"spec": {"unschedulable": False}})
    server.owners[NODE, "unschedulable"] = "somebody"
    done = moray("a", "--url", gateway("r1", "r2").url)
    assert isinstance(done.exception, UserError) and "held open by somebody" in str(done.exception)


def test_one_that_somebody_else_cordoned_stays_cordoned(server, gateway, moray):
    cluster_of(server, "a", "b")
    server.put(NODE, node("a", cordoned=True))
    server.owners[NODE, "unschedulable"] = "kubectl-cordon"
    serving = gateway("r1", "r2")
    assert moray("a", "--url", serving.url).exit_code == 0
    done = moray("a", "--url", serving.url, "--undo")
    assert "a stays cordoned by kubectl-cordon" in done.output and serving.states()["r1"] == "draining"


def test_a_watcher_is_let_go_first(server, gateway, moray, monkeypatch):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    renewed = datetime.now(UTC).isoformat()
    server.put(f"{LEASES}/moray-node-watcher", {"spec": {"holderIdentity": "w", "renewTime": renewed}})
    asked = time.monotonic()
    assert moray("a", "--url", serving.url).exit_code == 0
    assert time.monotonic() - asked > 0.3 and serving.orders == [("drain", "r1")], "it did not; so this command did"


def test_an_old_lease_has_no_watcher_behind_it(server):
    api = server.api()
    lease = f"{LEASES}/w"
    assert not node_drain.a_watcher_lives(api, "moray", "w")
    for spec in ({"holderIdentity": "w", "renewTime": "2020-01-01T00:00:00.000000Z"}, {"holderIdentity": "w"}, {}):
        server.put(lease, {"spec": spec})
        assert not node_drain.a_watcher_lives(api, "moray", "w")


def test_a_pod_that_was_replaced_under_its_name_is_not_evicted(server, gateway):
    cluster_of(server, "a", "b")
    api = server.api()
    there = node_drain.pods_on(api, "moray", server.objects[SERVICE], "a")
    server.budget = 1  # it is asked for twice; meanwhile the pod is another
    new = pod("worker-1", "b", "10.0.0.9")
    server.put(f"{PODS}/worker-1", new | {"metadata": new["metadata"] | {"uid": "another"}})
    node_drain.evict(
        api, "moray", [one for one in there if one.name == "worker-1"], time.monotonic() + 5, lambda _: None
    )
    assert server.objects[f"{PODS}/worker-1"]["metadata"]["uid"] == "another"

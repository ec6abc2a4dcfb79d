"""The node watcher against an API server and a gateway over HTTP: what it does, tells, and remembers."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster_objects import cluster_of, node, pod
from fake_api import EVENTS, LEASES, NAMESPACE, PODS, FakeApi, answering
from fake_gateway import FakeGateway
from typer.testing import CliRunner

from ops import cli
from ops.errors import UserError
from ops.k8s import node_watcher
from ops.k8s.leadership import RECORD, Leadership
from ops.k8s.lease import Terms
from ops.k8s.node_metrics import Health, Metrics
from ops.k8s.node_watcher import NodeWatcher
from ops.k8s.watching import Mirror

QUICK = Terms(lease_s=1.5, renew_within_s=1.0, look_every_s=0.1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_watcher, "BUSY_EVERY_S", 0.05)
    monkeypatch.setattr(node_watcher, "IDLE_EVERY_S", 0.3)
    monkeypatch.setattr(node_watcher, "WOKEN_PAUSE_S", 0.01)


class Running:
    """A watcher as `moray k8s watch-nodes` runs it, in a thread."""

    def __init__(self, server: FakeApi, url: str, name: str) -> None:
        self.stop = threading.Event()
        api = server.api(self.stop)
        leadership = Leadership(api, NAMESPACE, "moray-node-watcher", name, QUICK)
        self.metrics = Metrics()
        self.watcher = NodeWatcher(api, NAMESPACE, "moray", url, None, leadership, self.metrics, self.stop)
        self.thread = threading.Thread(target=self.watcher.run, daemon=True)
        self.thread.start()

    @property
    def leading(self) -> bool:
        return self.watcher.leadership.leading

    def end(self) -> None:
        self.stop.set()
        self.watcher.wake()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def kill(self) -> None:
        """As SIGKILL: nothing is given back."""
        self.watcher.leadership.release = lambda: None  # type: ignore[method-assign]
        self.watcher.leadership._stop.set()
        self.end()


@pytest.fixture
def watch(server) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(gateway: FakeGateway, name: str = "one") -> Running:
        made.append(Running(server, gateway.url, name))
        return made[-1]

    yield start
    for one in made:
        one.end()


def events(server: FakeApi) -> list[tuple[str, str]]:
    found = [thing for path, thing in server.objects.items() if path.startswith(f"{EVENTS}/moray.")]
    return [(one["type"], one["reason"]) for one in found]


def sample(running: Running, name: str, **labels: str) -> float | None:
    return running.metrics.registry.get_sample_value(f"moray_node_watcher_{name}", labels)


def test_a_cordon_moves_the_streams_and_its_end_takes_the_replica_back(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    running = watch(serving)
    until(lambda: running.leading and not running.watcher.unready)
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    until(lambda: serving.states() == {"r1": "draining", "r2": "ready"})
    assert serving.replicas["r1"]["granted"] == 0, "its streams move, they are not waited for"
    until(lambda: ("Normal", "StreamsMoved") in events(server))
    until(lambda: sample(running, "drained_replicas") == 1 and sample(running, "leaving_nodes", cause="cordoned") == 1)
    server.put("/api/v1/nodes/a", node("a"))
    until(lambda: serving.states() == {"r1": "ready", "r2": "ready"})
    until(lambda: running.watcher.leadership.record == {} and ("Normal", "ReplicaBack") in events(server))
    assert serving.orders == [("drain", "r1"), ("undo", "r1")]
    assert sample(running, "orders_total", order="drain", outcome="done") == 1


def test_a_gpu_error_event_moves_the_streams(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    running = watch(serving)
    until(lambda: running.leading and not running.watcher.unready)
    about = {"kind": "Node", "name": "b"}
    said = {"involvedObject": about, "reason": "XIDError", "message": "NVRM: Xid (PCI:0000:3b:00): 79, pid=1"}
    server.put("/api/v1/namespaces/default/events/b.1", said)
    # The stand-in tells a watch only of its own collection, and this list is of all namespaces.
    server.end_watches()
    running.watcher.events._version = None
    until(lambda: serving.states()["r2"] == "draining")


def test_without_events_nothing_is_taken_back(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    serving.replicas["r1"]["state"] = "draining"
    metadata = {"name": "moray-node-watcher", "annotations": {RECORD: '{"r1": "a"}'}}
    server.put(f"{LEASES}/moray-node-watcher", {"metadata": metadata, "spec": {}})
    server.fail("GET", "/api/v1/events", answering(500), times=10**4)
    running = watch(serving)
    until(lambda: running.leading and sample(running, "drained_replicas") == 1)
    until(lambda: "Events are not listed" in running.watcher.unready)
    server.put("/api/v1/nodes/c", node("c"))
    assert running.watcher.look() and serving.orders == []
    server.faults.clear()
    until(lambda: serving.states()["r1"] == "ready", 20.0)


def test_a_gpu_error_whose_event_has_expired_holds_until_a_boot(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    booted = node("b")
    booted["status"]["nodeInfo"] = {"bootID": "boot-1"}
    server.put("/api/v1/nodes/b", booted)
    said = {"involvedObject": {"kind": "Node", "name": "b"}, "reason": "XIDError", "message": "Xid (PCI:0): 79"}
    server.put("/api/v1/namespaces/default/events/b.1", said)
    running = watch(serving)
    until(lambda: serving.states()["r2"] == "draining")
    assert running.watcher.leadership.record == {"r2": "b boot-1"}
    server.delete("/api/v1/namespaces/default/events/b.1")
    running.watcher.events._version = None  # see above
    server.end_watches()
    until(lambda: running.watcher.events.objects == {})
    assert running.watcher.look() and serving.orders == [("drain", "r2")]
    server.put("/api/v1/nodes/b", booted | {"status": booted["status"] | {"nodeInfo": {"bootID": "boot-2"}}})
    until(lambda: serving.states()["r2"] == "ready")


def test_what_is_done_was_remembered_before(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    noted: list[str] = []
    do = serving.drain

    def drain(asked: dict[str, Any]) -> tuple[int, Any]:
        lease = server.objects[f"{LEASES}/moray-node-watcher"]
        noted.append(lease["metadata"]["annotations"][RECORD])
        return do(asked)

    serving.drain = drain  # type: ignore[method-assign]
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    running = watch(serving)
    until(lambda: serving.states()["r1"] == "draining")
    server.put("/api/v1/nodes/a", node("a"))
    until(lambda: serving.states()["r1"] == "ready" and running.watcher.leadership.record == {})
    assert noted == ['{"r1": "a"}'] * 2, "and forgotten only once it is undone"


def test_what_an_operator_drained_stays_drained(server, gateway, watch, until):
    cluster_of(server, "a", "b", "c")
    serving = gateway("r1", "r2", "r3")
    serving.replicas["r1"]["state"] = "draining"
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    server.put("/api/v1/nodes/b", node("b", cordoned=True))
    running = watch(serving)
    until(lambda: serving.states()["r2"] == "draining")
    server.put("/api/v1/nodes/a", node("a"))
    server.put("/api/v1/nodes/b", node("b"))
    until(lambda: serving.states()["r2"] == "ready" and running.watcher.leadership.record == {})
    assert serving.orders == [("drain", "r2"), ("undo", "r2")] and serving.states()["r1"] == "draining"


def test_the_last_replica_stays_and_it_is_said_loudly(server, gateway, watch, until, caplog):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    spot = {"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}
    server.put("/api/v1/nodes/b", node("b", taints=[spot]))
    running = watch(serving)
    until(lambda: serving.states() == {"r1": "ready", "r2": "draining"})
    until(lambda: ("Warning", "LastReplica") in events(server))
    until(lambda: sample(running, "last_replicas") == 1)
    assert any("r1 is the last that takes requests" in line for line in caplog.messages)
    # Another comes up elsewhere: now it may go.
    server.put("/api/v1/nodes/c", node("c"))
    server.put(f"{PODS}/worker-3", pod("worker-3", "c", "10.0.0.3"))
    serving.replicas["r3"] = serving.replicas["r1"] | {"id": "r3", "address": "10.0.0.3:7000"}
    until(lambda: serving.states()["r1"] == "draining")


def test_one_that_starts_anew_goes_on_where_the_last_one_was_killed(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    first = watch(serving, "first")
    until(lambda: serving.states()["r1"] == "draining")
    first.kill()
    server.put("/api/v1/nodes/a", node("a"))  # while nobody watched
    second = watch(serving, "second")
    until(lambda: serving.states()["r1"] == "ready")
    assert second.leading


def test_of_two_one_acts_and_the_other_follows_it(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    first = watch(serving, "first")
    until(lambda: first.leading)
    second = watch(serving, "second")
    until(lambda: second.watcher.leadership.holder == "first")
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    until(lambda: serving.states()["r1"] == "draining")
    first.end()
    assert server.objects[f"{LEASES}/moray-node-watcher"]["spec"]["holderIdentity"] != "first"
    until(lambda: second.leading)
    server.put("/api/v1/nodes/a", node("a"))
    until(lambda: serving.states()["r1"] == "ready")
    assert serving.orders == [("drain", "r1"), ("undo", "r1")]


def test_a_gateway_that_is_away_is_asked_again(server, gateway, watch, until, caplog):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    replicas, serving.replicas = serving.replicas, {}
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    running = watch(serving)
    until(lambda: running.leading)
    assert serving.orders == []
    serving.replicas = replicas
    until(lambda: serving.states()["r1"] == "draining")


def test_an_api_server_that_goes_and_comes(server, gateway, watch, until):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    running = watch(serving)
    until(lambda: running.leading)
    server.stop()
    until(lambda: not running.leading)
    assert running.watcher.alive
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    server.start()
    until(lambda: serving.states()["r1"] == "draining", 20.0)


@pytest.mark.parametrize("failing", [False, True])
def test_who_wakes_it_all_the_time_does_not_keep_it_looking(server, gateway, watch, until, monkeypatch, failing):
    cluster_of(server, "a")
    monkeypatch.setattr(node_watcher, "WOKEN_PAUSE_S", 0.05 if failing else 0.2)
    monkeypatch.setattr(node_watcher, "IDLE_EVERY_S", 5.0)
    looks = 0

    def look(self: NodeWatcher) -> bool:
        nonlocal looks
        looks += 1
        if failing:
            raise UserError("the gateway does not answer")
        return True

    monkeypatch.setattr(NodeWatcher, "look", look)
    running, ends_s = watch(gateway("r1")), time.monotonic() + 1.0
    while time.monotonic() < ends_s:
        running.watcher.wake()
        time.sleep(0.001)
    assert looks <= 6, "a pause after each"


def test_what_was_heard_of_nodes_long_ago_is_no_reason_to_act(server, gateway, watch, until, monkeypatch):
    cluster_of(server, "a", "b")
    serving = gateway("r1", "r2")
    running = watch(serving)
    until(lambda: running.leading and not running.watcher.unready)
    with monkeypatch.context() as silent:
        silent.setattr(Mirror, "silent_s", node_watcher.STALE_S + 1)
        server.put("/api/v1/nodes/a", node("a", cordoned=True))
        until(lambda: "unschedulable" in str(running.watcher.nodes.objects))
        assert not running.watcher.look() and "nothing was heard of the nodes for 121 s" in running.watcher.unready
        assert serving.orders == []
    running.watcher.wake()
    until(lambda: serving.states()["r1"] == "draining")


def test_health_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    health = Health(("::1", 0), Metrics(), alive=lambda: True, unready=lambda: "")
    try:
        with urllib.request.urlopen(f"http://[::1]:{health.port}/readyz") as answer:
            assert answer.status == 200
    finally:
        health.close()


@pytest.mark.parametrize("listen", ["127.0.0.1:99999", "127.0.0.1:", "8081x", "127.0.0.1:\u00b2"])
def test_where_it_cannot_listen(listen):
    done = CliRunner().invoke(cli.app, ["k8s", "watch-nodes", "--url", "http://x", "--listen", listen])
    assert done.exit_code == 2 and "HOST:PORT" in done.output


def test_what_was_said_long_ago_is_forgotten(monkeypatch):
    now_s, said_s = 0.0, dict[str, float]()
    monkeypatch.setattr(node_watcher.time, "monotonic", lambda: now_s)
    assert node_watcher._due(said_s, "a", 60.0) and not node_watcher._due(said_s, "a", 60.0)
    now_s = 60.0
    assert node_watcher._due(said_s, "b", 60.0) and said_s == {"b": 60.0} and node_watcher._due(said_s, "a", 60.0)


def test_health_readiness_metrics() -> None:
    why = ["the nodes are not listed as yet"]
    health = Health(("127.0.0.1", 0), Metrics(), alive=lambda: not why, unready=lambda: why[0] if why else "")

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health.port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        assert ask("/readyz") == (503, "the nodes are not listed as yet\n") and ask("/healthz")[0] == 503
        why.clear()
        assert ask("/readyz") == ask("/healthz") == (200, "ok\n")
        code, text = ask("/metrics")
        assert code == 200 and 'moray_node_watcher_orders_total{order="drain",outcome="refused"} 0.0' in text
        assert ask("/else")[0] == 404
    finally:
        health.close()


def test_a_part_that_broke_is_a_reason_to_restart(server, gateway, watch, until) -> None:
    cluster_of(server, "a")
    running = watch(gateway("r1"))
    until(lambda: running.leading)
    assert running.watcher.alive
    running.watcher.events.stop()
    assert not running.watcher.alive


def test_unready_says_why(server) -> None:
    api = server.api(threading.Event())
    leadership: Any = Leadership(api, NAMESPACE, "x", "me", QUICK)
    watcher = NodeWatcher(api, NAMESPACE, "moray", "http://x", None, leadership, Metrics(), threading.Event())
    assert "not listed as yet" in watcher.unready and watcher.alive

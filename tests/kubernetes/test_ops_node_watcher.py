"""`moray k8s watch-nodes` as the chart runs it: two processes, with the chart's account, on a real API server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import helms
import httpx
import pytest
import yaml
from chart_values import OPEN
from fake_gateway import FakeGateway
from helm_releases import INSTALLED
from kube_api_server import ApiServer
from served_cluster import ServedCluster

from experts.linux import die_with_parent
from ops.own_session import free_port

pytestmark = pytest.mark.k8s

RELEASE, SERVICE = "prod", "prod-moray"
LEASE = f"{SERVICE}-node-watcher"


@pytest.fixture
def served(api_server: ApiServer, namespace: str) -> Iterator[ServedCluster]:
    """The chart, installed, and two worker pods of its RayService."""
    helm = api_server.helm(INSTALLED, namespace)
    helm.install(RELEASE, helms.CHART, OPEN)
    with api_server.http() as http:
        made = ServedCluster(http, namespace, SERVICE, workers=2)
        made.serve()
        yield made
        made.remove()
    helm.uninstall(RELEASE)


@pytest.fixture
def serving() -> Iterator[FakeGateway]:
    made = FakeGateway("r1", "r2")
    for number, one in enumerate(made.replicas.values(), 1):
        one["address"] = f"10.1.0.{number}:7000"
    yield made
    made.close()


class Watcher:
    def __init__(self, server: ApiServer, namespace: str, url: str, directory: Path) -> None:
        self.port = free_port()
        kubeconfig = directory / f"watcher-{self.port}"
        token = server.service_account_token(namespace, LEASE)
        kubeconfig.write_text(yaml.safe_dump(server.kubeconfig_of(token)))
        self._log = directory / f"watcher-{self.port}.log"
        command = [sys.executable, "-m", "ops.cli", "k8s", "watch-nodes", f"--url={url}", f"--lease={LEASE}"]
        command += [f"--namespace={namespace}", f"--rayservice={SERVICE}", f"--listen=127.0.0.1:{self.port}"]
        parent = os.getpid()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, f"--kubeconfig={kubeconfig}"],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with_parent(parent),
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def leads(self) -> bool:
        try:
            told = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text
        except httpx.TransportError:
            return False
        return "moray_node_watcher_leader 1.0" in told

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()  # one that hangs
            self.process.wait()


@pytest.fixture
def watcher(
    api_server: ApiServer, namespace: str, serving: FakeGateway, tmp_path: Path
) -> Iterator[Callable[[], Watcher]]:
    made: list[Watcher] = []

    def start() -> Watcher:
        made.append(Watcher(api_server, namespace, serving.url, tmp_path))
        return made[-1]

    yield start
    for one in made:
        one.end()


def until(condition: Callable[[], object], watchers: list[Watcher], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "\n".join(one.log for one in watchers)
        time.sleep(0.05)


def test_two_watchers_one_lease_and_the_other_takes_over(api_server: ApiServer, served, serving, watcher):
    first = watcher()
    until(lambda: first.is_ready() and first.leads(), [first])
    second = watcher()
    until(second.is_ready, [second])
    both = [first, second]
    assert not second.leads()
    served.cordon(served.nodes[0])
    until(lambda: serving.states() == {"r1": "draining", "r2": "ready"}, both)

    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    served.cordon(served.nodes[0], wanted=False)
    until(second.leads, both)
    until(lambda: serving.states() == {"r1": "ready", "r2": "ready"}, both)
    assert serving.orders == [("drain", "r1"), ("undo", "r1")]

    assert "permission is lacking" not in first.log + second.log
    api_server.restart()  # which knows no permissions in its first seconds
    served.cordon(served.nodes[1])
    until(lambda: serving.states() == {"r1": "ready", "r2": "draining"}, both)
    with api_server.http() as http:
        events = http.get(f"/api/v1/namespaces/{served.namespace}/events").json()["items"]
        told = [one["reason"] for one in events if one["involvedObject"]["name"] == SERVICE]
        assert sorted(set(told)) == ["ReplicaBack", "StreamsMoved"]

        assert second.end() == 0
        lease = http.get(f"/apis/coordination.k8s.io/v1/namespaces/{served.namespace}/leases/{LEASE}").json()
    assert lease["spec"].get("holderIdentity", "") == "" and "r2" in str(lease["metadata"]["annotations"]), lease


def test_a_gpu_error_event_of_a_node_moves_its_streams(api_server: ApiServer, served, serving, watcher):
    one = watcher()
    until(lambda: one.is_ready() and one.leads(), [one])
    about = {"apiVersion": "v1", "kind": "Node", "name": served.nodes[1]}
    said = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus."
    event = {
        "metadata": {"name": f"{served.nodes[1]}.1"},
        "involvedObject": about,
        "reason": "XIDError",
        "message": said,
    }
    with api_server.http() as http:
        event |= {"type": "Warning", "lastTimestamp": "2026-11-28T12:00:00Z"}
        assert http.post("/api/v1/namespaces/default/events", json=event).status_code == 201
    until(lambda: serving.states() == {"r1": "ready", "r2": "draining"}, [one])
    assert "Xid 79: GPU has fallen off the bus" in one.log

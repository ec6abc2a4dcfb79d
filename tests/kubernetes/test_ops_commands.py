"""`moray k8s drain-node`, `rollout` and `status` on a real API server."""

from __future__ import annotations

import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator

import helms
import pytest
import yaml
from chart_values import of_version
from fake_gateway import FakeGateway
from helm_releases import VERSIONS
from kube_api_server import ApiServer
from served_cluster import APPLY, MERGE, ServedCluster, api_of, own_address
from typer.testing import CliRunner

from ops import cli
from ops.errors import UserError
from ops.k8s.gateway import reached
from ops.status import fetch

pytestmark = pytest.mark.k8s


@pytest.fixture
def served(api_server: ApiServer, namespace: str) -> Iterator[ServedCluster]:
    with api_server.http() as http:
        made = ServedCluster(http, namespace, "moray", workers=2)
        made.add_service()
        made.serve()
        yield made
        made.remove()


@pytest.fixture
def serving() -> Iterator[FakeGateway]:
    made = FakeGateway("r1", "r2", key="operators", host=own_address() or "127.0.0.1")
    for number, one in enumerate(made.replicas.values(), 1):
        one["address"] = f"10.1.0.{number}:7000"
    yield made
    made.close()


@pytest.fixture
def moray(api_server: ApiServer, namespace: str) -> Callable[..., str]:
    """What it prints; its mistakes are raised."""

    def run(*arguments: str) -> str:
        options = ["--namespace", namespace, "--kubeconfig", str(api_server.kubeconfig), "--api-key", "operators"]
        done = CliRunner().invoke(cli.app, ["k8s", *arguments, *options])
        if done.exception is not None:
            raise done.exception
        return done.output

    return run


def test_drain_node_cordons_moves_and_takes_back(served, serving, moray):
    node = served.nodes[0]
    moray("drain-node", node, "--url", serving.url)
    after = served.node(node)
    owners = {one["manager"]: one["operation"] for one in after["metadata"]["managedFields"]}
    assert after["spec"]["unschedulable"] is True and owners["moray"] == "Apply"
    assert serving.states() == {"r1": "draining", "r2": "ready"}
    found = json.loads(moray("status", "--url", serving.url, "--json"))
    assert {one["name"]: one["leave"] for one in found["nodes"]} == {node: "is cordoned", served.nodes[1]: None}

    assert "r1 takes requests again" in moray("drain-node", node, "--url", serving.url, "--undo")
    assert "unschedulable" not in served.node(node)["spec"] and set(serving.states().values()) == {"ready"}


def test_who_else_cordoned_it_is_told_and_keeps_it(served, serving, moray):
    node = served.nodes[0]
    served.cordon(node)
    moray("drain-node", node, "--url", serving.url)
    assert f"{node} stays cordoned by" in moray("drain-node", node, "--url", serving.url, "--undo")
    assert served.node(node)["spec"]["unschedulable"] is True


def test_a_node_that_somebody_applies_as_open_is_not_forced(api_server: ApiServer, served, serving, moray):
    node = served.nodes[0]
    with api_server.http() as http:
        wanted = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "spec": {"unschedulable": False}}
        http.patch(f"/api/v1/nodes/{node}", params={"fieldManager": "fleet"}, headers=APPLY, json=wanted)
    with pytest.raises(UserError, match=r"held open by fleet"):
        moray("drain-node", node, "--url", serving.url)
    assert served.node(node)["spec"].get("unschedulable", False) is False
    assert set(serving.states().values()) == {"ready"}


def test_a_node_that_is_not_there_is_not_made(api_server: ApiServer, served, serving, moray):
    with pytest.raises(UserError, match="there is no node nowhere"):
        moray("drain-node", "nowhere", "--url", serving.url)
    with api_server.http() as http:
        assert http.get("/api/v1/nodes/nowhere").status_code == 404


def test_evictions_wait_for_the_disruption_budget(api_server: ApiServer, served, serving, moray):
    budgets = f"/apis/policy/v1beta1/namespaces/{served.namespace}/poddisruptionbudgets"
    with api_server.http() as http:
        spec = {"maxUnavailable": 1, "selector": {"matchLabels": {"ray.io/cluster": "moray-abc"}}}
        made = http.post(budgets, json={"metadata": {"name": "workers"}, "spec": spec})
        assert made.status_code == 201, made.text

        def allow(disruptions: int) -> None:
            """As the controller manager, which does not run here, would say."""
            counts = {"currentHealthy": 2, "desiredHealthy": 2 - disruptions, "expectedPods": 2}
            status = counts | {"observedGeneration": 1, "disruptionsAllowed": disruptions}
            http.patch(f"{budgets}/workers/status", json={"status": status}, headers=MERGE).raise_for_status()

        allow(0)

        def others() -> None:
            """The controller manager, a while later; then the kubelet, which ends the pod."""
            time.sleep(2.0)
            allow(1)
            pod = f"{served.pods}/worker-1"
            while not http.get(pod).json()["metadata"].get("deletionTimestamp"):
                time.sleep(0.05)
            http.delete(pod, params={"gracePeriodSeconds": 0})

        beside = threading.Thread(target=others)
        beside.start()
        said = moray("drain-node", served.nodes[0], "--url", serving.url, "--evict", "--timeout", "60")
        beside.join()
        assert "worker-1 waits for its disruption budget" in said and "worker-1 is gone" in said
        assert http.get(f"{served.pods}/worker-2").status_code == 200


def test_rollout_changes_the_version_and_nothing_else(api_server: ApiServer, served, moray):
    api = api_of(api_server)
    before = api.get(served.service)
    with pytest.raises(UserError, match=r"is managed by python-httpx.*moray rollout start v2"):
        moray("rollout", "v2")  # who created it has the string
    assert api.get(served.service) == before

    spec = {"rayClusterConfig": before["spec"]["rayClusterConfig"]}
    with api_server.http() as http:  # one in which it is nobody else's
        http.delete(served.service).raise_for_status()
        for manager, part in (("fleet", spec), ("moray", {"serveConfigV2": before["spec"]["serveConfigV2"]})):
            wanted = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "moray"}, "spec": part}
            done = http.patch(served.service, params={"fieldManager": manager}, headers=APPLY, json=wanted)
            assert done.is_success, done.text
    for version in ("v2", "v3"):
        assert f"asks for {version} now" in moray("rollout", version)
        after = api.get(served.service)["spec"]
        gateway = yaml.safe_load(after["serveConfigV2"])["applications"][0]["deployments"][0]
        assert gateway["user_config"] == {"version": version, "rollout": {"step_s": 60}}
        assert after["rayClusterConfig"] == spec["rayClusterConfig"]


@pytest.mark.parametrize("version", VERSIONS)
def test_rollout_of_what_helm_installed_is_helms(version: str, api_server: ApiServer, namespace: str, moray):
    helm = api_server.helm(version, namespace)
    helm.install("prod", helms.CHART, of_version("v1"))
    before = api_of(api_server).get(f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/prod-moray")
    with pytest.raises(UserError) as refused:
        moray("rollout", "v2")
    command = f"helm upgrade prod helm/moray --namespace {namespace} --reuse-values --set model.version=v2"
    assert command in str(refused.value)
    with pytest.raises(UserError, match="asks for v1 already"):
        moray("rollout", "v1")
    assert api_of(api_server).get(f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/prod-moray") == before
    helm.uninstall("prod")


def test_a_bundle_names_what_the_cluster_does_not_give(served, serving, moray, tmp_path):
    said = moray("diagnose", "--url", serving.url, "-o", str(tmp_path / "b.tar.gz"))
    assert "logs/worker-1/ray.log: the API server answered" in said  # no kubelet runs here
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"MISSING.txt", "version.json", "rayservice.json", "pods.json", "nodes.json", "gateway/status.json"} <= names


def test_a_permission_that_is_lacking_is_named(api_server: ApiServer, served, tmp_path):
    token = api_server.service_account_token(served.namespace, "default")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(api_server.kubeconfig_of(token)))
    options = ["--namespace", served.namespace, "--kubeconfig", str(kubeconfig)]
    done = CliRunner().invoke(cli.app, ["k8s", "status", *options])
    said = str(done.exception)
    assert isinstance(done.exception, UserError) and "a permission is lacking" in said and "rayservices" in said


@pytest.mark.skipif(
    own_address() is None, reason="an Endpoints object takes no loopback address, and there is no other"
)
def test_the_gateway_is_reached_through_the_api_server(api_server: ApiServer, served, serving, moray):
    ports = [{"name": "serve", "port": 8000}]
    core = f"/api/v1/namespaces/{served.namespace}"
    served.add_pod("gateway", served.nodes[1], str(own_address()))
    pod = {"kind": "Pod", "namespace": served.namespace, "name": "gateway"}  # else the API server connects to nobody
    subset = {
        "addresses": [{"ip": own_address(), "targetRef": pod}],
        "ports": [{"name": "serve", "port": serving.port}],
    }
    with api_server.http() as http:
        http.post(f"{core}/services", json={"metadata": {"name": "moray-gateway"}, "spec": {"ports": ports}})
        with pytest.raises(UserError, match="cannot be reached through the API server"):
            moray("drain-node", served.nodes[0])
        made = http.post(f"{core}/endpoints", json={"metadata": {"name": "moray-gateway"}, "subsets": [subset]})
        assert made.status_code == 201, made.text
    with reached(api_of(api_server), served.namespace, "moray", None) as url:
        with pytest.raises(UserError, match="401"):
            fetch(url, None)
        assert len(fetch(url, "operators")["replicas"]) == 2, "the key goes as x-api-key"
    moray("drain-node", served.nodes[0])
    assert serving.states() == {"r1": "draining", "r2": "ready"}
    assert json.loads(moray("status", "--json"))["lacking"] == []

"""`moray k8s status`, and how the gateway is reached through the API server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster_objects import cluster_of, node, rayservice
from fake_api import NAMESPACE, SERVICES, answering
from typer.testing import CliRunner

from ops import cli
from ops.drain import drain
from ops.errors import UserError
from ops.k8s.gateway import reached
from ops.status import fetch


@pytest.fixture
def moray(kubeconfig: Path):
    def run(*arguments: str):
        return CliRunner().invoke(cli.app, ["k8s", *arguments, "--kubeconfig", str(kubeconfig)])

    return run


def through(server, serving, name: str = "moray-gateway") -> None:
    """A Service of that name, with the gateway behind it."""
    ports = [{"name": "metrics", "port": 9000}, {"name": "http", "port": 8000}]
    server.put(f"/api/v1/namespaces/{NAMESPACE}/services/{name}", {"spec": {"ports": ports}})
    server.proxied[f"{name}:8000"] = ("127.0.0.1", serving.port)


def test_replicas_are_shown_on_their_nodes(server, gateway, moray):
    cluster_of(server, "a", "b")
    server.put("/api/v1/nodes/a", node("a", cordoned=True))
    serving = gateway("r1", "r2", "elsewhere")
    serving.rollouts["current"] = {"from": "v1", "to": "v2", "phase": "canary", "step": 0, "steps": [0.1], "why": "so"}
    done = moray("status", "--url", serving.url, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.output)
    by_name = {one["name"]: one for one in found["nodes"]}
    assert by_name["a"]["leave"] == "is cordoned" and by_name["b"]["leave"] is None
    assert [one["id"] for pod in by_name["a"]["pods"] for one in pod["replicas"]] == ["r1"]
    assert by_name["a"]["pods"][0]["gpus"] == 4 and by_name["head"]["pods"][0]["role"] == "head"
    assert [one["id"] for one in found["elsewhere"]] == ["elsewhere"]
    assert found["rayservice"]["clusters"][0]["applications"] == {"moray": "RUNNING"} and found["lacking"] == []
    shown = moray("status", "--url", serving.url)
    assert shown.exit_code == 0 and "v1 -> v2: canary" in shown.output and "node a is cordoned" in shown.output


def test_what_cannot_be_had_is_named_and_the_rest_is_shown(server, moray):
    cluster_of(server, "a", "b")
    server.fail("GET", "/api/v1/nodes", answering(403, "Forbidden", "cannot list nodes"))
    found = json.loads(moray("status", "--json").output)
    assert [one["name"] for one in found["nodes"]] == ["a", "b", "head"]
    assert len(found["lacking"]) == 2 and "cannot list nodes" in found["lacking"][0]
    assert "no Service moray-gateway or moray-clusters or moray-serve-svc" in found["lacking"][1]


@pytest.mark.parametrize("name", ["moray-gateway", "moray-clusters", "moray-serve-svc"])
def test_the_gateway_is_reached_through_the_api_server_with_its_key(server, gateway, name):
    serving = gateway("r1", key="operators")
    through(server, serving, name)
    with reached(server.api(), NAMESPACE, "moray", None) as url:
        assert fetch(url, "operators")["replicas"][0]["id"] == "r1"
        assert fetch(url, "operators", "/moray/status?brief=true") and server.asked[-1][2] == {"brief": "true"}
        assert drain(url, "r1", "operators", migrate=True, undo=False, force=True) == "r1"
        with pytest.raises(UserError, match="401"):
            fetch(url, "wrong")
        stranger = url.rpartition("/")[0]
        with pytest.raises(UserError, match="404"):
            fetch(stranger)


def test_a_service_without_pods_is_told_in_the_api_servers_words(server, gateway):
    through(server, gateway("r1"))
    server.proxied.clear()
    with (
        pytest.raises(UserError, match=r"Service moray-gateway\): no endpoints available.*--url"),
        reached(server.api(), NAMESPACE, "moray", None) as url,
    ):
        fetch(url)


def test_which_rayservice(server, moray):
    assert "there is none" in str(moray("status").exception)
    server.put(f"{SERVICES}/one", rayservice("one"))
    server.put(f"{SERVICES}/two", rayservice("two"))
    assert "name one by --rayservice (one, two)" in str(moray("status").exception)
    assert "no RayService three" in str(moray("status", "--rayservice", "three").exception)
    assert moray("status", "--rayservice", "two").exit_code == 0


def test_no_cluster_to_talk_to(tmp_path):
    for kubeconfig in (tmp_path / "missing", tmp_path):
        done = CliRunner().invoke(cli.app, ["k8s", "status", "--kubeconfig", str(kubeconfig)])
        assert isinstance(done.exception, UserError) and "--kubeconfig FILE" in str(done.exception)
    done = CliRunner().invoke(cli.app, ["k8s", "watch-nodes", "--url", "http://x", "--listen", "nowhere"])
    assert done.exit_code == 2 and "HOST:PORT" in done.output

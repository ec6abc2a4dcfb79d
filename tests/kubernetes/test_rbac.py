"""What the chart's service accounts may do, asked of a real API server with their own tokens.

Every request that the node watcher needs is let through, and 403 is the answer to each that would let whoever takes a
pod over do harm: read a Secret, run something elsewhere, touch a node. Ray's pods have no token, and theirs would open
nothing: the head's account gets its one Role from KubeRay, where Ray's autoscaler runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import helms
import httpx
import pytest
from chart_values import of_version
from helm_releases import INSTALLED
from kube_api_server import ApiServer
from served_cluster import MERGE

pytestmark = pytest.mark.k8s

WATCHER = "prod-moray-node-watcher"
CORE, HERE, ELSEWHERE = "/api/v1", "/api/v1/namespaces/{here}", "/api/v1/namespaces/default"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{here}/leases"
RAY = "/apis/ray.io/v1/namespaces/{here}"
ROLES = "/apis/rbac.authorization.k8s.io/v1"
WATCH = "?watch=1&timeoutSeconds=1"


class Ask(NamedTuple):
    method: str
    path: str
    body: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def lease(name: str, **metadata: str) -> dict[str, Any]:
    return {"metadata": {"name": name} | metadata, "spec": {"holderIdentity": "a"}}


EVENT = {
    "metadata": {"name": "drained"},
    "involvedObject": {"kind": "Pod", "name": "a", "namespace": "{here}"},
    "reason": "Draining",
    "message": "its streams move",
    "type": "Normal",
}
# In this order: what is made is then read and changed.
NEEDED = [
    Ask("GET", f"{CORE}/nodes"),
    Ask("GET", f"{CORE}/nodes{WATCH}"),
    Ask("GET", f"{CORE}/nodes/node-1"),
    Ask("GET", f"{CORE}/events"),
    Ask("GET", f"{CORE}/events{WATCH}"),
    Ask("GET", f"{HERE}/pods"),
    Ask("GET", f"{HERE}/pods{WATCH}"),
    Ask("POST", f"{HERE}/events", EVENT),
    Ask("PATCH", f"{HERE}/events/drained", {"count": 2}),
    Ask("POST", LEASES, lease(WATCHER)),
    Ask("GET", f"{LEASES}/{WATCHER}"),
    Ask("PUT", f"{LEASES}/{WATCHER}", lease(WATCHER, resourceVersion="{read}")),
    Ask("GET", f"{RAY}/rayservices/prod-moray"),
]
# Nobody's.
FORBIDDEN = [
    Ask("GET", f"{CORE}/secrets"),
    Ask("GET", f"{HERE}/secrets"),
    Ask("GET", f"{HERE}/secrets/keys"),
    Ask("GET", f"{HERE}/configmaps/prod-moray-settings"),
    Ask("PATCH", f"{HERE}/configmaps/prod-moray-settings", {"data": {}}),
    Ask("POST", f"{HERE}/pods", {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}),
    Ask("DELETE", f"{HERE}/pods/a"),
    Ask("POST", f"{HERE}/pods/a/exec?command=sh"),
    Ask("POST", f"{HERE}/pods/a/eviction", {"metadata": {"name": "a"}}),
    Ask("GET", f"{HERE}/pods/a/log"),
    Ask("GET", f"{ELSEWHERE}/pods"),
    Ask("GET", f"{CORE}/pods"),
    Ask("GET", f"{CORE}/namespaces"),
    Ask("PATCH", f"{CORE}/nodes/node-1", {"spec": {"unschedulable": True}}),
    Ask("PATCH", f"{CORE}/nodes/node-1/status", {"status": {}}),
    Ask("DELETE", f"{CORE}/nodes/node-1"),
    Ask("GET", f"{CORE}/nodes/node-1/proxy/metrics"),
    Ask("POST", f"{ELSEWHERE}/events", EVENT),
    Ask("DELETE", f"{HERE}/events/drained"),
    Ask("GET", LEASES),
    Ask("GET", f"{LEASES}/other"),
    Ask("PUT", f"{LEASES}/other", lease("other")),
    Ask("DELETE", f"{LEASES}/{WATCHER}"),
    Ask("GET", f"{RAY}/rayservices"),
    Ask("GET", f"{RAY}/rayservices/other"),
    Ask("PATCH", f"{RAY}/rayservices/prod-moray", {"spec": {"serveConfigV2": ""}}),
    Ask("DELETE", f"{RAY}/rayservices/prod-moray"),
    Ask("GET", f"{RAY}/rayclusters"),
    Ask("GET", "/apis/apps/v1/namespaces/{here}/deployments"),
    Ask("POST", f"{HERE}/serviceaccounts/prod-moray-node-watcher/token", {"spec": {}}),
    Ask("POST", f"{ROLES}/namespaces/{{here}}/rolebindings", {"metadata": {"name": "more"}}),
    Ask("PATCH", f"{ROLES}/namespaces/{{here}}/roles/{WATCHER}", {"rules": []}),
    Ask("PATCH", f"{ROLES}/clusterroles/{{here}}-{WATCHER}", {"rules": []}),
]


@pytest.fixture(scope="module")
def here(api_server: ApiServer) -> Iterator[str]:
    """A namespace with a release, as it is after its installation."""
    name = "rbac"
    with api_server.http() as http:
        http.post("/api/v1/namespaces", json={"metadata": {"name": name}}).raise_for_status()
        http.post("/api/v1/nodes", json={"metadata": {"name": "node-1"}}).raise_for_status()
        http.post(f"/api/v1/namespaces/{name}/serviceaccounts", json={"metadata": {"name": "none"}}).raise_for_status()
        helm = api_server.helm(INSTALLED, name)
        helm.install("prod", helms.CHART, of_version("v1"))
        yield name
        helm.uninstall("prod")
        http.delete("/api/v1/nodes/node-1").raise_for_status()


def test_the_node_watcher_may_do_all_that_it_needs(api_server: ApiServer, here: str):
    with account(api_server, here, WATCHER) as watcher:
        read = ""  # the version of what was read last
        for ask in NEEDED:
            answer = send(watcher, ask, here, read)
            assert answer.is_success, f"{ask}: {answer.text}"
            read = "" if WATCH in ask.path else answer.json()["metadata"]["resourceVersion"]


@pytest.mark.parametrize("ask", FORBIDDEN, ids=str)
def test_the_node_watcher_may_do_nothing_else(ask: Ask, api_server: ApiServer, here: str):
    with account(api_server, here, WATCHER) as watcher:
        assert send(watcher, ask, here).status_code == 403


@pytest.mark.parametrize("name", ["worker", "head"])
def test_the_accounts_of_rays_pods_may_do_nothing(name: str, api_server: ApiServer, here: str):
    with account(api_server, here, f"prod-moray-{name}") as pod:
        allowed = [str(ask) for ask in NEEDED + FORBIDDEN if send(pod, ask, here).status_code != 403]

    assert not allowed


@pytest.mark.parametrize("name", ["worker", "head"])
def test_the_rules_of_rays_pods_are_those_of_an_account_without_any(name: str, api_server: ApiServer, here: str):
    assert rules(api_server, here, f"prod-moray-{name}") == rules(api_server, here, "none")


def test_the_rules_of_the_node_watcher_are_these(api_server: ApiServer, here: str):
    own = rules(api_server, here, WATCHER) - rules(api_server, here, "none")

    assert own == {
        ("", "nodes", "", "get list watch"),
        ("", "events", "", "get list watch"),
        ("", "pods", "", "get list watch"),
        ("", "events", "", "create patch"),
        ("ray.io", "rayservices", "prod-moray", "get"),
        ("coordination.k8s.io", "leases", WATCHER, "get update"),
        ("coordination.k8s.io", "leases", "", "create"),
    }


def account(api_server: ApiServer, namespace: str, name: str) -> httpx.Client:
    return api_server.http(api_server.service_account_token(namespace, name))


def send(http: httpx.Client, ask: Ask, here: str, read: str = "") -> httpx.Response:
    body = None if ask.body is None else json.dumps(ask.body).replace("{here}", here).replace("{read}", read)
    headers = MERGE if ask.method == "PATCH" else {"Content-Type": "application/json"}
    return http.request(ask.method, ask.path.format(here=here), content=body, headers=headers)


def rules(api_server: ApiServer, namespace: str, name: str) -> set[tuple[str, str, str, str]]:
    """(group, resource, name of the object, verbs) of all that this account may do in its namespace."""
    asked = {"spec": {"namespace": namespace}}
    with account(api_server, namespace, name) as http:
        answer = http.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", json=asked).raise_for_status()
    return {
        (group, resource, " ".join(rule.get("resourceNames", ())), " ".join(sorted(rule["verbs"])))
        for rule in answer.json()["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }

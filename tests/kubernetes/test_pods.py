"""The pods that KubeRay and the Deployment make of the chart's templates, put to the real validation of pods.

A custom resource's schema does not know that a volume's name occurs twice, that a mounted one is missing, or that a
limit is below its request; KubeRay would find that out, pod by pod, on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helms
import httpx
import pytest
from chart_values import INSTALLABLE
from helm_releases import INSTALLED
from kube_api_server import ApiServer

pytestmark = pytest.mark.k8s


@pytest.fixture(scope="module")
def named_by_values(api_server: ApiServer) -> None:
    """What pods may name that their cluster has to have."""
    with api_server.http() as http:
        for path, item in [
            ("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": "serving"}, "value": 1}),
            ("/apis/node.k8s.io/v1/runtimeclasses", {"metadata": {"name": "nvidia"}, "handler": "nvidia"}),
        ]:
            http.post(path, json=item).raise_for_status()


@pytest.mark.parametrize("case", INSTALLABLE)
@pytest.mark.usefixtures("named_by_values")
def test_the_api_server_takes_every_pod(case: str, api_server: ApiServer, namespace: str):
    helm = api_server.helm(INSTALLED, namespace)
    helm.install("prod", helms.CHART, INSTALLABLE[case])
    with api_server.http() as http:
        taken = {}
        for name, template in templates(http, namespace):
            pod = {"metadata": template["metadata"] | {"name": name}, "spec": template["spec"]}
            answer = http.post(f"/api/v1/namespaces/{namespace}/pods", json=pod, params={"dryRun": "All"})
            taken[name] = answer.status_code == 201 or answer.json()["message"]
    helm.uninstall("prod")

    assert len(taken) >= 2 and set(taken.values()) == {True}, taken


def templates(http: httpx.Client, namespace: str) -> Iterator[tuple[str, dict[str, Any]]]:
    [service] = items(http, f"/apis/ray.io/v1/namespaces/{namespace}/rayservices")
    cluster = service["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield f"worker-{group['groupName']}", group["template"]
    for watcher in items(http, f"/apis/apps/v1/namespaces/{namespace}/deployments"):
        yield "node-watcher", watcher["spec"]["template"]


def items(http: httpx.Client, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(path).raise_for_status().json()["items"]
    return found

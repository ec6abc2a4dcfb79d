"""The pods that KubeRay and the Deployment make of the chart's templates, put to the real validation of pods.

A custom resource's schema does not know that a volume's name occurs twice, that a mounted one is missing, or that a
limit is below its request; KubeRay would find that out, pod by pod, on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helms
import pytest
from chart_values import BY_CASE
from helm_releases import VERSIONS
from kube_api_server import ApiServer
from stored_objects import stored

pytestmark = pytest.mark.k8s


@pytest.mark.parametrize("case", BY_CASE)
def test_the_api_server_takes_every_pod(case: str, api_server: ApiServer, namespace: str):
    installed = next((version for version in VERSIONS if not helms.missing(version)), VERSIONS[0])
    helm = api_server.helm(installed, namespace)
    helm.install("prod", helms.CHART, BY_CASE[case])
    with api_server.http() as http:
        found = stored(http, namespace)
        taken = {}
        for name, template in templates(found["RayService/prod-moray"], found["Deployment/prod-moray-node-watcher"]):
            pod = {"metadata": template["metadata"] | {"name": name}, "spec": template["spec"]}
            answer = http.post(f"/api/v1/namespaces/{namespace}/pods", json=pod, params={"dryRun": "All"})
            taken[name] = answer.status_code == 201 or answer.json()["message"]
    helm.uninstall("prod")

    assert len(taken) >= 3 and set(taken.values()) == {True}, taken


def templates(service: dict[str, Any], watcher: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = service["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield f"worker-{group['groupName']}", group["template"]
    yield "node-watcher", watcher["spec"]["template"]

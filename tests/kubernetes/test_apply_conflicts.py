"""Two who want one field: the API server names the owner to whoever does not force, and nothing is overwritten."""

from __future__ import annotations

import helms
import httpx
import pytest
from chart_values import of_version
from helm_releases import VERSIONS, HelmFailed
from kube_api_server import ApiServer
from served_cluster import APPLY

pytestmark = pytest.mark.k8s

SERVICE = "/apis/ray.io/v1/namespaces/{}/rayservices/prod-moray"


@pytest.mark.parametrize("version", VERSIONS)
def test_who_applies_a_field_that_helm_owns_is_told_so(version: str, api_server: ApiServer, namespace: str):
    api_server.helm(version, namespace).install("prod", helms.CHART, of_version("v1"))
    with api_server.http() as http:
        before = http.get(SERVICE.format(namespace)).json()
        [owner] = {each["manager"] for each in before["metadata"]["managedFields"]}

        answer = apply(http, namespace, "moray", {"serveConfigV2": "applications: []"})

        assert answer.status_code == 409
        [cause] = answer.json()["details"]["causes"]
        assert cause["field"] == ".spec.serveConfigV2" and f'"{owner}"' in cause["message"], cause
        assert http.get(SERVICE.format(namespace)).json() == before
    api_server.helm(version, namespace).uninstall("prod")


def test_helm_4_does_not_take_a_field_from_its_owner(api_server: ApiServer, namespace: str):
    helm = api_server.helm(helms.Helm4.version, namespace)
    helm.install("prod", helms.CHART, of_version("v1"))
    with api_server.http() as http:
        apply(http, namespace, "autopilot", {"rayClusterDeletionDelaySeconds": 7}, force=True).raise_for_status()

        with pytest.raises(HelmFailed, match=r'conflict with "autopilot".*rayClusterDeletionDelaySeconds'):
            helm.upgrade("prod", helms.CHART, of_version("v1") | {"drain": {"seconds": 300}})

        assert http.get(SERVICE.format(namespace)).json()["spec"]["rayClusterDeletionDelaySeconds"] == 7
    helm.uninstall("prod")


def apply(http: httpx.Client, namespace: str, manager: str, spec: object, force: bool = False) -> httpx.Response:
    """Server-side apply to the RayService."""
    wanted = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "prod-moray"}, "spec": spec}
    parameters = {"fieldManager": manager} | ({"force": "true"} if force else {})
    return http.patch(SERVICE.format(namespace), params=parameters, headers=APPLY, json=wanted)

"""A release on a real API server, with both Helms: install, another model version, rollback, a newer chart, the end."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helms
import pytest
import yaml
from cases import OPEN
from chart_values import INSTALLABLE, of_version
from helm_releases import VERSIONS, Helm, HelmFailed
from kube_api_server import ApiServer
from served_cluster import MERGE
from stored_objects import Objects, content, stored

pytestmark = pytest.mark.k8s

RELEASE = "prod"
NAME = "prod-moray"
# The chart as it was when it came to be, which nobody has installed; from the first release on, the one before.
EARLIER_CHART = Path(__file__).with_name("moray-0.0.1.tgz")


@pytest.fixture
def objects(api_server: ApiServer, namespace: str) -> Callable[[], Objects]:
    """What is stored now, without Helm's own records of the release."""

    def now() -> Objects:
        with api_server.http() as http:
            found = stored(http, namespace)
        return {key: item for key, item in found.items() if not key.startswith("Secret/sh.helm.release")}

    return now


@pytest.fixture(params=VERSIONS)
def helm(request: pytest.FixtureRequest, api_server: ApiServer, namespace: str) -> Helm:
    return api_server.helm(request.param, namespace)


@pytest.mark.parametrize("case", ["embedded", "incremental", "monitored"])
def test_an_uninstall_leaves_nothing_of_what_was_installed(case: str, helm: Helm, objects: Callable[[], Objects]):
    before = objects()

    helm.install(RELEASE, helms.CHART, INSTALLABLE[case])

    made = objects().keys() - before.keys()
    assert {f"RayService/{NAME}", f"ConfigMap/{NAME}-settings", f"Deployment/{NAME}-node-watcher"} <= made

    helm.uninstall(RELEASE)

    assert objects().keys() == before.keys()


def test_another_model_version_changes_the_wish_and_the_settings_and_nothing_else(
    helm: Helm, api_server: ApiServer, namespace: str, objects: Callable[[], Objects]
):
    helm.install(RELEASE, helms.CHART, of_version("v1"))
    status = {"serviceStatus": "Running"}  # as KubeRay writes it, by the status subresource
    with api_server.http() as http:
        path = f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/{NAME}/status"
        http.patch(path, json={"status": status}, headers=MERGE).raise_for_status()
    before = objects()

    helm.upgrade(RELEASE, helms.CHART, of_version("v2"))

    after = objects()
    assert after.keys() == before.keys()
    versions = ({key: item["metadata"]["resourceVersion"] for key, item in state.items()} for state in (before, after))
    changed = {key for key, _ in set.symmetric_difference(*(set(version.items()) for version in versions))}
    assert changed == {f"RayService/{NAME}", f"ConfigMap/{NAME}-settings"}
    old, new = (content(state[f"RayService/{NAME}"]) for state in (before, after))
    old_serve, new_serve = (yaml.safe_load(service["spec"].pop("serveConfigV2")) for service in (old, new))
    assert old == new and new["status"] == status
    assert [gateway(serve)["user_config"].pop("version") for serve in (old_serve, new_serve)] == ["v1", "v2"]
    assert old_serve == new_serve
    old_settings, new_settings = (
        yaml.safe_load(state[f"ConfigMap/{NAME}-settings"]["data"]["moray.yaml"]) for state in (before, after)
    )
    assert [settings["model"].pop("version") for settings in (old_settings, new_settings)] == ["v1", "v2"]
    assert old_settings == new_settings

    helm.rollback(RELEASE, 1)

    assert contents(objects()) == contents(before)


def test_a_newer_chart_makes_of_an_older_release_what_it_installs_itself(helm: Helm, objects: Callable[[], Objects]):
    values = of_version("v1")
    helm.install(RELEASE, helms.CHART, values)
    installed = contents(objects())
    helm.uninstall(RELEASE)
    helm.install(RELEASE, EARLIER_CHART, values)
    earlier = contents(objects())
    assert earlier != installed

    helm.upgrade(RELEASE, helms.CHART, values)

    assert contents(objects()) == installed

    helm.rollback(RELEASE, 1)

    assert contents(objects()) == earlier


def test_releases_of_one_name_in_two_namespaces_leave_each_other_alone(
    helm: Helm, api_server: ApiServer, objects: Callable[[], Objects], request: pytest.FixtureRequest
):
    other_namespace = f"other-{secrets.token_hex(4)}"
    with api_server.http() as http:
        http.post("/api/v1/namespaces", json={"metadata": {"name": other_namespace}}).raise_for_status()
    other = api_server.helm(request.node.callspec.params["helm"], other_namespace)
    helm.install(RELEASE, helms.CHART, of_version("v1"))
    before = contents(objects())

    other.install(RELEASE, helms.CHART, of_version("v1"))
    other.uninstall(RELEASE)

    assert contents(objects()) == before
    helm.uninstall(RELEASE)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "nobody may use the API"),
        # Asked of the server itself, which has no such kind here.
        (OPEN | {"monitoring": {"scrapeConfig": {"enabled": True}}}, "does not know monitoring.coreos.com/v1alpha1"),
    ],
    ids=["nobody may use it", "a kind is missing"],
)
def test_what_the_chart_refuses_installs_nothing(
    values: dict[str, Any], said: str, helm: Helm, objects: Callable[[], Objects]
):
    before = objects()

    with pytest.raises(HelmFailed, match=said):
        helm.install(RELEASE, helms.CHART, values)

    assert objects().keys() == before.keys()


def contents(state: Objects) -> Objects:
    return {key: content(item) for key, item in state.items()}


def gateway(serve: dict[str, Any]) -> dict[str, Any]:
    [found] = [each for each in serve["applications"][0]["deployments"] if each["name"] == "Gateway"]
    return found

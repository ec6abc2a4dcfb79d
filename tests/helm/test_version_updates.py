"""What an upgrade changes: another model.version the Gateway's user_config alone, another image the cluster."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cases import CASES, OPEN, STORE, tier
from helms import Object, Refused
from ray.serve._private.utils import get_capacity_adjusted_num_replicas

from ops.rollout.wanted import parse

Render = Callable[..., list[Object]]
CLUSTER = ("spec", "rayClusterConfig")


def differences(old: Any, new: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    """Path -> both values, where two trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [(key, old.get(key), new.get(key)) for key in old.keys() | new.keys()]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        keys = [(index, *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    else:
        return {} if old == new else {path: (old, new)}
    return {found: values for key, *pair in keys for found, values in differences(*pair, (*path, key)).items()}


def opened(objects: list[Object]) -> dict[str, Object]:
    """By kind and name, with the YAML that is inside as trees."""
    found = {}
    for each in json.loads(json.dumps(objects)):
        if each["kind"] == "RayService":
            each["spec"]["serveConfigV2"] = yaml.safe_load(each["spec"]["serveConfigV2"])
        if "moray.yaml" in each.get("data", {}):
            each["data"]["moray.yaml"] = yaml.safe_load(each["data"]["moray.yaml"])
        found[f"{each['kind']} {each['metadata']['name']}"] = each
    return found


def changed(render: Render, old: Any, new: Any) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    return differences(opened(render(old)), opened(render(new)))


def with_version(version: str, **values: Any) -> dict[str, Any]:
    return tier("32b") | {"model": STORE | {"version": version}} | values


def service_of(objects: list[Object]) -> Object:
    [service] = [each for name, each in opened(objects).items() if name.startswith("RayService ")]
    return service


def application_of(objects: list[Object]) -> dict[str, Any]:
    [application] = service_of(objects)["spec"]["serveConfigV2"]["applications"]
    assert isinstance(application, dict)
    return application


def test_another_version_changes_the_user_config_and_the_settings_of_new_clusters_alone(render: Render) -> None:
    user_config = ("spec", "serveConfigV2", "applications", 0, "deployments", 0, "user_config")
    assert changed(render, with_version("v1"), with_version("v2")) == {
        ("RayService r1-moray", *user_config, "version"): ("v1", "v2"),
        ("ConfigMap r1-moray-settings", "data", "moray.yaml", "model", "version"): ("v1", "v2"),
        ("ConfigMap r1-moray-settings", "data", "versions"): ("v1\n", "v2\n"),
    }


def test_of_a_store_that_pods_copy_another_version_changes_no_pod_either(render: Render) -> None:
    old = CASES["object-storage"]
    new = old | {"model": old["model"] | {"version": "v2"}}
    assert {path[:2] for path in changed(render, old, new)} == {
        ("RayService r1-moray", "spec"),
        ("ConfigMap r1-moray-settings", "data"),
    }
    assert not any(path[1:3] == CLUSTER for path in changed(render, old, new))


def test_the_user_config_is_one_that_the_rollout_engine_understands(render: Render) -> None:
    gates = {"steps": [0.05, 0.5], "gates": {"errors": 0.01}}
    [deployment] = application_of(render(with_version("v2", rollout=gates)))["deployments"]
    wish = parse(json.dumps(deployment["user_config"]))
    assert deployment["name"] == "Gateway" and wish.version == "v2" and wish.rollout == gates


@pytest.mark.parametrize(
    ("settings", "path", "values"),
    [
        ({"router": {"max_queue": 7}}, ("router",), (None, {"max_queue": 7})),
        ({"replicas": {"drain_s": 40}}, ("replicas", "drain_s"), (None, 40)),
        ({"engine": {"extra": {"seed": 2000000}}}, ("engine", "extra"), (None, {"seed": 2000000})),
    ],
)
def test_other_settings_are_told_by_the_applications_arguments(
    render: Render, settings: Any, path: tuple[str, ...], values: tuple[Any, Any]
) -> None:
    """Not by the ConfigMap alone, which reaches pods a minute later, and running gateways not at all."""
    found = changed(render, tier("32b"), tier("32b") | {"settings": settings})
    assert found["RayService r1-moray", "spec", "serveConfigV2", "applications", 0, "args", *path] == values
    assert found["ConfigMap r1-moray-settings", "data", "moray.yaml", *path] == values


def test_another_image_is_another_cluster_and_no_other_application(render: Render) -> None:
    found = changed(render, with_version("v1"), with_version("v1", image={"tag": "0.2.0-gpu"}))
    of_service = [path for path in found if path[0].startswith("RayService")]
    assert of_service and all(path[1:3] == CLUSTER and path[-1] == "image" for path in of_service)


def test_a_scaled_worker_group_is_no_other_cluster(render: Render) -> None:
    """KubeRay compares clusters without these."""
    group = {"name": "a100", "gpus": 4, "cpus": 24, "memory": "240Gi"}
    sizes = [with_version("v1", ray={"workerGroups": [group | {"replicas": count}]}) for count in (2, 3)]
    in_cluster = {path[-1] for path in changed(render, *sizes) if path[1:3] == CLUSTER}
    assert in_cluster == {"replicas", "minReplicas", "maxReplicas"}


def incremental(groups_per_step: int, pods: int, gpus: int, count: int) -> dict[str, Any]:
    group = {"name": "a100", "gpus": gpus, "cpus": 6 * gpus, "memory": "240Gi", "replicas": pods}
    return with_version(
        "v1",
        ray={
            "workerGroups": [group],
            "upgrade": {"strategy": "NewClusterWithIncrementalUpgrade", "groupsPerStep": groups_per_step},
        },
        gatewayApi={"className": "istio"},
        settings={"replicas": {"count": count}},
    )


@pytest.mark.parametrize(
    ("groups_per_step", "pods", "gpus", "count"),
    [
        (0, 2, 4, 2),
        (1, 2, 4, 2),
        (1, 3, 4, 3),
        (2, 7, 4, 7),
        (2, 3, 8, 6),
        (0, 3, 8, 6),
        (4, 3, 8, 6),
        (3, 8, 4, 8),
        (0, 12, 8, 24),
    ],
)
def test_an_incremental_upgrade_goes_in_steps_of_whole_groups(
    render: Render, groups_per_step: int, pods: int, gpus: int, count: int
) -> None:
    strategy = service_of(render(incremental(groups_per_step, pods, gpus, count)))["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    options = strategy["clusterUpgradeOptions"]
    step = groups_per_step or gpus // 4
    assert options["stepSizePercent"] == options["maxSurgePercent"]  # else one would go on without the other
    # KubeRay gives Serve its target capacity in percent, a multiple of the step; Serve rounds the replicas of it.
    capacities = range(0, 100, options["stepSizePercent"])
    moved = [get_capacity_adjusted_num_replicas(count, capacity) for capacity in [*capacities, 100]]
    assert all(groups % step == 0 for groups in moved[:-1]), moved
    assert all(new > old for old, new in itertools.pairwise(moved[:-1])) and moved[-1] == count, moved


def test_an_incremental_step_that_splits_a_pod_is_refused(render: Render) -> None:
    with pytest.raises(Refused, match=r"groupsPerStep is 3, but a pod holds 2 expert groups: write a multiple"):
        render(incremental(3, 3, 8, 6))


def test_an_unknown_upgrade_strategy_is_refused_though_the_crd_takes_any(render: Render) -> None:
    with pytest.raises(Refused, match=r"(?s)ray[./]upgrade[./]strategy.*NewClusterWithIncrementalUpgrade"):
        render(OPEN | {"ray": {"upgrade": {"strategy": "Incremental"}}})

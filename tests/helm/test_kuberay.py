"""What KubeRay 1.7 and Ray Serve 2.60 make of the chart's RayService, where no schema would find a wrong word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.serve._private.constants as serve_constants
import yaml
from cases import CASES, OPEN, tier
from helms import Object
from ray.serve._private.utils import get_capacity_adjusted_num_replicas as adjusted
from ray.serve.schema import ServeDeploySchema
from validation import pods

Render = Callable[..., list[Object]]


def service(objects: list[Object]) -> Any:
    [found] = [each for each in objects if each["kind"] == "RayService"]
    return found["spec"]


def ray_pods(objects: list[Object]) -> dict[str, Object]:
    return {where: pod for where, pod in pods(objects) if where == "head" or where.startswith("worker")}


@pytest.mark.parametrize("case", CASES)
def test_serve_takes_its_config(case: str, render: Render) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(service(render(CASES[case]))["serveConfigV2"]))
    assert config.http_options.host == "0.0.0.0"
    [application] = config.applications
    assert application.import_path == "cluster.app:build"
    assert application.external_scaler_enabled is (case != "autoscaled"), "Serve refuses both"


def test_every_variable_of_serve_is_one_that_it_reads(render: Render) -> None:
    """A slip of the pen is silence: Serve takes its default."""
    known = Path(serve_constants.__file__).read_text()
    for pod in ray_pods(render(OPEN)).values():
        names = [each["name"] for each in pod["spec"]["containers"][0]["env"] if each["name"].startswith("RAY_SERVE_")]
        assert len(names) >= 6 and [name for name in names if f'"{name}"' not in known] == []


def test_haproxy_outlives_the_longest_stream_and_can_be_left_out(render: Render) -> None:
    def environment(settings: dict[str, Any]) -> dict[str, str]:
        pod = ray_pods(render(OPEN | {"settings": {"gateway": settings}}))["worker cpu"]
        return {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}

    for timeout_s in (600, 7200.5):
        stop_s = environment({"request_timeout_s": timeout_s})["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]
        assert int(stop_s) > timeout_s
    assert not any("HA_PROXY" in name or "HAPROXY" in name for name in environment({"haproxy": False}))


def test_pods_keep_the_labels_that_kuberay_selects_them_by(render: Render) -> None:
    """KubeRay's Service of a RayService's head selects app.kubernetes.io/name "kuberay", whatever pods say instead."""
    for objects in map(render, CASES.values()):
        for pod in ray_pods(objects).values():
            assert not {"app.kubernetes.io/name", "app.kubernetes.io/created-by"} & pod["metadata"]["labels"].keys()
            assert not any(label.startswith("ray.io/") for label in pod["metadata"]["labels"])


def test_volumes_that_kuberay_adds_are_there_and_sized(render: Render) -> None:
    """It adds /dev/shm, and /tmp/ray for the autoscaler, unless a volume of its name is mounted there."""
    for pod in ray_pods(render(CASES["autoscaled"])).values():
        mounts = {each["mountPath"]: each["name"] for each in pod["spec"]["containers"][0]["volumeMounts"]}
        assert (mounts["/dev/shm"], mounts["/tmp/ray"]) == ("shared-mem", "ray-logs")
    options = service(render(CASES["autoscaled"]))["rayClusterConfig"]["autoscalerOptions"]
    assert options["version"] == "v2"
    mounts = {each["mountPath"]: each["name"] for each in options["volumeMounts"]}
    assert mounts["/tmp/ray"] == "ray-logs" and mounts["/var/run/secrets/kubernetes.io/serviceaccount"]


def test_the_head_names_the_port_that_its_service_is_made_of(render: Render) -> None:
    objects = render(OPEN | {"service": {"port": 9090}})
    for pod in ray_pods(objects).values():
        ports = {each["name"]: each["containerPort"] for each in pod["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == 9090
    spec = service(objects)
    assert spec["serveService"]["metadata"]["name"] == "r1-moray-gateway"
    assert yaml.safe_load(spec["serveConfigV2"])["http_options"]["port"] == 9090


def test_ray_runs_nothing_on_the_head(render: Render) -> None:
    cluster = service(render(OPEN))["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert service(render(OPEN))["excludeHeadPodFromServeSvc"] is True


def test_rays_own_token_is_asked_for(render: Render) -> None:
    """Whoever reaches Ray's dashboard or control plane without one runs code in the cluster."""
    assert service(render(OPEN))["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def incremental(count: int, pods: int, gpus: int, groups: int = 0) -> dict[str, Any]:
    group = {"name": "a100", "replicas": pods, "gpus": gpus, "cpus": 24}
    upgrade = {"strategy": "NewClusterWithIncrementalUpgrade", "groupsPerStep": groups}
    return tier("7b") | {
        "ray": {"workerGroups": [group], "upgrade": upgrade},
        "gatewayApi": {"className": "istio"},
        "settings": {"replicas": {"count": count}},
    }


@pytest.mark.parametrize(
    ("count", "pods", "gpus", "groups", "moved"),
    [
        (2, 2, 1, 0, [1, 2]),
        (3, 3, 1, 0, [1, 2, 3]),
        (8, 8, 1, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (8, 2, 4, 0, [4, 8]),
        (9, 9, 1, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (18, 9, 2, 0, [2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (18, 9, 2, 6, [6, 12, 18]),
        (1, 1, 1, 0, [1]),
    ],
)
def test_an_incremental_upgrade_fills_whole_pods_as_serve_counts(
    render: Render, count: int, pods: int, gpus: int, groups: int, moved: list[int]
) -> None:
    options = service(render(incremental(count, pods, gpus, groups)))["upgradeStrategy"]["clusterUpgradeOptions"]
    step = options["maxSurgePercent"]
    assert options["stepSizePercent"] == step, "the traffic follows each step of the capacity in one"
    shares = [*range(step, 100, step), 100]
    reached = [adjusted(count, share) for share in shares]
    assert [*dict.fromkeys(reached)] == moved
    assert all(share / 100 <= at / count + 0.005 for share, at in zip(shares, reached, strict=True)), "never overloaded"


@pytest.mark.parametrize(
    ("replicas", "groups", "least"),
    [
        (8, {"a": (2, 4)}, {"a": 1}),
        (8, {"a": (3, 4)}, {"a": 1}),  # a spare pod has no proxy: it is never ready
        (8, {"a": (1, 8)}, {"a": 0}),
        (8, {"a": (2, 4), "b": (1, 4)}, {"a": 0, "b": 0}),  # all of them may be elsewhere than in one group
        (12, {"a": (2, 4), "b": (1, 4)}, {"a": 1, "b": 0}),
    ],
)
def test_budgets_count_pods_that_surely_serve(
    render: Render, replicas: int, groups: dict[str, tuple[int, int]], least: dict[str, int]
) -> None:
    """A budget that counted on a pod which is not ready would let nobody drain a node."""
    worker_groups = [{"name": n, "replicas": pods, "gpus": gpus, "cpus": 24} for n, (pods, gpus) in groups.items()]
    values = tier("7b") | {"ray": {"workerGroups": worker_groups}, "settings": {"replicas": {"count": replicas}}}
    budgets = [each["spec"] for each in render(values) if each["kind"] == "PodDisruptionBudget"]
    found = {
        each["selector"]["matchLabels"]["moray.dev/worker-group"]: each["minAvailable"]
        for each in budgets
        if "moray.dev/worker-group" in each["selector"]["matchLabels"]
    }
    assert found == least


@pytest.mark.parametrize(("drain_s", "replica_s"), [(120, 30), (900, 30), (50, 30)])
def test_a_drained_nodes_gateways_have_the_time_that_the_pod_has(render: Render, drain_s: int, replica_s: int) -> None:
    """Serve cuts what is open after it; and stops at once what needs all the time that the node has."""
    values = OPEN | {"drain": {"seconds": drain_s}, "settings": {"replicas": {"drain_s": replica_s}}}
    [gateway] = yaml.safe_load(service(render(values))["serveConfigV2"])["applications"][0]["deployments"]
    assert replica_s <= gateway["graceful_shutdown_timeout_s"] <= drain_s - 20
    assert gateway["graceful_shutdown_timeout_s"] >= drain_s - 45


def test_gateways_of_a_pod_find_the_ports_that_are_scraped(render: Render) -> None:
    spec = service(render(OPEN))
    application = yaml.safe_load(spec["serveConfigV2"])["applications"][0]
    first, most = application["args"]["metrics"]["port"], application["deployments"][0]["max_replicas_per_node"]
    [worker] = spec["rayClusterConfig"]["workerGroupSpecs"]
    ports = {port["containerPort"] for port in worker["template"]["spec"]["containers"][0]["ports"]}
    assert set(range(first, first + most)) <= ports
    taken = {port["name"] for port in worker["template"]["spec"]["containers"][0]["ports"]}
    assert all(re.fullmatch(r"[a-z0-9-]{1,15}", name) for name in taken)

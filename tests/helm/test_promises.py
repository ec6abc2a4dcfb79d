"""What the chart promises of its pods, accounts, budgets and images: one test for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cases import CASES, OPEN, tier
from helms import CHART, Cluster, Helm3, Object, Refused
from validation import pods

Render = Callable[..., list[Object]]
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def one(objects: list[Object], kind: str) -> Object:
    [found] = of_kind(objects, kind)
    return found


def containers(pod: Object) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def all_pods(render: Render) -> Iterator[tuple[str, Object, list[Object]]]:
    """Of every case: where, the pod, and all objects of the case."""
    for case, values in CASES.items():
        objects = render(values)
        for where, pod in pods(objects):
            yield f"{case}: {where}", pod, objects


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|Ti)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30, "Ti": 40}[unit]


def ray_pods(objects: list[Object]) -> list[Object]:
    return [pod for where, pod in pods(objects) if where == "head" or where.startswith("worker")]


def seconds_of_pre_stop(pod: Object) -> int:
    script = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    return int(re.search(r"until=\$\(\(SECONDS \+ (\d+)\)\)", script)[1])  # type: ignore[index]


# -- pods --------------------------------------------------------------------------------------------------------------


def test_every_pod_is_restricted(render: Render) -> None:
    """The Pod Security Standard `restricted`, by its controls; hostPath, which it forbids, only where asked for."""
    for where, pod, objects in all_pods(render):
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), where
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
        allowed = RESTRICTED_VOLUMES | ({"hostPath"} if where.startswith("host-path: ") else set())
        assert kinds <= allowed, where
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, (where, container["name"])
            assert security["capabilities"] == {"drop": ["ALL"]} and not security.get("privileged"), where
            assert all("hostPort" not in port for port in container.get("ports", [])), where
        autoscaler = one(objects, "RayService")["spec"]["rayClusterConfig"].get("autoscalerOptions")
        if autoscaler:  # a container that KubeRay puts beside the head
            assert autoscaler["securityContext"]["allowPrivilegeEscalation"] is False
            assert autoscaler["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_roots_are_read_only_and_what_is_written_to_is_sized(render: Render) -> None:
    for where, pod, objects in all_pods(render):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for volume in volumes.values():
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"], (where, volume)
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, (where, container["name"])
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert "/tmp" in mounts, (where, container["name"])
            for mount in mounts.values():
                kept = mount["name"] in ("state", "compile-cache")
                assert mount.get("readOnly") or "emptyDir" in volumes[mount["name"]] or kept, (where, mount)
        if autoscaler := one(objects, "RayService")["spec"]["rayClusterConfig"].get("autoscalerOptions"):
            assert autoscaler["securityContext"]["readOnlyRootFilesystem"] is True


def test_shared_memory_of_ray_pods_is_sized_and_within_their_memory(render: Render) -> None:
    for values in CASES.values():
        for pod in ray_pods(render(values)):
            container = pod["spec"]["containers"][0]
            [mount] = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
            [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == mount["name"]]
            assert volume["emptyDir"]["medium"] == "Memory"
            assert bytes_of(volume["emptyDir"]["sizeLimit"]) < bytes_of(container["resources"]["limits"]["memory"])


def test_every_container_has_requests_and_a_limit_of_memory(render: Render) -> None:
    for where, pod, _ in all_pods(render):
        for container in containers(pod):
            resources = container["resources"]
            assert resources["requests"].keys() >= {"cpu", "memory"} and resources["limits"]["memory"], (
                where,
                container,
            )


def test_only_the_watcher_and_rays_autoscaler_have_a_token(render: Render) -> None:
    for where, pod, objects in all_pods(render):
        watcher = where.endswith("-node-watcher")
        assert pod["spec"]["automountServiceAccountToken"] is watcher, where
        projected = [volume["name"] for volume in pod["spec"].get("volumes", []) if "projected" in volume]
        autoscaler = one(objects, "RayService")["spec"]["rayClusterConfig"].get("autoscalerOptions")
        assert bool(projected) is (where.endswith(": head") and autoscaler is not None), where
        for container in containers(pod):
            assert not set(projected) & {mount["name"] for mount in container["volumeMounts"]}, (
                where,
                container["name"],
            )
    for values in CASES.values():
        for account in of_kind(render(values), "ServiceAccount"):
            assert account["automountServiceAccountToken"] is False


# -- rights ------------------------------------------------------------------------------------------------------------


def test_rights_are_these_and_no_more(render: Render) -> None:
    objects = render(OPEN)
    name = "r1-moray-node-watcher"
    assert one(objects, "ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes", "events"], "verbs": ["get", "list", "watch"]}
    ]
    assert one(objects, "Role")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayservices"], "resourceNames": ["r1-moray"], "verbs": ["get"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [name],
            "verbs": ["get", "update"],
        },
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    ]
    subject = [{"kind": "ServiceAccount", "name": name, "namespace": "llm"}]
    assert one(objects, "RoleBinding")["subjects"] == one(objects, "ClusterRoleBinding")["subjects"] == subject
    assert not of_kind(render(CASES["bare"]), "ClusterRole") and not of_kind(render(CASES["bare"]), "Role")


def test_each_component_has_an_account_of_its_own(render: Render) -> None:
    objects = render(OPEN)
    accounts = {where: pod["spec"].get("serviceAccountName") for where, pod in pods(objects)}
    assert accounts == {
        "head": "r1-moray-head",
        "worker cpu": "r1-moray-worker",
        "Deployment r1-moray-node-watcher": "r1-moray-node-watcher",
        "Pod r1-moray-test-answer": None,  # the namespace's default, without its token
    }
    assert {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")} == set(accounts.values()) - {None}


# -- disruptions, starts and ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case != "bare"])
def test_budgets_never_forbid_every_eviction(case: str, render: Render) -> None:
    """With all pods that serve ready, one may go; with none to count on, budgets forbid nothing."""
    objects = render(CASES[case])
    groups = {
        group["groupName"]: group
        for group in one(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert len(budgets) == len(groups) + 1
    for budget in budgets:
        spec = budget["spec"]
        group = spec["selector"]["matchLabels"].get("moray.dev/worker-group")
        if group is None:
            assert spec["maxUnavailable"] == 1 and "minAvailable" not in spec
        else:  # a RayCluster has no scale subresource: maxUnavailable would be an error, which forbids every eviction
            assert "maxUnavailable" not in spec
            assert 0 <= spec["minAvailable"] < max(1, groups[group]["replicas"])
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_budgets_select_the_pods_that_they_are_for(render: Render) -> None:
    objects = render(CASES["placed"])
    labels = {where: pod["metadata"]["labels"] for where, pod in pods(objects) if "labels" in pod["metadata"]}
    for budget in of_kind(objects, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"].items()
        assert len([where for where, each in labels.items() if selector <= each.items()]) == 1


def test_budgets_are_of_the_version_that_the_cluster_has(render: Render) -> None:
    by_version = {
        version: {(each["apiVersion"], "unhealthyPodEvictionPolicy" in each["spec"]) for each in budgets}
        for version in ("1.20.0", "1.25.0", "1.33.0")
        if (budgets := of_kind(render(OPEN, version), "PodDisruptionBudget"))
    }
    assert by_version == {
        "1.20.0": {("policy/v1beta1", False)},
        "1.25.0": {("policy/v1", False)},
        "1.33.0": {("policy/v1", True)},
    }


def test_a_pod_has_as_long_to_start_as_a_model_may_take_to_load(render: Render) -> None:
    for start_s in (900, 2700):
        for pod in ray_pods(render(OPEN | {"settings": {"replicas": {"start_timeout_s": start_s}}})):
            probe = pod["spec"]["containers"][0]["startupProbe"]
            assert probe["periodSeconds"] * probe["failureThreshold"] >= start_s
            assert pod["spec"]["containers"][0]["livenessProbe"] and pod["spec"]["containers"][0]["readinessProbe"]


def test_a_worker_is_ready_while_its_proxy_takes_requests(render: Render) -> None:
    """Drain-aware: the proxy answers 503 there from the moment that Serve drains its node."""
    for case, path in (("embedded", "/-/healthz"), ("32b", "/-/healthz")):
        [*_, worker] = ray_pods(render(CASES[case]))
        probe = worker["spec"]["containers"][0]["readinessProbe"]
        assert probe["httpGet"] == {"path": path, "port": "serve"} and probe["periodSeconds"] <= 5


def test_pre_stop_lasts_as_long_as_the_drain_and_ends_before_the_grace_period(render: Render) -> None:
    for drain_s, replica_s in ((120, 30), (600, 300)):
        values = OPEN | {"drain": {"seconds": drain_s}, "settings": {"replicas": {"drain_s": replica_s}}}
        for pod in ray_pods(render(values)):
            assert seconds_of_pre_stop(pod) == drain_s
            assert pod["spec"]["terminationGracePeriodSeconds"] >= drain_s + replica_s + 15
    with pytest.raises(Refused, match=r"drain\.seconds is 120, less than a replica has to stop"):
        render(OPEN | {"settings": {"replicas": {"drain_s": 300}}})


# -- secrets and images ------------------------------------------------------------------------------------------------


def test_secrets_are_existing_ones(render: Render) -> None:
    for case, values in CASES.items():
        objects = render(values)
        assert of_kind(objects, "Secret") == [], case
        for where, pod in pods(objects):
            for container in containers(pod):
                for variable in container.get("env", []):
                    secret = any(word in variable["name"] for word in ("KEY", "TOKEN", "PASSWORD", "SECRET"))
                    assert not secret or "value" not in variable, (where, variable)
    redis = one(render(CASES["redis-and-state"]), "RayService")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert redis["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}


def test_nobody_is_let_in_without_a_key_unless_that_is_said(render: Render) -> None:
    with pytest.raises(Refused, match=r"nobody may use the API: set auth\.existingSecret"):
        render({})


def test_images_are_pinned_by_digest_where_one_is_given(render: Render) -> None:
    images = {container["image"] for _, pod in pods(render(CASES["placed"])) for container in containers(pod)}
    assert images == {"example.org/moray@sha256:" + "0" * 64}


def test_no_image_is_latest(render: Render) -> None:
    for where, pod, _ in all_pods(render):
        for container in containers(pod):
            tag = container["image"].rpartition("/")[2]
            assert (":" in tag or "@sha256:" in tag) and ":latest" not in tag, (where, container["image"])
    with pytest.raises(Refused, match=r"image\.tag is latest"):
        render(OPEN | {"image": {"tag": "latest"}})
    for image in ("copier", "example.org:5000/copier", "copier:latest"):
        storage = CASES["object-storage"]["model"]["store"]["objectStorage"] | {"image": image}
        store = {"kind": "objectStorage", "objectStorage": storage}
        with pytest.raises(Refused, match=r"model\.store\.objectStorage\.image is"):
            render(CASES["object-storage"] | {"model": {"name": "m", "version": "v1", "store": store}})


# -- rendering ---------------------------------------------------------------------------------------------------------


def test_rendering_is_deterministic(helm3: Helm3) -> None:
    values = CASES["monitored"]
    assert helm3.render(CHART, values, Cluster()) == helm3.render(CHART, values, Cluster())
    not_pure = re.compile(r"\b(lookup|now|date|rand\w+|uuidv4|gen\w+|htpasswd|getHostByName|env|expandenv)\b\s+[\"$.(]")
    for template in (CHART / "templates").rglob("*"):
        if template.is_file():
            actions = "".join(
                re.findall(r"{{.*?}}", re.sub(r"{{-?\s*/\*.*?\*/\s*-?}}", "", template.read_text(), flags=re.S))
            )
            assert not not_pure.search(actions), template.name


def test_names_of_two_releases_differ(render: Render) -> None:
    ours = {(each["kind"], each["metadata"]["name"]) for each in render(CASES["monitored"])}
    others = {
        (each["kind"], each["metadata"]["name"]) for each in render(CASES["monitored"] | {"fullnameOverride": "other"})
    }
    assert not ours & others


def test_a_tier_needs_a_store(render: Render) -> None:
    with pytest.raises(Refused, match="profile is 32b, but there is no store"):
        render(OPEN | {"profile": "32b"})
    assert render(tier("32b"))

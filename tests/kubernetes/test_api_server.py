"""The API server that the other tests rely on: that it does what they need, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import custom_resources
import pytest
from kube_api_server import ApiServer
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from ops import processes

pytestmark = pytest.mark.k8s

SERVICES = "/apis/ray.io/v1/namespaces/{}/rayservices"


def ray_service(name: str, **spec: object) -> dict[str, object]:
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": name}, "spec": spec}


def test_it_serves_every_kind_that_the_chart_makes(api_server: ApiServer):
    with api_server.http() as http:
        assert http.get("/version").json()["gitVersion"] == "v1.20.2"  # charts ask for 1.20 at least
        for kind in custom_resources.KINDS:
            assert custom_resources.is_served(http, *kind.rpartition("/")[::2]), kind


def test_a_custom_resource_is_validated_by_its_schema(api_server: ApiServer, namespace: str):
    with api_server.http() as http:
        cluster = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": []}}}}
        made = http.post(
            SERVICES.format(namespace), json=ray_service("good", serveConfigV2="{}", rayClusterConfig=cluster, other=1)
        )
        wrong = http.post(SERVICES.format(namespace), json=ray_service("bad", serveConfigV2=["no string"]))

    assert made.status_code == 201 and "other" not in made.json()["spec"]
    assert wrong.status_code == 422 and "spec.serveConfigV2" in wrong.json()["message"]


def test_a_service_account_without_a_role_may_do_nothing(api_server: ApiServer, namespace: str):
    with (
        api_server.service_account_client(namespace, "default") as account,
        pytest.raises(ApiException) as refused,
    ):
        client.CoreV1Api(account).list_namespaced_pod(namespace)

    assert refused.value.status == 403


def test_what_it_stores_outlives_a_restart_and_a_watch_from_before_is_gone(api_server: ApiServer, namespace: str):
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    with api_server.http() as http:
        before = http.get(path).json()["metadata"]["resourceVersion"]
        http.post(path, json={"metadata": {"name": "kept"}}).raise_for_status()

        api_server.restart()

        assert [item["metadata"]["name"] for item in http.get(path).json()["items"]] == ["kept"]
        watched = http.get(path, params={"watch": "1", "resourceVersion": before, "timeoutSeconds": "1"})
    assert watched.json()["object"]["code"] == 410


def test_it_dies_with_a_test_run_that_is_killed(api_server: ApiServer, tmp_path: Path):
    """`api_server` is here for its reasons to skip only."""
    script = """
        import os, sys, time
        from pathlib import Path
        from kube_api_server import ApiServer

        server = ApiServer(Path(sys.argv[1]))
        server.start()
        print("started", flush=True)
        time.sleep(300)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], env=environment, stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    with run:
        assert run.stdout.readline() == b"started\n"
        children = processes.children(run.pid)
        assert len(children) == 2, children

        run.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 10
    while (left := {child for child in children if processes.is_alive(child)}) and time.monotonic() < deadline:
        time.sleep(0.02)
    for child in left:
        processes.send(child, signal.SIGKILL)
    assert not left

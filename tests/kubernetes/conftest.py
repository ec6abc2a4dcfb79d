"""One real API server for all tests here, with the custom resources that the chart makes; a namespace for each test."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import custom_resources
import kube_api_server
import pytest
from kube_api_server import ApiServer
from kubernetes import client

SCHEMAS = Path(os.environ.get("SHARED_FOLDER", Path(__file__).parents[3] / "shared")) / "schemas/crds.json"


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Skips where it cannot be had, and says why."""
    for needed in (kube_api_server.SERVER, kube_api_server.ETCD):
        if not needed.exists():
            pytest.skip(f"no {needed}: scripts/build-kube-apiserver makes it (`make test-k8s` runs that)")
    if not SCHEMAS.exists():
        pytest.skip(f"no {SCHEMAS}: the schemas of KubeRay's custom resources (SHARED_FOLDER: where schemas/ is)")
    with kube_api_server.running(tmp_path_factory.mktemp("kube-apiserver")) as server:
        with server.http() as http:
            custom_resources.create(http, json.loads(SCHEMAS.read_text()))
        yield server


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """One that nobody else uses. It stays, as nothing here deletes namespaces, and goes with the server."""
    name = f"test-{secrets.token_hex(4)}"
    with api_server.client() as admin:
        core = client.CoreV1Api(admin)
        core.create_namespace({"metadata": {"name": name}})
        core.create_namespaced_service_account(name, {"metadata": {"name": "default"}})
    return name

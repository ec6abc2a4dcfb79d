"""A mirror of the nodes on a real API server: restarts, compaction, versions that it has forgotten."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from kube_api_server import ApiServer
from served_cluster import api_of

from ops.k8s.refusals import Expired
from ops.k8s.watching import Mirror

pytestmark = pytest.mark.k8s

NODES = "/api/v1/nodes"


@pytest.fixture
def mirror(api_server: ApiServer) -> Iterator[Mirror]:
    made = Mirror(api_of(api_server), NODES, {}, lambda *_: None)
    yield made
    made.stop()


@pytest.fixture
def node(api_server: ApiServer) -> Iterator[Callable[[], str]]:
    """Makes one more."""
    names: list[str] = []
    with api_server.http() as http:

        def make() -> str:
            names.append(f"n-{secrets.token_hex(4)}")
            assert http.post(NODES, json={"metadata": {"name": names[-1]}}).status_code == 201
            return names[-1]

        yield make
        for name in names:
            http.delete(f"{NODES}/{name}")


def seen(mirror: Mirror, name: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while name not in {one["metadata"]["name"] for one in (mirror.objects or {}).values()}:
        assert time.monotonic() < deadline, (name, mirror.trouble)
        time.sleep(0.02)


def test_it_survives_restarts_of_the_api_server(api_server: ApiServer, mirror: Mirror, node):
    first = node()
    mirror.start()
    seen(mirror, first)
    for _ in range(2):
        api_server.restart()
        seen(mirror, node())
    seen(mirror, first)


def test_a_compacted_version_is_refused_with_410_and_listed_anew(api_server: ApiServer, mirror: Mirror, node):
    before = node()
    api = api_of(api_server)
    old = api.get(NODES)["metadata"]["resourceVersion"]
    compact(api_server, api)
    api_server.restart()  # else its cache remembers
    with pytest.raises(Expired):
        for _ in api.watch(NODES, {"resourceVersion": old, "timeoutSeconds": 5}, 10.0):
            pytest.fail("an event of a version that is gone")
    mirror._version, mirror._listed_s = old, time.monotonic()  # as one whose connection was away for so long
    mirror.start()
    seen(mirror, before)
    assert mirror.restarts == 1
    seen(mirror, node())


def compact(server: ApiServer, api: Any) -> None:
    """Has etcd forget all but the present, as API servers do every five minutes."""
    with server.http() as http:
        for _ in range(3):  # history to forget
            http.post("/api/v1/namespaces", json={"metadata": {"name": f"later-{secrets.token_hex(4)}"}})
    revision = api.get("/api/v1/namespaces")["metadata"]["resourceVersion"]
    answer = httpx.post(f"{server._etcd_url}/v3/kv/compaction", json={"revision": revision, "physical": True})
    assert answer.is_success, answer.text


def test_a_watch_that_is_stopped_ends_at_once(api_server: ApiServer, mirror: Mirror, node):
    mirror.start()
    seen(mirror, node())
    begin = threading.active_count()
    mirror.stop()
    assert threading.active_count() == begin - 1

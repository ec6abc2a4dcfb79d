"""A rollout as KubeRay brings it about: a changed user_config, on the real stack; by a surge, and back in place."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from chats import stream
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from experts.tiny_r1 import store_path
from ops.models.add import add
from ops.own_session import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NewSession = Callable[[Mapping[str, str]], AbstractContextManager[Any]]
STREAMS = 4


class Cluster:
    """The session, its dashboard, and streams that run all the time."""

    def __init__(self, session: Any, dashboard: str, settings: Mapping[str, str]) -> None:
        self.session, self._dashboard, self._settings = session, dashboard, settings
        self.answers: list[str] = []
        self._stop = False
        self._streaming = threading.Thread(target=lambda: asyncio.run(self._stream()), daemon=True)

    def put(self, version: str) -> None:
        """PUT /api/serve/applications/, as KubeRay asks when `serveConfigV2` has changed."""
        user_config = {"version": version, "rollout": {"strategy": "surge", "finish_s": 5}}
        application = {
            "name": "moray",
            "route_prefix": "/",
            "import_path": "cluster.app:build",
            "external_scaler_enabled": True,
            "args": dict(self._settings),
            "deployments": [{"name": "Gateway", "user_config": user_config}],
        }
        ServeSubmissionClient(self._dashboard).deploy_applications({"applications": [application]})

    def processes(self) -> tuple[int, list[int]]:
        """(the gateway's, the engines')"""
        status = self.session.status()
        return status["gateway"]["pid"], sorted(replica["engine"]["pid"] for replica in status["replicas"])

    def rollouts(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.session.url}/moray/rollouts", timeout=20).raise_for_status().json()
        return answer

    async def _stream(self) -> None:
        async def one(number: int) -> None:
            async with httpx.AsyncClient(base_url=self.session.url, timeout=120, trust_env=False) as client:
                while not self._stop:
                    text, finish, _ = await stream(client, number)
                    self.answers.append(f"{finish} {text[-20:]}")

        async with asyncio.TaskGroup() as tasks:
            for number in range(STREAMS):
                tasks.create_task(one(number))

    def __enter__(self) -> Cluster:
        self._streaming.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._streaming.join(timeout=120)
        assert not self._streaming.is_alive()


@pytest.fixture
def cluster(
    new_session: NewSession, tmp_path: Path, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """One replica, of a store whose two versions have the same weights; deployed by the dashboard's REST API."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # the dashboard would ask for Ray's token; it is on the loopback
    store, v1 = tmp_path / "store", Path(store_path()) / "v1"
    for name in ("v1", "v2"):
        add(v1, store, name)
    port = free_port()
    settings = {
        "model.store": str(store),
        "model.version": "v1",
        "model.name": "tiny-r1",
        "model.reasoning_parser": "deepseek_r1",
        "experts.expert_parallel": "1",
        "engine.kv_cache_mib": "64",
        "engine.max_num_seqs": "16",
        "model.dtype": "float32",
        "rollout.audit_path": str(tmp_path / "audit.jsonl"),
    }
    with new_session(settings | {"ray.dashboard": "true", "ray.dashboard_port": str(port)}) as session:
        made = Cluster(session, f"http://127.0.0.1:{port}", settings | {"gateway.port": str(session.port)})
        first = made.processes()
        made.put("v1")  # what `moray up` deployed, as an application of the dashboard: all of it is new
        eventually(lambda: _changed(made, first), 180, "the dashboard's application serves")
        yield made


def _changed(cluster: Cluster, before: tuple[int, list[int]]) -> bool:
    try:
        gateway, engines = cluster.processes()
    except httpx.HTTPError:
        return False
    return gateway != before[0] and engines != before[1] and len(engines) == 1


def test_a_changed_user_config_rolls_the_version_and_restarts_nothing(
    cluster: Cluster, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    time.sleep(4)  # the gateway's first user_config has been heard
    assert cluster.rollouts()["current"] is None, "the version that is served starts nothing"
    gateway, [engine] = cluster.processes()
    with cluster:
        eventually(lambda: len(cluster.answers) >= STREAMS, 60, "streams run")
        cluster.put("v2")
        current = eventually(lambda: cluster.rollouts()["current"], 30, "the rollout has begun")
        assert (current["from"], current["to"], current["started_by"]) == ("v1", "v2", "user_config")
        eventually(lambda: len(cluster.processes()[1]) == 2, 120, "a replica more, before the old one goes")
        assert engine in cluster.processes()[1], "the old one still serves"
        assert cluster.session.moray("rollout", "promote").returncode == 0
        watched = cluster.session.moray("rollout", "watch", limit_s=240)
        ended = cluster.rollouts()["history"][-1]
        assert watched.returncode == 0 and ended["phase"] == "done", watched.stdout + watched.stderr
        eventually(lambda: len(cluster.processes()[1]) == 1, 60, "the one on top has gone")
        assert cluster.processes()[0] == gateway, "no gateway was restarted"
        assert ended["strategy"] == "surge"
        assert {replica["version"] for replica in cluster.session.status()["replicas"]} == {"v2"}

        after = cluster.processes()
        undone = cluster.session.moray("rollout", "undo", "--watch", "--json", limit_s=240)
        assert undone.returncode == 0, undone.stdout + undone.stderr
        assert json.loads(undone.stdout.splitlines()[-1])["strategy"] == "in-place"
        assert cluster.processes() == after, "in place: not even an engine was restarted"
        assert {replica["version"] for replica in cluster.session.status()["replicas"]} == {"v1"}
        count = len(cluster.answers)
        eventually(lambda: len(cluster.answers) > count + STREAMS, 60, "streams still run")
    assert {answer.split()[0] for answer in cluster.answers} == {"length"}, "each was whole"

    refused = cluster.session.moray("rollout", "start", "v9")
    assert refused.returncode == 1 and "has no version v9" in refused.stderr
    shown = cluster.session.moray("rollout", "history", "--audit", "--json")
    entries = json.loads(shown.stdout)
    assert [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()] == entries
    asked = [(entry["who"], entry["what"]) for entry in entries if entry["who"] != "controller"]
    assert asked == [("user_config", "start"), ("", "promote"), ("", "start"), ("", "refused")]

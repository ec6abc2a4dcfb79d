"""What rollouts need of Ray Serve, on a real one without engines: user_config without a restart, and replicas more."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from ops.own_session import free_port
from ops.rollout.surroundings import NOT_SCALABLE, RayCluster, Serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

HERE = str(Path(__file__).parent)
APP, DEPLOYMENT = "rolled", "rolled#Replica"


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """URL of the dashboard of a Ray of our own, with Serve."""
    assert not ray.is_initialized()
    port = free_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")  # the dashboard would ask for Ray's token; it is on the loopback
        path = [HERE, os.getcwd(), os.environ.get("PYTHONPATH", "")]  # noqa: PTH109
        patched.setenv("PYTHONPATH", os.pathsep.join(path))
        ray.init(
            num_cpus=2, include_dashboard=True, dashboard_port=port, dashboard_host="127.0.0.1", log_to_driver=False,
            object_store_memory=100 << 20,
        )  # fmt: skip
        serve.start(proxy_location="Disabled")  # nobody asks by HTTP; Serve gives up on a proxy that is slow to start
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
        ray.shutdown()


def put(dashboard: str, folder: Path, version: str, **more: Any) -> None:
    """PUT /api/serve/applications/, as KubeRay asks when `serveConfigV2` has changed."""
    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "serve_app:build",
        "args": {"folder": str(folder)},
        "deployments": [{"name": "Gateway", "user_config": {"version": version}}],
        **more,
    }
    ServeSubmissionClient(dashboard).deploy_applications({"applications": [application]})


def running(what: str, folder: Path) -> set[str]:
    return {file.name for file in folder.glob(f"{what}-*") if Path(f"/proc/{file.name.split('-')[1]}").exists()}


def eventually(probe: Callable[[], Any], within_s: float = 60.0) -> Any:
    until = time.monotonic() + within_s
    while not (found := probe()):
        assert time.monotonic() < until, "not in time"
        time.sleep(0.1)
    return found


def is_running() -> bool:
    found = serve.status().applications.get(APP)
    return found is not None and found.status == "RUNNING"


def told(folder: Path) -> list[str]:
    return (folder / "told").read_text().split()[1::2]


def test_a_changed_user_config_reaches_the_gateways_and_restarts_nothing_and_replicas_can_be_added(
    dashboard: str, tmp_path: Path
) -> None:
    put(dashboard, tmp_path, "v1", external_scaler_enabled=True)
    eventually(is_running)
    before = running("gateway", tmp_path) | running("replica", tmp_path)
    assert len(before) == 2 and told(tmp_path) == ["v1"]

    put(dashboard, tmp_path, "v2", external_scaler_enabled=True)
    eventually(lambda: told(tmp_path) == ["v1", "v2"])
    eventually(is_running)
    assert running("gateway", tmp_path) | running("replica", tmp_path) == before
    assert len(list(tmp_path.glob("*-*"))) == 2, "nothing was started beside"

    asyncio.run(_surge(tmp_path, dashboard))


async def _surge(folder: Path, dashboard: str) -> None:
    around, first = RayCluster("m"), running("replica", folder)
    assert await around.serving(DEPLOYMENT) == Serving(1, autoscaled=False, scalable=True)
    assert await around.scale(DEPLOYMENT, 2) == ""
    both = await asyncio.to_thread(eventually, lambda: len(found := running("replica", folder)) == 2 and found)
    assert first < both, "the first one goes on"
    # A user_config that changes meanwhile takes nothing away.
    await asyncio.to_thread(put, dashboard, folder, "v3", external_scaler_enabled=True)
    await asyncio.to_thread(eventually, lambda: told(folder)[-1] == "v3")
    assert (await around.serving(DEPLOYMENT)).target == 2
    await asyncio.sleep(2)
    assert running("replica", folder) == both

    details = serve.status().applications[APP].deployments["Replica"]
    assert details.replica_states == {"RUNNING": 2}
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    ids = [name.rpartition("#")[2] for name in names if name.startswith(f"SERVE_REPLICA::{DEPLOYMENT}#")]
    assert len(ids) == 2 and [await around.lives(DEPLOYMENT, one) for one in [*ids, "ghost"]] == [True, True, False]
    assert await around.restart(DEPLOYMENT, ids[0], None) == ""
    third = await asyncio.to_thread(
        eventually, lambda: len(found := running("replica", folder)) == 2 and found != both and found
    )
    assert len(third & both) == 1, "one was replaced"
    assert await around.lives(DEPLOYMENT, ids[0]) is False
    assert await around.scale(DEPLOYMENT, 1) == ""
    await asyncio.to_thread(eventually, lambda: len(running("replica", folder)) == 1)


def test_an_application_that_forbids_it_is_told_with_the_way_out(dashboard: str, tmp_path: Path) -> None:
    put(dashboard, tmp_path, "v1")
    eventually(lambda: running("replica", tmp_path))
    eventually(is_running)
    around = RayCluster("m")
    assert asyncio.run(around.serving(DEPLOYMENT)).scalable is False
    assert asyncio.run(around.scale(DEPLOYMENT, 2)) == NOT_SCALABLE

"""The router's start on a real Ray: there is one for each model, and it has the settings that were asked for last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from cluster.router import RouterSpec, start_router

pytestmark = pytest.mark.e2e


@pytest.fixture
def a_ray() -> Iterator[None]:
    assert not ray.is_initialized()
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def pid(router: Any) -> int:
    return int(ray.get(router.status.remote(), timeout=30)["router"]["pid"])


def test_a_router_of_other_settings_makes_way_and_one_of_the_same_stays(a_ray: None) -> None:
    spec = RouterSpec(model="m", listen="127.0.0.1", max_queue=7)
    first = pid(start_router(spec))
    assert pid(start_router(spec)) == first
    other = RouterSpec(model="m", listen="127.0.0.1", max_queue=8)
    second = pid(start_router(other))
    assert second != first
    assert pid(start_router(other)) == second

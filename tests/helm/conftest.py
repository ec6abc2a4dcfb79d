"""Renders the chart, each rendering once in a run. `render` takes whichever Helm there is, tests of both say so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helms import CHART, KUBERNETES, Cluster, Helm, Helm3, Helm4, Object, Refused, Values, missing

Render = Callable[..., list[Object]]


@pytest.fixture(scope="session")
def helm3(tmp_path_factory: pytest.TempPathFactory) -> Helm3:
    if why := missing(Helm3.version):
        pytest.skip(why)
    return Helm3(tmp_path_factory.mktemp("helm3"))


@pytest.fixture(scope="session")
def helm4() -> Iterator[Helm4]:
    if why := missing(Helm4.version):
        pytest.skip(why)
    helm = Helm4()
    yield helm
    helm.close()


@pytest.fixture(scope="session")
def rendered() -> Callable[[Helm, Values, Cluster], list[Object]]:
    """Renders, or says again what it has rendered or been refused."""
    done: dict[str, list[Object] | Refused] = {}

    def render(helm: Helm, values: Values, cluster: Cluster) -> list[Object]:
        key = json.dumps([helm.version, values, cluster])
        if key not in done:
            try:
                done[key] = helm.render(CHART, values, cluster)
            except Refused as error:
                done[key] = error
        if isinstance(told := done[key], Refused):
            raise told
        return told

    return render


@pytest.fixture(scope="session")
def render(request: pytest.FixtureRequest, rendered: Callable[[Helm, Values, Cluster], list[Object]]) -> Render:
    """`render(values, version="1.33.0", apis=…)`: the objects, of which nobody changes any."""
    there = [name for name, helm in (("helm4", Helm4), ("helm3", Helm3)) if not missing(helm.version)]
    helm = request.getfixturevalue(there[0] if there else "helm3")

    def with_values(values: Values, version: str = KUBERNETES, **cluster: Any) -> list[Object]:
        return rendered(helm, values, Cluster(version, **cluster))

    return with_values


@pytest.fixture(scope="session")
def chart() -> Path:
    return CHART

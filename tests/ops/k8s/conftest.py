from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from fake_api import NAMESPACE, FakeApi
from fake_gateway import FakeGateway


@pytest.fixture
def server() -> Iterator[FakeApi]:
    made = FakeApi()
    yield made
    made.stop()


@pytest.fixture
def gateway() -> Iterator[Callable[..., FakeGateway]]:
    made: list[FakeGateway] = []

    def make(*replica_ids: str, key: str | None = None) -> FakeGateway:
        made.append(FakeGateway(*replica_ids, key=key))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def kubeconfig(server: FakeApi, tmp_path: Path) -> Path:
    file = tmp_path / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": server.url}}],
        "users": [{"name": "me", "user": {"token": "mine"}}],
        "contexts": [{"name": "here", "context": {"cluster": "fake", "user": "me", "namespace": NAMESPACE}}],
        "current-context": "here",
    }
    file.write_text(yaml.safe_dump(config))
    return file

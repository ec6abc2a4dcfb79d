"""Which API server and which namespace a kubeconfig means."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kubernetes.config import kube_config

from ops.errors import UserError
from ops.k8s.connect import connect


def kubeconfig(file: Path, current: str = "", **namespaces: str) -> Path:
    """With a context for each of `namespaces`."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "one", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "me", "user": {"token": "mine"}}],
        "contexts": [
            {"name": name, "context": {"cluster": "one", "user": "me"} | ({"namespace": of} if of else {})}
            for name, of in namespaces.items()
        ],
    }
    file.write_text(yaml.safe_dump(config | ({"current-context": current} if current else {})))
    return file


def test_the_current_context_or_the_one_that_is_named(tmp_path):
    file = kubeconfig(tmp_path / "config", "here", here="moray", there="other", plain="")
    assert connect(file)[1] == "moray"
    assert connect(file, "there")[1] == "other" and connect(file, "plain")[1] == "default"


def test_a_context_is_named_where_none_is_current(tmp_path):
    file = kubeconfig(tmp_path / "config", here="moray")
    assert connect(file, "here")[1] == "moray"
    with pytest.raises(UserError, match="--context NAME"):
        connect(file)
    with pytest.raises(UserError, match="nowhere"):
        connect(file, "nowhere")


def test_several_files(tmp_path, monkeypatch):
    first, second = kubeconfig(tmp_path / "1", here="moray"), kubeconfig(tmp_path / "2", here="x", there="other")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", f"{first}:{tmp_path / 'none'}:{second}")
    assert connect(None, "here")[1] == "moray" and connect(None, "there")[1] == "other"

"""What the chart's values may be: Helm names what is wrong."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml
from cases import OPEN
from helms import CHART, ROOT, Cluster, Helm3, Helm4, Refused

# Wrong values, and the words in which each Helm has to name the place.
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "top": ({"replicaCount": 2}, ["replicaCount"]),
    "inner": ({"ray": {"head": {"cpu": 4}}}, ["ray", "head", "cpu"]),
    "group": ({"ray": {"workerGroups": [{"name": "a", "gpu": 4}]}}, ["ray", "workerGroups", "0", "gpu"]),
    "strategy": ({"ray": {"upgrade": {"strategy": "RollingUpdate"}}}, ["ray", "upgrade", "strategy", "NewCluster"]),
    "service": ({"service": {"type": "ExternalName"}}, ["service", "type", "ClusterIP"]),
    "profile": ({"profile": "70b"}, ["profile", "32b"]),
    "store": ({"model": {"store": {"kind": "nfs"}}}, ["model", "store", "kind", "hostPath"]),
    "digest": ({"image": {"digest": "sha256:abc"}}, ["image", "digest"]),
    "type": ({"drain": {"seconds": "60s"}}, ["drain", "seconds", "integer"]),
    "setting": ({"settings": {"router": {"max_queu": 7}}}, ["settings", "router", "max_queu"]),
    "setting's group": ({"settings": {"rooter": {}}}, ["settings", "rooter"]),
    "setting's enum": ({"settings": {"router": {"policy": "fifo"}}}, ["settings", "router", "policy", "continuous"]),
    "setting's bound": ({"settings": {"alarms": {"objective": 2}}}, ["settings", "alarms", "objective"]),
    "rollout": ({"rollout": {"gates": {"error": 0.1}}}, ["rollout", "gates", "error"]),
    "kubernetes": ({"ray": {"head": {"tolerations": [{"kye": "a"}]}}}, ["ray", "head", "tolerations", "0", "kye"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_both_helms_name_a_value_that_is_wrong(name: str, helm3: Helm3, helm4: Helm4) -> None:
    values, words = WRONG[name]
    for helm in (helm3, helm4):
        with pytest.raises(Refused) as refused:
            helm.render(CHART, OPEN | values, Cluster())
        said = str(refused.value)
        assert [word for word in words if word not in said] == [], f"{helm.version}: {said}"
        assert "<nil>" not in said and "template:" not in said  # it is the schema that says it


def test_a_chart_above_may_hand_down_global_values(helm3: Helm3, helm4: Helm4) -> None:
    for helm in (helm3, helm4):
        assert helm.render(CHART, OPEN | {"global": {"storageClass": "fast"}}, Cluster())


def test_every_map_of_the_chart_is_closed() -> None:
    """But for those whose keys are somebody's own: labels, annotations, vLLM's arguments, what Kubernetes types so."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def open_maps(of: Any, path: str) -> list[str]:
        if not isinstance(of, dict):
            return []
        found = [path] if of.get("type") == "object" and of.get("additionalProperties", True) is True else []
        for word in ("properties", "definitions"):
            for name, inner in of.get(word, {}).items():
                found += open_maps(inner, f"{path}.{name}")
        return found + open_maps(of.get("items"), f"{path}[]")

    assert open_maps(schema, "") == [".settings.engine.extra", ".global"]


def test_the_default_values_are_themselves_allowed_by_lint(helm3: Helm3, helm4: Helm4) -> None:
    assert helm3.lint(CHART, {}) == helm4.lint(CHART, {}) == ""


def test_the_charts_version_is_morays() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["kubeVersion"] == ">=1.20.0-0"

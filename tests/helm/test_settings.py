"""The settings that a rendered chart holds are settings of Moray: they load, and say what the values said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import CASES, OPEN, tier
from helms import CHART, ROOT, Object, Refused

from cluster.app import build
from cluster.config import Machine, load
from cluster.settings import Settings

Render = Callable[..., list[Object]]
PROFILES = ("7b", "16b", "32b")


def data_of(objects: list[Object]) -> dict[str, str]:
    [found] = [
        each for each in objects if each["kind"] == "ConfigMap" and each["metadata"]["name"].endswith("-settings")
    ]
    data: dict[str, str] = found["data"]
    return data


def arguments_of(objects: list[Object]) -> dict[str, Any]:
    [service] = [each for each in objects if each["kind"] == "RayService"]
    arguments: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    return arguments


def pods_of(objects: list[Object]) -> list[tuple[int, dict[str, str]]]:
    """Of each worker group: pods, and what each has."""
    [service] = [each for each in objects if each["kind"] == "RayService"]
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return [(each["replicas"], each["template"]["spec"]["containers"][0]["resources"]["limits"]) for each in groups]


def gpus_of(limits: dict[str, str]) -> int:
    return int(limits.get("nvidia.com/gpu", "0"))


def loaded(objects: list[Object], directory: Path) -> Settings:
    file = directory / "moray.yaml"
    file.write_text(data_of(objects)["moray.yaml"])
    [(_, limits), *_] = pods_of(objects)
    machine = Machine(cpus=int(float(limits["cpu"])), gpus=gpus_of(limits))
    return load(file, {}, {}, machine, to_run=False).settings


@pytest.mark.parametrize("case", CASES)
def test_the_config_map_loads(case: str, render: Render, tmp_path: Path) -> None:
    settings = loaded(render(CASES[case]), tmp_path)
    assert settings.gateway.host == "0.0.0.0" and settings.ray.address == "auto"
    assert settings.metrics.port is not None  # of free ones no network policy could know


def test_it_says_what_the_values_said(render: Render, tmp_path: Path) -> None:
    values = tier("32b") | {
        "settings": {"router": {"max_queue": 2000000, "ttft_slo_s": None}, "rollout": {"steps": [0.2]}},
        "service": {"port": 9000},
    }
    settings = loaded(render(values), tmp_path)
    assert settings.router.max_queue == 2000000  # Go's JSON would have it 2e+06, which is a text to YAML
    assert settings.rollout.steps == (0.2,) and settings.gateway.port == 9000
    assert (settings.model.profile, settings.model.name, settings.model.version) == ("32b", "qwen3", "v1")
    assert str(settings.model.store) == "/models/store" and settings.gateway.allow_unauthenticated
    assert settings.router.tpot_slo_s == 0.05  # the profile's
    assert settings.engine.device == "cuda" and settings.experts.shards == 4


def test_keys_are_asked_for_where_a_secret_is_named(render: Render, tmp_path: Path) -> None:
    settings = loaded(render(CASES["keys"]), tmp_path)
    assert str(settings.gateway.keys_file) == "/etc/moray-keys/keys.yaml" and not settings.gateway.allow_unauthenticated
    assert settings.gateway.operators == ("ops",)


@pytest.mark.parametrize("case", ["embedded", "32b", "keys", "autoscaled"])
def test_the_application_has_these_settings(
    case: str, render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments over the file that MORAY_CONFIG names, as Serve builds it in a pod."""
    objects = render(CASES[case])
    file = tmp_path / "moray.yaml"
    file.write_text(data_of(objects)["moray.yaml"])
    built: list[Settings] = []
    monkeypatch.setattr("cluster.app.application", built.append)
    monkeypatch.setattr("cluster.config.this_machine", lambda: Machine(8, 4 if case == "32b" else 0))
    monkeypatch.setattr("cluster.config.lacking", lambda *_: [])  # no GPU here
    monkeypatch.setenv("MORAY_CONFIG", str(file))
    arguments = arguments_of(objects)
    assert "version" not in arguments["model"]
    build(arguments)
    assert built == [load(file, {}, {}, to_run=False).settings]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_tiers_pods_hold_whole_expert_groups_and_as_many_as_its_profile_says(profile: str, render: Render) -> None:
    plan = yaml.safe_load((ROOT / "cluster" / "profiles" / f"{profile}.yaml").read_text())
    shards, count = plan["experts"]["expert_parallel"], plan["replicas"]["count"]
    groups = pods_of(render(tier(profile)))
    assert all(gpus_of(limits) % shards == 0 and gpus_of(limits) > 0 for _, limits in groups)
    assert sum(pods * gpus_of(limits) // shards for pods, limits in groups) == count
    assert sum(pods * gpus_of(limits) for pods, limits in groups) == 8
    own = yaml.safe_load((CHART / "profiles" / f"{profile}.yaml").read_text())
    assert (own["shards"], own["replicas"]) == (shards, count)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"gpus": 2}, r"has 2 GPUs, fewer than one expert group needs"),
        ({"gpus": 6}, r"has 6 GPUs, which is no multiple of an expert group's 4"),
        ({"gpus": 4, "cpus": 2}, r"has 2 CPUs, but its 1 replicas reserve 4"),
        ({"gpus": 4, "replicas": 1}, r"settings\.replicas\.count is 2, but the worker groups hold 1"),
    ],
)
def test_pods_that_split_an_expert_group_are_refused(group: dict[str, Any], said: str, render: Render) -> None:
    with pytest.raises(Refused, match=said):
        render(tier("32b") | {"ray": {"workerGroups": [{"name": "a100", "cpus": 24, "replicas": 2} | group]}})


def test_more_gateways_than_the_pods_hold_are_refused(render: Render) -> None:
    values = tier("32b") | {"ray": {"workerGroups": [{"name": "a100", "cpus": 24, "gpus": 4, "replicas": 2}]}}
    render(values | {"settings": {"gateway": {"count": 8}}})
    with pytest.raises(Refused, match=r"count is 9, but a worker pod holds 4 gateways at most, and there are 2"):
        render(values | {"settings": {"gateway": {"count": 9}}})


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.version", "model.version"),
        ("gateway.port", "service.port"),
        ("gateway.keys_file", "auth.existingSecret"),
        ("metrics.port", "the chart"),
        ("ray.address", "the chart"),
    ],
)
def test_a_setting_that_another_value_decides_is_refused_with_that_values_name(
    setting: str, said: str, render: Render
) -> None:
    group, name = setting.split(".")
    with pytest.raises(Refused, match=rf"settings\.{setting} is decided by {said}: leave it out"):
        render(OPEN | {"settings": {group: {name: "x"}}})


def test_every_setting_that_the_schema_leaves_to_the_templates_is_refused_by_them(render: Render) -> None:
    [note] = re.findall(r"# @schema {from: settings, without: \[(.*?)\]}", (CHART / "values.yaml").read_text())
    tree: dict[str, dict[str, str]] = {}
    for key in note.split(", "):
        group, name = key.split(".")
        tree.setdefault(group, {})[name] = "x"
    with pytest.raises(Refused) as refused:
        render(OPEN | {"settings": tree})
    assert [key for key in note.split(", ") if f"settings.{key} is decided by" not in str(refused.value)] == []


def test_files_are_written_to_a_claim_only(render: Render) -> None:
    with pytest.raises(Refused, match=r"settings\.alarms\.state_path is set, but pods have no place"):
        render(OPEN | {"settings": {"alarms": {"state_path": "/var/lib/moray/alarms"}}})

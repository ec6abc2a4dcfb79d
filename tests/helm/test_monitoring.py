"""Monitoring: off until asked for, refused with the way out where its kinds are missing, else complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cases import CASES, KEYS, MONITORING, OPEN
from helms import APIS, NAMESPACE, ROOT, Object, Refused
from validation import pods

Render = Callable[..., list[Object]]
KINDS = {
    "podMonitor": "monitoring.coreos.com/v1/PodMonitor",
    "scrapeConfig": "monitoring.coreos.com/v1alpha1/ScrapeConfig",
    "prometheusRule": "monitoring.coreos.com/v1/PrometheusRule",
}
RULES = ROOT / "ops" / "alerts" / "moray.rules.yaml"
DASHBOARDS = ROOT / "ops" / "dashboards" / "generated"


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def monitored(render: Render, **values: Any) -> list[Object]:
    return render(OPEN | {"monitoring": MONITORING} | values)


def test_there_is_none_by_default(render: Render) -> None:
    objects = render(OPEN)
    assert not [each for each in objects if "coreos.com" in each["apiVersion"]]
    assert not [each for each in of_kind(objects, "ConfigMap") if "dashboard" in each["metadata"]["name"]]


@pytest.mark.parametrize("value", KINDS)
def test_a_kind_that_the_cluster_does_not_know_is_refused_with_the_way_out(value: str, render: Render) -> None:
    kind = KINDS[value]
    values = OPEN | {"monitoring": {value: {"enabled": True}}}
    without = tuple(api for api in APIS if api != kind)
    with pytest.raises(
        Refused, match=rf"monitoring\.{value}\.enabled is true, but this cluster does not know {kind}"
    ) as refused:
        render(values, apis=without)
    assert "install the Prometheus operator" in str(refused.value) and f"--api-versions {kind}" in str(refused.value)
    assert render(values)
    assert render(OPEN, apis=())


def test_pod_monitors_find_rays_ports_and_the_watchers(render: Render) -> None:
    objects = monitored(render)
    found = {}
    for monitor in of_kind(objects, "PodMonitor"):
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        selector = monitor["spec"]["selector"]
        for where, pod in pods(objects):
            labels = pod["metadata"].get("labels", {})
            chosen = selector.get("matchLabels", {}).items() <= labels.items() and all(
                labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
            )
            ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0].get("ports", [])}
            if chosen:
                found[where] = (endpoint["relabelings"][0]["replacement"], ports[endpoint["port"]])
        assert monitor["metadata"]["labels"]["release"] == "prometheus" and endpoint["interval"] == "15s"
    assert found == {
        "head": ("ray", 8080),
        "worker cpu": ("ray", 8080),
        "Deployment r1-moray-node-watcher": ("moray-node-watcher", 8081),
    }


def test_gateways_are_found_where_they_say_that_they_are(render: Render) -> None:
    """Not by a PodMonitor: Serve places them, and one is on none of the ports that another pod has."""
    [config] = of_kind(monitored(render, service={"port": 9000}), "ScrapeConfig")
    assert config["spec"]["httpSDConfigs"] == [
        {"url": f"http://r1-moray-gateway.{NAMESPACE}:9000/moray/targets", "refreshInterval": "15s"}
    ]
    assert config["spec"]["relabelings"] == [
        {"sourceLabels": ["job"], "regex": "moray-gateway", "action": "keep"},
        {"targetLabel": "namespace", "replacement": NAMESPACE},
    ]
    assert config["spec"].keys() == {"scrapeInterval", "httpSDConfigs", "relabelings"}
    [asks_with_key] = of_kind(render(CASES["monitored"]), "ScrapeConfig")
    assert asks_with_key["spec"]["httpSDConfigs"][0]["authorization"] == {
        "credentials": {"name": "scraper-key", "key": "key"}
    }
    with pytest.raises(Refused, match=r"set monitoring\.scrapeConfig\.existingSecret"):
        render(KEYS | {"monitoring": MONITORING})


def test_jobs_are_those_that_the_rules_know(render: Render) -> None:
    objects = monitored(render)
    [rule] = of_kind(objects, "PrometheusRule")
    for job in ("ray", "moray-gateway"):
        assert f'job="{job}"' in json.dumps(rule).replace('\\"', '"')
        assert job in json.dumps(of_kind(objects, "PodMonitor") + of_kind(objects, "ScrapeConfig"))


def test_rules_are_the_repositorys(render: Render) -> None:
    [rule] = of_kind(monitored(render), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_runbooks_are_where_the_settings_say(render: Render) -> None:
    [rule] = of_kind(
        monitored(render, settings={"alarms": {"runbook_url": "https://runbooks.example/moray/"}}), "PrometheusRule"
    )
    urls = [
        each["annotations"]["runbook_url"]
        for group in rule["spec"]["groups"]
        for each in group["rules"]
        if "alert" in each
    ]
    assert "https://runbooks.example/moray/slo-burn-fast.md" in urls
    assert all(url.startswith("https://runbooks.example/moray/") for url in urls)


def test_dashboards_are_the_repositorys(render: Render) -> None:
    maps = [
        each for each in of_kind(monitored(render), "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]
    ]
    boards = {name: json.loads(text) for each in maps for name, text in each["data"].items()}
    assert boards == {f"moray-{page.name}": json.loads(page.read_text()) for page in DASHBOARDS.glob("*.json")}
    assert len(maps) == 5
    for each in maps:
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert each["metadata"]["annotations"] == {"grafana_folder": "Moray"}

"""`moray k8s rollout`: one string, never taken by force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cluster_objects import SERVE_CONFIG, cluster_of, rayservice
from fake_api import SERVICES
from typer.testing import CliRunner

from ops import cli
from ops.errors import UserError
from ops.k8s import cli as k8s
from ops.k8s import version_change

SERVICE = f"{SERVICES}/moray"


@pytest.fixture
def moray(kubeconfig: Path):
    def run(*arguments: str):
        return CliRunner().invoke(cli.app, ["k8s", "rollout", *arguments, "--kubeconfig", str(kubeconfig)])

    return run


def config_of(server) -> dict:
    return yaml.safe_load(server.objects[SERVICE]["spec"]["serveConfigV2"])


def test_only_the_version_changes(server, moray):
    cluster_of(server, "a")
    done = moray("v2")
    assert done.exit_code == 0, done.output
    before, after = yaml.safe_load(SERVE_CONFIG), config_of(server)
    assert after["applications"][0]["deployments"][0].pop("user_config") == {"version": "v2", "rollout": {"step_s": 60}}
    before["applications"][0]["deployments"][0].pop("user_config")
    assert after == before and server.owners[SERVICE, "serveConfigV2"] == "moray"


def test_what_helm_has_is_changed_by_helm(server, moray):
    cluster_of(server, "a")
    notes = {"meta.helm.sh/release-name": "prod", "meta.helm.sh/release-namespace": "serving"}
    server.put(SERVICE, rayservice() | {"metadata": {"name": "moray", "namespace": "moray", "annotations": notes}})
    server.owners[SERVICE, "serveConfigV2"] = "helm"
    done = moray("v2")
    assert isinstance(done.exception, UserError)
    assert "managed by helm" in str(done.exception)
    assert "helm upgrade prod helm/moray --namespace serving --reuse-values --set model.version=v2" in str(
        done.exception
    )
    assert config_of(server) == yaml.safe_load(SERVE_CONFIG)


def test_what_another_has_is_named(server, moray):
    cluster_of(server, "a")
    server.owners[SERVICE, "serveConfigV2"] = "argocd"
    done = moray("v2")
    assert "managed by argocd" in str(done.exception) and "moray rollout start v2" in str(done.exception)


def test_a_version_that_is_asked_for_already_is_not_asked_for_again(server, moray):
    cluster_of(server, "a")
    done = moray("v1")
    assert "asks for v1 already" in str(done.exception) and not server.owners, "else moray would own what Helm has"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "has no serveConfigV2"),
        ("[1, 2", "is no YAML"),
        ("applications: [{name: other, deployments: [{name: Else}]}]", "0 deployments named Gateway"),
    ],
)
def test_another_application_is_left_alone(config, said):
    service = rayservice()
    service["spec"]["serveConfigV2"] = config
    with pytest.raises(UserError, match=said):
        version_change.with_version(service, "v2")


def test_it_is_followed_to_its_end(server, gateway, moray):
    cluster_of(server, "a")
    serving = gateway("r1")
    old = {"id": "0", "from": "v0", "to": "v2", "phase": "rolled-back", "why": "slower"}
    serving.rollouts["history"].append(old)

    def applied(request) -> bool:  # KubeRay, the gateways and the controller
        new = {"id": "1", "from": "v1", "to": "v2", "phase": "done", "why": "", "steps": [], "step": 0}
        serving.rollouts["history"].append(new)
        return False

    server.fail("PATCH", SERVICE, applied)
    done = moray("v2", "--watch", "--url", serving.url, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    told = [json.loads(line) for line in done.output.splitlines()]
    assert told[0] == {"rayservice": "moray", "version": "v2"} and told[-1]["id"] == "1"


def test_a_rollout_that_does_not_begin_is_told(server, gateway, moray, monkeypatch):
    monkeypatch.setattr(k8s, "STARTS_WITHIN_S", 0.1)
    cluster_of(server, "a")
    serving = gateway("r1")
    serving.rollouts["note"] = "the gateways differ"
    done = moray("v2", "--watch", "--url", serving.url)
    assert "no rollout to v2 began" in str(done.exception) and "the gateways differ" in str(done.exception)

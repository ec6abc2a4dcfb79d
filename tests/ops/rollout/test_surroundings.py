"""What Ray Serve says of the replicas' deployment, and how its names are read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from pretend_cluster import PretendCluster
from ray.serve._private import common, constants

from ops.rollout import surroundings
from ops.rollout.surroundings import Away, Serving, _actor_name, deployment_of, told


def details(**deployment: Any) -> dict[str, Any]:
    found = {"target_num_replicas": 2, "deployment_config": {"num_replicas": 2}, "message": ""} | deployment
    return {"applications": {"moray": {"external_scaler_enabled": True, "deployments": {"Replica": found}}}}


def test_names_are_rays_own() -> None:
    made = common.ReplicaID("x1y2", common.DeploymentID("Replica", "an app")).to_full_id_str()
    assert _actor_name("an app#Replica", "x1y2") == made
    assert surroundings.SERVE_CONTROLLER == constants.SERVE_CONTROLLER_NAME
    assert surroundings.SERVE_NAMESPACE == constants.SERVE_NAMESPACE


def test_the_deployment_of_a_replica() -> None:
    [replica] = PretendCluster("v1", 1).replicas.values()
    assert deployment_of(replica) == "moray#Replica"
    for name in (
        "",
        "SERVE_REPLICA::rep1",
        "SERVE_REPLICA::Replica#rep1",
        "SERVE_REPLICA::moray#Replica#rep2",
        "x#y#rep1",
    ):
        assert deployment_of(msgspec.structs.replace(replica, actor_name=name)) == ""
    with pytest.raises(Away, match="no replica has told yet"):
        _actor_name("", "x")


def test_what_serve_says() -> None:
    assert told(details(), "moray", "Replica") == Serving(2, False, True)
    scaled = details(deployment_config={"autoscaling_config": {"min_replicas": 1}})
    assert told(scaled, "moray", "Replica").autoscaled
    message = "Failed to start.\nTraceback (most recent call last):\n  File x\nEngineFailed: no such tensor\n"
    assert told(details(message=message), "moray", "Replica").failure == "EngineFailed: no such tensor"
    with pytest.raises(Away, match="says nothing of moray#Other"):
        told(details(), "moray", "Other")

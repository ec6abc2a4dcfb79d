"""Gives a running application's gateway another user_config: `python change_user_config.py RAY_ADDRESS JSON`.

Not a test. It sends Serve's controller what an in-place update of a declared application comes down to: every
deployment as it is, under the code version that it has, but for this one field. `serve.run` makes up new versions.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray.serve._private.deploy_utils import get_deploy_args
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.context import _get_global_client
from ray.serve.generated.serve_pb2 import ApplicationArgs, DeploymentArgs, DeploymentRoute

from cluster.app import APPLICATION

INGRESS, OTHERS = "Gateway", ("Replica",)


def main(address: str, user_config: str) -> None:
    ray.init(address=address, log_to_driver=False)
    controller = _get_global_client()._controller
    deployments = []
    for name in (INGRESS, *OTHERS):
        told = DeploymentRoute.FromString(ray.get(controller.get_deployment_info.remote(name, APPLICATION)))
        info = DeploymentInfo.from_proto(told.deployment_info)
        changed = {"user_config": json.loads(user_config)} if name == INGRESS else {}
        config = info.deployment_config.model_copy(update=changed)
        made: dict[str, Any] = get_deploy_args(
            name, info.replica_config, ingress=name == INGRESS, deployment_config=config, version=info.version
        )
        args = DeploymentArgs(
            deployment_name=name,
            deployment_config=made["deployment_config_proto_bytes"],
            replica_config=made["replica_config_proto_bytes"],
            deployer_job_id=made["deployer_job_id"],
            ingress=name == INGRESS,
        )
        if name == INGRESS:
            args.route_prefix = "/"
        deployments.append(args.SerializeToString())
    application = ApplicationArgs(external_scaler_enabled=True).SerializeToString()
    ray.get(controller.deploy_applications.remote({APPLICATION: deployments}, {APPLICATION: application}))


if __name__ == "__main__":
    main(*sys.argv[1:])

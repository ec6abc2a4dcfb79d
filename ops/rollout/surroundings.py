"""What the engine acts upon: the router, Ray's key-value store, Ray Serve. I/O only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import ray

from cluster.draining import DrainRequest
from cluster.start_failure import cause_of
from cluster.vitals import ReplicaVitals, Vitals
from replicas import assignment as stored_assignment
from replicas.assignment import Assignment
from replicas.messages import Swap
from replicas.router_handle import find_router

ANSWER_S = 2.0  # in which router and Serve answer, or count as away
SERVE_NAMESPACE = "serve"
REPLICA_PREFIX = "SERVE_REPLICA"  # ray.serve._private.common
SERVE_CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # ray.serve._private.constants


class Away(Exception):
    """Router or Serve do not answer just now; Ray restarts them."""


class Serving(NamedTuple):
    """What Ray Serve says of the replicas' deployment."""

    target: int  # replicas that are to be there
    autoscaled: bool  # by our own policy (cluster/serve_scaling.py)
    scalable: bool  # Serve takes a number of replicas from outside
    failure: str = ""  # why replicas do not start; "": they do, or it is not known


class Surroundings(Protocol):
    """Each may raise Away. What returns a string returns why it was refused, "" if it was not.

    `deployment`: "application#deployment", as Ray Serve names it; "": not known yet, which raises Away.
    """

    async def assignment(self) -> Assignment | None:
        """As it is stored."""
        ...

    async def store(self, assignment: Assignment | None) -> None: ...

    async def vitals(self) -> Vitals: ...

    async def assign(self, assignment: Assignment) -> None: ...

    async def swap(self, replica_id: str, swap: Swap) -> str: ...

    async def drain(self, replica_id: str) -> str: ...

    async def lives(self, deployment: str, replica_id: str) -> bool | None:
        """Whether Ray has its process; None: it does not say."""
        ...

    async def restart(self, deployment: str, replica_id: str, epoch: int | None) -> str:
        """Ends its process; Serve starts another. `epoch` None: the router does not know it (any more)."""
        ...

    async def serving(self, deployment: str) -> Serving: ...

    async def scale(self, deployment: str, replicas: int) -> str:
        """Has Serve keep so many."""
        ...


class RayCluster:
    """`Surroundings` over Ray."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def assignment(self) -> Assignment | None:
        return await asyncio.to_thread(stored_assignment.read, self._model)

    async def store(self, assignment: Assignment | None) -> None:
        if assignment is None:
            await asyncio.to_thread(stored_assignment.clear, self._model)
        else:
            await asyncio.to_thread(stored_assignment.write, self._model, assignment)

    async def vitals(self) -> Vitals:
        vitals: Vitals = await self._router("vitals")
        return vitals

    async def assign(self, assignment: Assignment) -> None:
        await self._router("assign", assignment)

    async def swap(self, replica_id: str, swap: Swap) -> str:
        answer: dict[str, str] = await self._router("swap", replica_id, swap)
        return answer.get("refused", "")

    async def drain(self, replica_id: str) -> str:
        answer: dict[str, str] = await self._router("drain", DrainRequest(replica=replica_id, migrate=True, force=True))
        return answer.get("refused", "")

    async def lives(self, deployment: str, replica_id: str) -> bool | None:
        def look() -> bool | None:
            try:
                ray.get_actor(_actor_name(deployment, replica_id), namespace=SERVE_NAMESPACE)
            except ValueError:
                return False
            except ray.exceptions.RayError:
                return None
            return True

        return await asyncio.to_thread(look)

    async def restart(self, deployment: str, replica_id: str, epoch: int | None) -> str:
        name = _actor_name(deployment, replica_id)
        if epoch is not None:  # one that goes on purpose is not lost, and nobody raises an alarm for it
            await self._router("leave", replica_id, epoch)

        def kill() -> None:
            with contextlib.suppress(ValueError):  # it is gone by itself
                ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))

        await asyncio.to_thread(kill)
        return ""

    async def serving(self, deployment: str) -> Serving:
        return told(await self._serve("get_serve_instance_details"), *_parts(deployment))

    async def scale(self, deployment: str, replicas: int) -> str:
        from ray.serve._private.common import DeploymentID
        from ray.serve._private.exceptions import ExternalScalerDisabledError

        application, name = _parts(deployment)
        try:
            await self._serve("update_deployment_replicas", DeploymentID(name, application), replicas)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ExternalScalerDisabledError):
                return NOT_SCALABLE
            return f"Ray Serve refuses {replicas} replicas: {error.cause}"
        return ""

    async def _router(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(ANSWER_S):
                router = await find_router(self._model, ANSWER_S)
                return await getattr(router, method).remote(*arguments)
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise Away(f"the router does not answer ({type(error).__name__})") from error

    async def _serve(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(ANSWER_S):
                controller = await asyncio.to_thread(ray.get_actor, SERVE_CONTROLLER, SERVE_NAMESPACE)
                return await getattr(controller, method).remote(*arguments)
        except (ray.exceptions.RayActorError, ValueError, TimeoutError) as error:
            raise Away(f"Ray Serve does not answer ({type(error).__name__})") from error


NOT_SCALABLE = (
    "Ray Serve takes no replicas more from outside: set `external_scaler_enabled: true` for the application (beside "
    "`import_path` in serveConfigV2), or autoscaling.max_replicas"
)


def deployment_of(replica: ReplicaVitals) -> str:
    """Of its actor's name, SERVE_REPLICA::application#deployment#id; "": it does not tell that."""
    prefix, _, rest = replica.actor_name.partition("::")
    deployment = rest.removesuffix(f"#{replica.replica_id}")
    return deployment if prefix == REPLICA_PREFIX and deployment != rest and deployment.count("#") == 1 else ""


def _actor_name(deployment: str, replica_id: str) -> str:
    _parts(deployment)
    return f"{REPLICA_PREFIX}::{deployment}#{replica_id}"


def _parts(deployment: str) -> tuple[str, str]:
    """(application, deployment)"""
    if not deployment:
        raise Away("no replica has told yet to which deployment it belongs")
    application, _, name = deployment.partition("#")
    return application, name


def told(details: Mapping[str, Any], application: str, deployment: str) -> Serving:
    """What `get_serve_instance_details` says of it. Away: it says nothing as yet."""
    try:
        app = details["applications"][application]
        found = app["deployments"][deployment]
        return Serving(
            target=found["target_num_replicas"],
            autoscaled=bool(found["deployment_config"].get("autoscaling_config")),
            scalable=bool(app["external_scaler_enabled"]),
            failure=cause_of(found["message"]),
        )
    except KeyError as missing:
        raise Away(f"Ray Serve says nothing of {application}#{deployment} ({missing})") from missing

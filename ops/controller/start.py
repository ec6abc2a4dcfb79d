"""Starts the controller beside the router (`cluster.extensions.COMPANIONS`)."""

import contextlib
import logging
import time
from typing import TYPE_CHECKING

import ray

from ops.controller.controller import Controller
from ops.controller.spec import NAMESPACE, ControllerSpec, actor_name, controller_spec

if TYPE_CHECKING:
    from cluster.settings import Settings

logger = logging.getLogger("moray.controller")

SERVES_S = 30.0  # in which the controller knows what is served; it starts in a second or two
NAME_FREE_S = 10.0  # in which Ray gives a killed actor's name free


def start(settings: "Settings") -> None:
    """Returns when replicas can read which version they are to load."""
    controller = start_controller(controller_spec(settings))
    try:
        ray.get(controller.serves.remote(), timeout=SERVES_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("The controller is not ready yet (%s); replicas load the version of the settings.", error)


def start_controller(spec: ControllerSpec) -> "ray.actor.ActorHandle":
    """The model's controller, detached. One that is there makes way: its settings may be old; what it knew is kept."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=1000)(Controller)
    name = actor_name(spec.model)
    until = time.monotonic() + NAME_FREE_S
    while True:
        with contextlib.suppress(ValueError):  # there was none
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
        try:
            return actor.options(name=name, namespace=NAMESPACE, lifetime="detached").remote(spec)
        except ValueError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)

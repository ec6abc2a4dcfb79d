"""What a gateway adds for the watching: its reports to the controller, /moray/alarms and /moray/history."""

import asyncio
import logging
from typing import Any

import ray
from fastapi import FastAPI

from cluster.extensions import GatewayContext
from ops.controller.reporter import ControllerGone, Reporter
from ops.controller.reports import Batch
from ops.controller.spec import NAMESPACE, actor_name

logger = logging.getLogger("ray.serve")

ANSWER_S = 5.0
NOBODY_WATCHES = {"alarms": [], "recent": [], "healing": [], "watching": False, "lag_s": None, "pid": None}


class ControllerLink:
    """The model's controller actor: found by name, asked with a limit of time."""

    def __init__(self, model: str) -> None:
        self._name = actor_name(model)

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Raises ControllerGone."""
        if not ray.is_initialized():  # else the look for the actor would start or join a Ray cluster
            raise ControllerGone("this process is in no Ray cluster")
        try:
            async with asyncio.timeout(ANSWER_S):
                actor = await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
                return await getattr(actor, method).remote(*arguments)
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            raise ControllerGone(type(error).__name__) from error

    async def observe(self, batch: Batch) -> None:
        await self.ask("observe", batch)


def add(app: FastAPI, context: GatewayContext) -> None:
    """Called by the gateway as it starts (`cluster.extensions`)."""
    controller = ControllerLink(context.model)
    reporter = Reporter(context.gateway, context.core, controller.observe, context.wanted)
    context.journal.listeners.append(reporter)
    app.state.moray_reporting = reporting = asyncio.get_running_loop().create_task(reporter.run())
    reporting.add_done_callback(_say_why)

    @app.get("/moray/alarms")
    async def alarms() -> dict[str, Any]:
        """What is raised, what was of late, and what was done about it. `watching` false: the controller is away."""
        try:
            answer: dict[str, Any] = await controller.ask("alarms")
        except ControllerGone:
            return NOBODY_WATCHES
        return answer

    @app.get("/moray/history")
    async def history() -> dict[str, Any]:
        """The last ten minutes, in buckets of five seconds. No rows: the controller is away, or nothing was."""
        try:
            answer: dict[str, Any] = await controller.ask("history")
        except ControllerGone:
            return {"bucket_s": 5, "since_s": None, "rows": []}
        return answer


def _say_why(task: "asyncio.Task[None]") -> None:
    """It ends by no exception but for a mistake of ours; requests go on, and moray_watch_lag_seconds grows."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("This gateway no longer reports to the controller.", exc_info=error)

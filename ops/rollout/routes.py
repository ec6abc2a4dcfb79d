"""The rollouts' routes on the gateway: /moray/rollouts and what lies under it. The controller does what they ask."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, HTTPException, Request

from cluster.extensions import GatewayContext
from cluster.operator_order import order_of
from cluster.outcomes import context_of_request
from ops.controller.reporter import ControllerGone
from ops.controller.routes import ControllerLink

MOST_ENTRIES = 10_000
KEPT_ADDRESS = 100  # characters of where somebody asks from: one header of it is the client's own


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str


class _Undo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gated: bool = False


def add(app: FastAPI, context: GatewayContext) -> None:
    """Called by the gateway as it starts (`cluster.extensions`)."""
    controller = ControllerLink(context.model)

    async def ask(method: str, *arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await controller.ask(method, *arguments)
        except ControllerGone as error:
            raise HTTPException(503, f"The controller does not answer ({error}); Ray restarts it.") from error
        if refused := answer.get("refused"):
            raise HTTPException(409, refused)
        return answer

    async def told(request: Request, kind: Any) -> Any:
        """The body of an operator's order."""
        context.require_operator(request)
        return await order_of(request, kind)

    @app.get("/moray/rollouts")
    async def rollouts() -> dict[str, Any]:
        """The rollout that runs, those that ended, and which versions are served with which share."""
        return await ask("rollouts")

    @app.get("/moray/rollouts/audit")
    async def audit(request: Request, count: int = 100) -> dict[str, Any]:
        """For operators: the last entries of the audit log, the oldest first."""
        context.require_operator(request)
        return await ask("rollout_audit", min(max(count, 1), MOST_ENTRIES))

    @app.post("/moray/rollouts")
    async def start(request: Request) -> dict[str, Any]:
        """For operators: starts one. The body: {"version": ...} and fields of a RolloutSpec."""
        return await ask("rollout_start", await told(request, dict[str, Any]), *asking(request))

    @app.post("/moray/rollouts/current")
    async def command(request: Request) -> dict[str, Any]:
        """For operators: {"command": "pause" | "resume" | "promote" | "abort"} to the rollout that runs."""
        order: _Command = await told(request, _Command)
        return await ask("rollout_command", order.command, *asking(request))

    @app.post("/moray/rollouts/undo")
    async def undo(request: Request) -> dict[str, Any]:
        """For operators: starts one to the version before the last that was done; {"gated": true}: by its gates."""
        order: _Undo = await told(request, _Undo)
        return await ask("rollout_undo", order.gated, *asking(request))


def asking(request: Request) -> tuple[str, str]:
    """(who asks: the key's tenant, "" without keys; from where: address, and for whom a proxy says it asks)."""
    known = context_of_request.get()
    where = request.client.host if request.client else "unknown"
    if forwarded := request.headers.get("x-forwarded-for"):
        where += f" for {forwarded}"
    return known.tenant.name if known else "", where[:KEPT_ADDRESS]

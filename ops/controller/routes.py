"""What the gateway tells of the watching: /moray/alarms."""

from typing import Any

from fastapi import FastAPI

from cluster.extensions import GatewayContext


def add(app: FastAPI, context: GatewayContext) -> None:
    """Called by the gateway as it starts (`cluster.extensions`)."""

    @app.get("/moray/alarms")
    async def alarms() -> dict[str, Any]:
        """What is raised, what was of late, and what was done about it."""
        return {"alarms": [], "recent": [], "healing": [], "watching": False}

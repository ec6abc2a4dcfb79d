"""Where the router is found: replicas and gateways look it up by name, and wait while Ray restarts it."""

import asyncio
from typing import Any

import ray

NAMESPACE = "moray"


def actor_name(model: str) -> str:
    """Ray name of the model's router in `NAMESPACE`."""
    return f"router:{model}"


async def find_router(model: str, timeout_s: float = 60.0) -> Any:
    """The router's actor handle. Raises TimeoutError when nobody has started it within `timeout_s` seconds."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return ray.get_actor(actor_name(model), namespace=NAMESPACE)
            except ValueError:
                await asyncio.sleep(0.1)

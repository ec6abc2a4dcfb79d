"""What packages above this one add to a running application, by import string.

Imports point one way, `ops -> cluster`: what lies in ops may know the cluster, never the other way round. A console
and a controller have to run inside the application all the same, so it is told their names and looks them up as it
starts. A line here is all that ties the two together.
"""

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.journal import Journal

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

    from cluster.settings import Settings

# Each is called as start(settings) beside the router's start: detached actors.
COMPANIONS: tuple[str, ...] = ("ops.controller.start:start",)
# Each is called as add(app, context) on the gateway's event loop, before it serves its first request.
GATEWAY_ROUTES: tuple[str, ...] = (
    "ops.console.routes:add",
    "ops.controller.routes:add",
    "ops.rollout.routes:add",
)


@dataclass(frozen=True)
class GatewayContext:
    """The gateway, as routes that are added to it may use it."""

    model: str  # its name in the API
    gateway: str  # the id by which the router knows it
    core: Any  # its ClusterCore, which this module may not import: that would bring vLLM to whoever starts the app
    journal: Journal  # tells its listeners of each request that ended
    require_operator: Callable[["Request"], None]  # HTTPException 403 unless an operator's key asks; see Gateway
    wanted: Callable[[], str] = str  # the deployment's user_config as JSON; "": it has none


def start_companions(settings: "Settings") -> None:
    for start in _resolved(COMPANIONS):
        start(settings)


def add_routes(app: "FastAPI", context: GatewayContext) -> None:
    for add in _resolved(GATEWAY_ROUTES):
        add(app, context)


def _resolved(names: Iterable[str]) -> Iterable[Callable[..., None]]:
    for name in names:
        found: Callable[..., None] = pkgutil.resolve_name(name)
        yield found

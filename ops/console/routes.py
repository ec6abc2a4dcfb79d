"""The console's routes on the gateway: /console, /moray/access and /moray/runbooks/NAME.

/console is open where API keys are configured (`cluster.edge`): it holds no data. What it shows it asks for under
/moray/, with the reader's key.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

from cluster.extensions import GatewayContext
from cluster.outcomes import context_of_request
from ops.console import page

_RUNBOOKS = ("ops", "runbooks")  # ops/runbooks/<name of the alarm>.md


def add(app: FastAPI, context: GatewayContext, runbooks: Mapping[str, str] | None = None) -> None:
    """Called by the gateway as it starts (`cluster.extensions`). `runbooks`: texts by name; None: the repository's."""
    console = _console()
    texts = _runbooks() if runbooks is None else runbooks

    @app.get("/console", include_in_schema=False)
    async def show() -> Response:
        """The page, without any data."""
        return Response(console.html, media_type="text/html", headers=console.headers)

    @app.get("/moray/access")
    async def access(request: Request) -> dict[str, Any]:
        """Who asks, "" without keys, and whether the console offers them an operator's actions.

        Where no keys are configured the API refuses nobody, but there is no operator: the page only shows.
        """
        asking = context_of_request.get()
        tenant = asking.tenant.name if asking else ""
        return {"tenant": tenant, "operator": bool(tenant) and _is_operator(context, request)}

    @app.get("/moray/runbooks/{name}", response_class=Response)
    async def runbook(name: str) -> Response:
        """What to do about an alarm of that name, in Markdown."""
        if name not in texts:
            raise HTTPException(404, f"There is no runbook {name}; there are: {', '.join(sorted(texts)) or 'none'}.")
        return Response(texts[name], media_type="text/markdown")


def _is_operator(context: GatewayContext, request: Request) -> bool:
    try:
        context.require_operator(request)
    except HTTPException:
        return False
    return True


def _console() -> page.Page:
    folder = resources.files("ops.console")
    frame, style, *scripts = (folder.joinpath(n).read_text("utf-8") for n in (page.FRAME, page.STYLE, *page.SCRIPTS))
    return page.assemble(frame, style, scripts)


def _runbooks() -> dict[str, str]:
    """Read once: no name from a URL ever becomes a path."""
    folder = resources.files(_RUNBOOKS[0]).joinpath(*_RUNBOOKS[1:])
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.name.endswith(".md")]
    return {file.name.removesuffix(".md"): file.read_text("utf-8") for file in files}

"""The routes: who may ask for what, in which shape, and what is answered when nobody can."""

from __future__ import annotations

from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request

from cluster.outcomes import RequestContext, context_of_request
from ops.controller.reporter import ControllerGone
from ops.rollout import routes
from replicas.messages import Tenant

REPORT = {"current": None, "history": [], "stable": "v1", "versions": {}}


class Link:
    """The controller, as a `ControllerLink` reaches it."""

    asked: ClassVar[list[tuple[Any, ...]]] = []
    answer: ClassVar[dict[str, Any] | Exception] = REPORT

    def __init__(self, model: str) -> None:
        pass

    async def ask(self, *what: Any) -> dict[str, Any]:
        Link.asked.append(what)
        if isinstance(Link.answer, Exception):
            raise Link.answer
        return Link.answer


class Context:
    """GatewayContext, as far as it is needed."""

    model = "m"
    is_operator = True

    def require_operator(self, request: Request) -> None:
        if not self.is_operator:
            raise HTTPException(403, "This API key is no operator's.")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(routes, "ControllerLink", Link)
    Link.asked, Link.answer = [], REPORT
    return Context()


@pytest.fixture
async def client(context: Context):
    app = FastAPI()
    routes.add(app, context)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, client=("10.0.0.7", 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as made:
        yield made


async def test_what_is_asked_reaches_the_controller_with_who_and_from_where(client: httpx.AsyncClient) -> None:
    token = context_of_request.set(RequestContext(Tenant(name="alice")))
    try:
        assert (await client.get("/moray/rollouts")).json() == REPORT
        await client.post("/moray/rollouts", json={"version": "v2", "steps": [0.2]})
        forwarded = {"x-forwarded-for": "192.168.1.9"}
        await client.post("/moray/rollouts/current", json={"command": "abort"}, headers=forwarded)
        await client.post("/moray/rollouts/undo", json={})
        await client.post("/moray/rollouts/undo", json={"gated": True}, headers={"x-forwarded-for": "a" * 5000})
    finally:
        context_of_request.reset(token)
    by = ("alice", "10.0.0.7")
    assert Link.asked[:4] == [
        ("rollouts",),
        ("rollout_start", {"version": "v2", "steps": [0.2]}, *by),
        ("rollout_command", "abort", "alice", "10.0.0.7 for 192.168.1.9"),
        ("rollout_undo", False, *by),
    ]
    assert Link.asked[4][:2] == ("rollout_undo", True) and len(Link.asked[4][3]) == routes.KEPT_ADDRESS


async def test_the_audit_log_is_for_operators_and_bounded(client: httpx.AsyncClient, context: Context) -> None:
    Link.answer = {"entries": []}
    for asked, given in (("", 100), ("?count=5", 5), ("?count=0", 1), ("?count=9999999", routes.MOST_ENTRIES)):
        assert (await client.get(f"/moray/rollouts/audit{asked}")).json() == {"entries": []}
        assert Link.asked[-1] == ("rollout_audit", given)
    context.is_operator = False
    assert (await client.get("/moray/rollouts/audit")).status_code == 403


@pytest.mark.parametrize("path", ["", "/current", "/undo"])
async def test_only_operators_order_and_only_by_json(client: httpx.AsyncClient, context: Context, path: str) -> None:
    plain = await client.post(f"/moray/rollouts{path}", content=b"{}", headers={"content-type": "text/plain"})
    wrong = await client.post(f"/moray/rollouts{path}", json=[1])
    assert (plain.status_code, wrong.status_code) == (415, 400)
    context.is_operator = False
    assert (await client.post(f"/moray/rollouts{path}", json={})).status_code == 403
    assert Link.asked == [], "nothing of it reached the controller"


async def test_an_unknown_key_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/moray/rollouts/current", json={"command": "abort", "nwo": 1})
    assert answer.status_code == 400 and "nwo" in answer.text


async def test_a_refusal_is_a_conflict_and_an_absent_controller_is_told(client: httpx.AsyncClient) -> None:
    Link.answer = {"refused": "Rollout r1 runs."}
    answer = await client.post("/moray/rollouts", json={"version": "v2"})
    assert (answer.status_code, answer.json()["detail"]) == (409, "Rollout r1 runs.")
    Link.answer = ControllerGone("TimeoutError")
    answer = await client.get("/moray/rollouts")
    assert answer.status_code == 503 and "Ray restarts it" in answer.text

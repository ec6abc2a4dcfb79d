"""A proxy that the environment names is for the outside world: the soak asks its own session on loopback."""

from __future__ import annotations

import httpx
import pytest
from http_server import Answer, Asked, http_server

from ops.own_session import OwnSession
from ops.soak.session import SoakedSession


@pytest.fixture
def a_proxy(monkeypatch):
    """Nobody listens there."""
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def gateway(asked: Asked) -> Answer:
    return Answer(200, {"path": asked.path})


@pytest.mark.usefixtures("a_proxy")
async def test_the_session_is_asked_through_no_proxy():
    with http_server(gateway) as url:
        async with httpx.AsyncClient(base_url=url) as other:
            with pytest.raises(httpx.ConnectError):  # else this test would show nothing
                await other.get("/moray/status")
        assert await SoakedSession(OwnSession(url, 0, "", 0, {})).status() == {"path": "/moray/status"}

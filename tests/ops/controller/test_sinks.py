"""Sinks over real HTTP: in order, once, again when nobody answered, and never in the way."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from scripted_core import until

from ops.anomaly.alarms import Alarm, Severity
from ops.controller import sinks
from ops.controller.news import Change, Healing
from ops.controller.sinks import Alertmanager, Log, Webhook, poster


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "FIRST_BACKOFF_S", 0.01)


class Receiver:
    """An HTTP server that answers with the statuses it is given, then 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[int, str, Any]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                status = self.statuses.pop(0) if self.statuses else 200
                self.got.append((status, head.split()[1], body))
                writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n".encode())
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    @property
    def taken(self) -> list[Any]:
        return [body for status, _, body in self.got if status == 200]


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, str, httpx.AsyncClient]]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver._serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with httpx.AsyncClient() as client:
        yield receiver, url, client
    server.close()


def change(number: int, raised: bool = True) -> Change:
    labels = {"model": "m", "replica": f"r{number}"}
    alarm = Alarm("up-but-not-serving", Severity.PAGE, "No token for 11 s.", "up-but-not-serving", labels, 100.0)
    return Change(100.0 if raised else 160.0, raised, alarm)


async def nothing() -> None:
    pass


async def test_a_webhook_is_told_in_order_and_again_until_it_takes() -> None:
    async with receiving() as (receiver, url, client):
        receiver.statuses = [503, 200, 500, 429]
        told = []

        async def note() -> None:
            told.append(1)

        hook = Webhook(f"{url}/in", poster(client), "https://wiki/runbooks/", note)
        running = asyncio.create_task(hook.run())
        for piece in (change(1), change(2), change(1, raised=False)):
            hook.tell(piece)
        await until(lambda: len(receiver.taken) == 3 and not hook.undelivered())
        running.cancel()
        [first] = receiver.taken[0]["alerts"]
        assert [(b["status"], b["alerts"][0]["labels"]["replica"]) for b in receiver.taken] == [
            ("firing", "r1"), ("firing", "r2"), ("resolved", "r1"),
        ]  # fmt: skip
        assert first["labels"] == {
            "alertname": "up-but-not-serving", "severity": "page", "model": "m", "replica": "r1",
        }  # fmt: skip
        assert first["annotations"] == {
            "summary": "No token for 11 s.",
            "runbook": "ops/runbooks/up-but-not-serving.md",
            "runbook_url": "https://wiki/runbooks/up-but-not-serving.md",
        }
        assert (first["startsAt"], first["endsAt"]) == ("1970-01-01T00:01:40.000Z", "0001-01-01T00:00:00Z")
        last = receiver.taken[2]["alerts"][0]
        assert last["endsAt"] == "1970-01-01T00:02:40.000Z" and last["fingerprint"] == first["fingerprint"]
        assert len(told) == 3


async def test_what_the_receiver_refuses_holds_nothing_up_and_its_url_is_not_logged(caplog) -> None:
    async with receiving() as (receiver, url, client):
        receiver.statuses = [404]
        hook = Webhook(f"{url}/secret", poster(client), None, nothing)
        running = asyncio.create_task(hook.run())
        hook.tell(change(1))
        hook.tell(Healing(1.0, "r1", "m", "restart", "done", "Why."))
        await until(lambda: receiver.taken)
        running.cancel()
        assert receiver.taken[0]["status"] == "healing" and receiver.taken[0]["alerts"] == []
        assert receiver.taken[0]["healing"]["action"] == "restart"
        assert "404" in caplog.text and "secret" not in caplog.text


async def test_a_webhook_that_is_away_costs_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "KEPT_NEWS", 3)
    hook = Webhook("http://127.0.0.1:9/", poster(httpx.AsyncClient()), None, nothing)
    for number in range(5):
        hook.tell(change(number))
    assert [news.alarm.labels["replica"] for news in hook.undelivered()] == ["r2", "r3", "r4"] and hook.lost == 2


async def test_what_was_not_delivered_goes_on_after_a_restart() -> None:
    async with receiving() as (receiver, url, client):
        hook = Webhook(url, poster(client), None, nothing, [change(1), change(1, raised=False)])
        running = asyncio.create_task(hook.run())
        await until(lambda: len(receiver.taken) == 2)
        running.cancel()
        assert [news["status"] for news in receiver.taken] == ["firing", "resolved"]


async def test_alertmanager_is_told_again_before_it_forgets_and_once_of_the_end(monkeypatch) -> None:
    monkeypatch.setattr(sinks, "RESEND_S", 0.05)
    async with receiving() as (receiver, url, client):
        receiver.statuses = [500]
        raised = [change(7).alarm]  # by the controller before
        manager = Alertmanager("alertmanager 0", f"{url}/", poster(client), None, lambda: 1000.0, raised)
        running = asyncio.create_task(manager.run())
        await until(lambda: len(receiver.taken) >= 3)
        assert {path for _, path, _ in receiver.got} == {"/api/v2/alerts"}
        [alert] = receiver.taken[2]
        assert alert["labels"]["replica"] == "r7" and alert["startsAt"] == "1970-01-01T00:01:40.000Z"
        assert alert["endsAt"] == "1970-01-01T00:18:40.000Z", "two minutes from now"
        manager.tell(change(7, raised=False))
        assert manager.undelivered() == [change(7, raised=False)]
        await until(lambda: not manager.undelivered())
        ends = [
            alert["endsAt"] for alerts in receiver.taken for alert in alerts if alert["endsAt"] < "1970-01-01T00:10"
        ]
        assert ends == ["1970-01-01T00:02:40.000Z"]
        count = len(receiver.got)
        await asyncio.sleep(0.2)
        running.cancel()
        assert len(receiver.got) == count, "nothing is raised: there is nothing to tell"


def test_the_log_has_the_figures_and_the_runbook(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        Log().tell(change(1))
        Log().tell(Healing(1.0, "r1", "m", "drain", "done", "Why."))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    first, second = (record.getMessage() for record in caplog.records)
    assert "No token for 11 s." in first and "ops/runbooks/up-but-not-serving.md" in first
    assert second == "healing: drain r1: done. Why."

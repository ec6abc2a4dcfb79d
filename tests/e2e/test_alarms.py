"""Up but not serving, on the real stack: told at a webhook, healed, resolved; and the controller itself may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from webhook import NOT_SERVING, Webhook

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STREAMS, TOKENS = 12, 600
Text = tuple[str, str]  # text, finish reason


NewSession = Callable[[Mapping[str, str]], AbstractContextManager[Any]]


async def stream(client: httpx.AsyncClient, i: int) -> Text:
    text, finish, last = "", "", ""
    body = {
        "model": "tiny-r1",
        "messages": [{"role": "user", "content": f"What is {123 + 7 * i}+{456 + 3 * i}?"}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            if (last := line.removeprefix("data: ")) == "[DONE]":
                break
            event = json.loads(last)
            assert "error" not in event, event
            for choice in event["choices"]:
                text += (choice["delta"].get("reasoning") or "") + (choice["delta"].get("content") or "")
                finish = choice["finish_reason"] or finish
    assert last == "[DONE]", "the stream was cut"
    return text, finish


async def streams(url: str, disturb: Callable[[], None] | None = None, after_s: float = 0.4) -> list[Text]:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        asks = [asyncio.ensure_future(stream(client, i)) for i in range(STREAMS)]
        if disturb is not None:
            await asyncio.sleep(after_s)
            disturb()
        return await asyncio.gather(*asks)


def freeze_the_busier_one(session: Any, frozen: list[Any]) -> None:
    replica = max(session.status()["replicas"], key=lambda replica: replica["granted"])
    os.kill(replica["engine"]["pid"], signal.SIGSTOP)
    frozen += [replica["id"], time.monotonic()]


def is_replaced(session: Any, replica: str) -> bool:
    there = {one["id"] for one in session.status()["replicas"]}
    return len(there) == 2 and replica not in there


def alarms(session: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{session.url}/moray/alarms", timeout=20).raise_for_status().json()
    return answer


def test_a_frozen_replica_is_told_healed_and_resolved(
    new_session: NewSession, webhook: Webhook, eventually: Callable[..., Any]
) -> None:
    """With the default bounds: gateways alone would wait for 30 s."""
    settings = {"replicas.count": "2", "experts.expert_parallel": "1", "alarms.webhook": webhook.url}
    with new_session(settings) as session:
        eventually(lambda: len(session.status()["replicas"]) == 2, 60, "both are ready")
        undisturbed = asyncio.run(streams(session.url))
        frozen: list[Any] = []
        disturbed = asyncio.run(streams(session.url, lambda: freeze_the_busier_one(session, frozen)))
        replica, frozen_at = frozen
        assert session.status()["gateway"]["resumed"] > 0, "nothing was running on the replica that froze"
        assert disturbed == undisturbed

        eventually(lambda: webhook.told("firing", replica), 15, "the webhook is told")
        assert webhook.told("firing", replica)[0] - frozen_at < 15.0
        eventually(lambda: webhook.told("resolved", replica), 60, "it is resolved")
        eventually(lambda: is_replaced(session, replica), 120, "it is replaced")
        eventually(lambda: alarms(session)["healing"][-1]["outcome"] == "recovered", 30, "the healing is over")
        told = alarms(session)
        assert [(h["action"], h["outcome"]) for h in told["healing"]] == [
            ("drain", "done"), ("restart", "done"), ("recover", "recovered"),
        ]  # fmt: skip
        assert {h["replica"] for h in told["healing"]} == {replica} and NOT_SERVING in told["healing"][0]["why"]
        assert len(webhook.told("firing", replica)) == len(webhook.told("resolved", replica)) == 1
        assert not [alarm for alarm in told["alarms"] if alarm["name"] == NOT_SERVING]
        rows = httpx.get(f"{session.url}/moray/history", timeout=20).json()["rows"]
        assert sum(row["requests"] for row in rows) == 2 * STREAMS
        assert sum(row["output_tokens"] for row in rows) >= 2 * STREAMS * TOKENS
        shown = session.moray("alarms")
        assert shown.returncode == 0 and "restart" in shown.stdout, shown.stdout + shown.stderr


def test_the_controller_dies_while_an_alarm_is_raised(
    unhealed: Any, webhook: Webhook, eventually: Callable[..., Any]
) -> None:
    asyncio.run(streams(unhealed.url))  # warm
    frozen: list[Any] = []
    before: list[int] = []

    def freeze_then_kill() -> None:
        freeze_the_busier_one(unhealed, frozen)
        eventually(lambda: webhook.told("firing", frozen[0]), 15, "the webhook is told")
        before.append(alarms(unhealed)["pid"])
        os.kill(before[0], signal.SIGKILL)

    watching = threading.Thread(target=freeze_then_kill)
    disturbed = asyncio.run(streams(unhealed.url, watching.start))
    watching.join()
    assert len(disturbed) == STREAMS and before
    told = eventually(
        lambda: (a := alarms(unhealed))["watching"] and a["pid"] != before[0] and a, 30, "the controller is back"
    )
    assert any(change["raised"] and change["alarm"]["name"] == NOT_SERVING for change in told["recent"])
    eventually(lambda: webhook.told("resolved", frozen[0]), 90, "Serve has replaced it, the alarm is resolved")
    time.sleep(3)  # what is told twice comes late
    assert len(webhook.told("firing", frozen[0])) == len(webhook.told("resolved", frozen[0])) == 1

"""Up but not serving, on the real stack: told at a webhook, healed, resolved; and the controller itself may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from http_server import Answer, Asked, http_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NOT_SERVING = "up-but-not-serving"
STREAMS, TOKENS = 12, 600
Text = tuple[str, str]  # text, finish reason


class Receiver:
    """A webhook: what it was sent, and when."""

    url: str

    def __init__(self) -> None:
        self.got: list[tuple[float, dict[str, Any]]] = []

    def answer(self, asked: Asked) -> Answer:
        self.got.append((time.monotonic(), asked.json))
        return Answer()

    def told(self, status: str, replica: str) -> list[float]:
        """When it was told that this replica is not serving, or is no longer a matter."""
        labels = [(at, body["status"], each["labels"]) for at, body in self.got for each in body["alerts"]]
        return [
            at
            for at, what, each in labels
            if what == status and each["alertname"] == NOT_SERVING and each["replica"] == replica
        ]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with http_server(made.answer) as made.url:
        yield made


NewSession = Callable[[Mapping[str, str]], AbstractContextManager[Any]]
TWO = {"replicas.count": "2", "experts.expert_parallel": "1"}


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
    new_session: NewSession, receiver: Receiver, eventually: Callable[..., Any]
) -> None:
    """With the default bounds: gateways alone would wait for 30 s."""
    with new_session(TWO | {"alarms.webhook": receiver.url}) as session:
        eventually(lambda: len(session.status()["replicas"]) == 2, 60, "both are ready")
        undisturbed = asyncio.run(streams(session.url))
        frozen: list[Any] = []
        disturbed = asyncio.run(streams(session.url, lambda: freeze_the_busier_one(session, frozen)))
        replica, frozen_at = frozen
        assert session.status()["gateway"]["resumed"] > 0, "nothing was running on the replica that froze"
        assert disturbed == undisturbed

        eventually(lambda: receiver.told("firing", replica), 15, "the webhook is told")
        assert receiver.told("firing", replica)[0] - frozen_at < 15.0
        eventually(lambda: receiver.told("resolved", replica), 60, "it is resolved")
        eventually(lambda: is_replaced(session, replica), 120, "it is replaced")
        eventually(lambda: alarms(session)["healing"][-1]["outcome"] == "recovered", 30, "the healing is over")
        told = alarms(session)
        assert [(h["action"], h["outcome"]) for h in told["healing"]] == [
            ("drain", "done"), ("restart", "done"), ("recover", "recovered"),
        ]  # fmt: skip
        assert {h["replica"] for h in told["healing"]} == {replica} and NOT_SERVING in told["healing"][0]["why"]
        assert len(receiver.told("firing", replica)) == len(receiver.told("resolved", replica)) == 1
        assert not [alarm for alarm in told["alarms"] if alarm["name"] == NOT_SERVING]
        rows = httpx.get(f"{session.url}/moray/history", timeout=20).json()["rows"]
        assert sum(row["requests"] for row in rows) == 2 * STREAMS
        assert sum(row["output_tokens"] for row in rows) >= 2 * STREAMS * TOKENS
        shown = session.moray("alarms")
        assert shown.returncode == 0 and "restart" in shown.stdout, shown.stdout + shown.stderr


def test_the_controller_dies_while_an_alarm_is_raised(
    new_session: NewSession, receiver: Receiver, eventually: Callable[..., Any]
) -> None:
    healing_off = {"alarms.restarts_per_hour": "0", "alarms.no_token_s": "3", "replicas.hang_timeout_s": "25"}
    with new_session(TWO | healing_off | {"alarms.webhook": receiver.url}) as session:
        eventually(lambda: len(session.status()["replicas"]) == 2, 60, "both are ready")
        asyncio.run(streams(session.url))  # warm
        frozen: list[Any] = []
        before: list[int] = []

        def freeze_then_kill() -> None:
            freeze_the_busier_one(session, frozen)
            eventually(lambda: receiver.told("firing", frozen[0]), 15, "the webhook is told")
            before.append(alarms(session)["pid"])
            os.kill(before[0], signal.SIGKILL)

        watching = threading.Thread(target=freeze_then_kill)
        disturbed = asyncio.run(streams(session.url, watching.start))
        watching.join()
        assert len(disturbed) == STREAMS and before
        told = eventually(
            lambda: (a := alarms(session))["watching"] and a["pid"] != before[0] and a, 30, "the controller is back"
        )
        assert any(change["raised"] and change["alarm"]["name"] == NOT_SERVING for change in told["recent"])
        eventually(lambda: receiver.told("resolved", frozen[0]), 90, "Serve has replaced it, the alarm is resolved")
        time.sleep(3)  # what is told twice comes late
        assert len(receiver.told("firing", frozen[0])) == len(receiver.told("resolved", frozen[0])) == 1

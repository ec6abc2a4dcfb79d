"""`moray drain`: what it asks for, what it says of a refusal, and that it waits for the last stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from http_server import Answer, Asked, http_server

from ops import drain as draining
from ops.drain import drain, follow
from ops.gateway_calls import Refused


class Gateway:
    """Answers as a gateway does, with what it is given."""

    url: str

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.drained: tuple[int, Any] = (200, {"replica": "r1"})
        self.granted = [2, 2, 1, 0]

    def answer(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            return Answer(200, {"replicas": [{"id": "r1", "granted": self.granted.pop(0)}]})
        self.asked.append((asked.json, asked.key))
        return Answer(*self.drained)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    with http_server(made.answer) as made.url:
        yield made


def test_it_asks_for_what_it_was_told(gateway):
    assert drain(gateway.url, "r", "key", migrate=True, undo=False, force=False) == "r1"
    assert gateway.asked == [({"replica": "r", "migrate": True, "undo": False, "force": False}, "Bearer key")]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (409, {"error": {"message": "r1 is the last replica"}}, "r1 is the last replica"),
        (403, {"error": {"message": "This API key is no operator's."}}, "no operator's: give an operator's key"),
        (502, "no shape at all", "answered 502"),
        (200, ["not what was asked for"], "answered 200"),
    ],
)
def test_a_refusal_is_told_in_its_own_words(gateway, status, body, said):
    gateway.drained = (status, body)
    with pytest.raises(Refused, match=said):
        drain(gateway.url, "r1", None, migrate=False, undo=False, force=False)


def test_nobody_there():
    with pytest.raises(Refused, match="does not answer"):
        drain("http://127.0.0.1:9", "r1", None, migrate=False, undo=False, force=False)


def test_it_waits_until_nothing_runs_there(gateway, monkeypatch):
    monkeypatch.setattr(draining, "LOOK_EVERY_S", 0.0)
    told: list[int] = []
    follow(gateway.url, "r1", None, told.append)
    assert told == [2, 1, 0]


def test_a_replica_that_is_gone_is_empty(gateway):
    told: list[int] = []
    follow(gateway.url, "another", None, told.append)
    assert told == [0]

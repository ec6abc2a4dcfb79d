"""The webhook that a controller tells its alarms."""

from __future__ import annotations

import time
from typing import Any

from http_server import Answer, Asked

NOT_SERVING = "up-but-not-serving"


class Webhook:
    """What it was sent, and when."""

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

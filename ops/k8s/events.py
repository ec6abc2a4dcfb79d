"""What the watcher does, told as Events of the RayService, which `kubectl describe rayservice` shows."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ops.k8s.calls import Api
from ops.k8s.refusals import AlreadyExists, ApiRefused

logger = logging.getLogger(__name__)

COMPONENT = "moray-node-watcher"
LONGEST = 1000  # characters of a message that the API takes


class Events:
    """An Event that cannot be written is a line in the log, and nothing else."""

    def __init__(self, api: Api, namespace: str, me: str) -> None:
        self._api, self._namespace, self._me = api, namespace, me

    def tell(self, service: Mapping[str, Any], reason: str, message: str, warning: bool = False) -> None:
        at_ns = time.time_ns()
        at = datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = service["metadata"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{at_ns:x}", "namespace": self._namespace},
            "involvedObject": {
                "apiVersion": "ray.io/v1",
                "kind": "RayService",
                "name": metadata["name"],
                "namespace": self._namespace,
                "uid": metadata.get("uid", ""),
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message[:LONGEST],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._me[:128],
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        try:
            self._api.post(f"/api/v1/namespaces/{self._namespace}/events", event, patience_s=5.0)
        except AlreadyExists:
            pass  # the answer to the first try was lost
        except ApiRefused as refused:
            logger.warning("the Event %s could not be written: %s", reason, refused)

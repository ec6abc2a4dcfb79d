"""The Lease itself: taken, renewed, given back; and what its holder has to remember, in an annotation of it.

Whoever takes the Lease over finds there what the one before has done, and nobody else can write there: each write
names the version that was read last.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ops.k8s.calls import Api
from ops.k8s.lease import Held, Sight, Step, Terms, decide, leads, look
from ops.k8s.refusals import ApiRefused, Conflict, Missing

logger = logging.getLogger(__name__)

RECORD = "moray.dev/drained"  # annotation: what the holder has done and may have to undo, JSON


class NotLeading(Exception):
    """Somebody else may be: nothing was written."""


class Leadership:
    """Runs in a thread of its own: `start`, then ask `leading` before each act, then `release`."""

    def __init__(
        self, api: Api, namespace: str, name: str, me: str, terms: Terms | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`me`: unlike any other's, and unlike that of this process's life before."""
        self._api, self._name, self.me = api, name, me
        self._all = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._all}/{name}"
        self._terms, self._clock = terms or Terms(), clock
        self._lease: dict[str, Any] | None = None
        self._record: dict[str, str] = {}
        self._sight: Sight | None = None
        self._asked_s: float | None = None
        self._looked_s: float | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {name}", daemon=True)
        self._trouble = ""

    @property
    def leading(self) -> bool:
        return leads(self._asked_s, self._clock(), self._terms)

    @property
    def holder(self) -> str:
        """As last seen; "": nobody."""
        held = self._sight.held if self._sight is not None else None
        return held.holder if held is not None else ""

    @property
    def unseen_s(self) -> float | None:
        """Since when the Lease could not be read; None: it never could."""
        return None if self._looked_s is None else self._clock() - self._looked_s

    @property
    def record(self) -> dict[str, str]:
        """What the Lease's holder remembers: node by replica id. A Lease that was deleted takes nothing with it."""
        return dict(self._record)

    @property
    def alive(self) -> bool:
        """Its thread has not ended by a mistake of ours."""
        return self._thread.is_alive() or self._thread.ident is None

    def start(self) -> None:
        self._thread.start()

    def remember(self, record: Mapping[str, str]) -> None:
        """Stores it; renews the Lease on the way. Raises NotLeading or ApiRefused."""
        with self._lock:
            for _ in range(2):
                if not self.leading or self._lease is None:
                    raise NotLeading
                try:
                    self._write(Step.RENEW, record)
                    return
                except Conflict:
                    self._look()  # somebody edited it, or our last answer was lost
            raise NotLeading

    def turn(self) -> None:
        """One look, and what follows of it. Raises ApiRefused."""
        with self._lock:
            was, before = self.leading, self.holder
            self._look()
            assert self._sight is not None
            step = decide(self.me, self._sight, self._clock())
            if step is not Step.WAIT:
                try:
                    self._write(step, self.record)
                except Conflict:
                    return  # another was faster, or wrote between; the next look tells
            if self.leading and not was:
                logger.info("lease %s: this is the leader now (%s)", self._name, self.me)
            elif was and not self.leading:
                logger.warning("lease %s: no longer the leader", self._name)
            elif self.holder != before:
                logger.info("lease %s: the leader is %s", self._name, self.holder or "nobody")

    def release(self) -> None:
        """Acts no more, and lets the others take it at once."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        with self._lock:
            mine, self._asked_s = self.leading, None
            if not mine or self._lease is None:
                return
            body = self._body("", self.record)
            try:
                self._api.put(self._path, body, patience_s=2.0)
            except ApiRefused as refused:
                logger.info("lease %s could not be given back, it ends by itself: %s", self._name, refused)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.turn()
                if self._trouble:
                    logger.info("lease %s: the API server answers again", self._name)
                self._trouble = ""
            except ApiRefused as refused:
                if self._trouble != str(refused):
                    logger.warning("lease %s: %s", self._name, refused)
                self._trouble = str(refused)
            self._stop.wait(self._terms.look_every_s * (0.75 + 0.5 * random.random()))

    def _look(self) -> None:
        patience_s = self._terms.look_every_s
        try:
            lease: dict[str, Any] | None = self._api.get(self._path, patience_s=patience_s)
        except Missing:
            lease = None
        self._saw(lease)
        if self._sight is not None and self._sight.held is not None and self._sight.held.holder != self.me:
            self._asked_s = None

    def _write(self, step: Step, record: Mapping[str, str]) -> None:
        """Raises Conflict: the Lease is not as it was read."""
        body, patience_s = self._body(self.me, record, step), self._terms.look_every_s
        asked_s = self._clock()
        if step is Step.CREATE:
            written = self._api.post(self._all, body, patience_s)
        else:
            written = self._api.put(self._path, body, patience_s)
        self._saw(written)
        self._asked_s = asked_s

    def _saw(self, lease: dict[str, Any] | None) -> None:
        held = None
        if lease is not None:
            spec = lease.get("spec") or {}
            held = Held(
                holder=str(spec.get("holderIdentity") or ""),
                lease_s=float(spec.get("leaseDurationSeconds") or self._terms.lease_s),
                version=str(lease["metadata"]["resourceVersion"]),
            )
            self._record = _record(lease)
        self._lease, self._looked_s = lease, self._clock()
        self._sight = look(self._sight, held, self._looked_s)

    def _body(self, holder: str, record: Mapping[str, str], step: Step | None = None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # for people: nothing here reads it
        metadata, spec = {}, {}
        if self._lease is not None and step is not Step.CREATE:
            before = self._lease
            metadata = {key: value for key, value in before["metadata"].items() if key != "managedFields"}
            spec = dict(before.get("spec") or {})
        if step in (Step.CREATE, Step.TAKE):
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (step is Step.TAKE)
        spec |= {"holderIdentity": holder, "leaseDurationSeconds": round(self._terms.lease_s), "renewTime": now}
        annotations = dict(metadata.get("annotations") or {}) | {RECORD: json.dumps(record, sort_keys=True)}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata | {"name": self._name, "annotations": annotations},
            "spec": spec,
        }


def _record(lease: Mapping[str, Any]) -> dict[str, str]:
    noted = (lease["metadata"].get("annotations") or {}).get(RECORD)
    try:
        return {str(replica): str(node) for replica, node in json.loads(noted or "{}").items()}
    except (ValueError, AttributeError):
        logger.error("lease %s: the annotation %s is none of ours: %s", lease["metadata"].get("name"), RECORD, noted)
        return {}

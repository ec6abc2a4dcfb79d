"""`moray k8s watch-nodes`: moves streams away from nodes that must be left, and takes replicas back with their nodes.

Level-triggered: each look compares what is (nodes, Events, pods, the router's replicas) with what was done, which the
Lease remembers. A watcher that starts anew, or takes over, goes on where the last one stopped. Only the Lease's holder
acts; the others watch along, so that they can take over at once.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

from ops.drain import drain
from ops.errors import UserError
from ops.gateway_calls import Refused
from ops.k8s import moving, nodes, pods
from ops.k8s.calls import Api
from ops.k8s.events import Events
from ops.k8s.leadership import Leadership, NotLeading
from ops.k8s.moving import Move, Replica
from ops.k8s.node_metrics import Metrics
from ops.k8s.watching import Mirror
from ops.status import fetch

logger = logging.getLogger(__name__)

BUSY_EVERY_S, IDLE_EVERY_S = 2.0, 15.0  # looks: while something is to be done or undone, and else
WOKEN_PAUSE_S = 0.5  # before a look, also one that it is woken for: what changes at once is looked at once
STALE_S = 120.0  # nothing heard of the nodes for so long: what is known of them is no reason to act
PATIENCE_S = 5.0  # of a call within a look: the next look is near
TOLD_EVERY_S = 60.0  # what lasts is logged so often
EVENTS_EVERY_S = 600.0


class NodeWatcher:
    """`run` until `stop` is set. One thread; nodes and events are mirrored by theirs."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        rayservice: str,
        url: str,
        api_key: str | None,
        leadership: Leadership,
        metrics: Metrics,
        stop: threading.Event,
    ) -> None:
        self._api, self._namespace, self._rayservice = api, namespace, rayservice
        self._url, self._api_key = url, api_key
        self.leadership, self._metrics, self._stop = leadership, metrics, stop
        self._woken = threading.Event()
        self.nodes = Mirror(api, "/api/v1/nodes", {}, self._node_changed, nodes.of_interest)
        about_nodes = {"fieldSelector": "involvedObject.kind=Node"}
        self.events = Mirror(api, "/api/v1/events", about_nodes, lambda *_: self._woken.set())
        self._tell = Events(api, namespace, leadership.me)
        self._seen_s: dict[str, float] = {}  # replicas of the record: when the router knew them at last
        self._told_s: dict[str, float] = {}  # what lasts: when it was logged at last
        self._evented_s: dict[str, float] = {}
        self._left: dict[str, str] = {}  # nodes that are being left, and why, as logged
        self.beat_s = time.monotonic()  # its last sign of life

    # -- its life -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Returns when `stop` is set, with the Lease given back."""
        for part in (self.nodes, self.events, self.leadership):
            part.start()
        failures = 0
        try:
            while not self._stop.is_set():
                self.beat_s = time.monotonic()
                busy = False
                try:
                    busy = self.look()
                    failures = 0
                except UserError as error:
                    failures += 1
                    self._metrics.failed()
                    self._say("look", f"cannot see to the nodes: {error}")
                except NotLeading:
                    logger.warning("the lease went to another while this one was at work; it goes on there")
                every_s = BUSY_EVERY_S if busy or failures else IDLE_EVERY_S
                self._woken.wait(min(every_s * 2 ** min(failures, 3), IDLE_EVERY_S) * (0.75 + 0.5 * random.random()))
                self._stop.wait(min(WOKEN_PAUSE_S * 2 ** min(failures, 5), IDLE_EVERY_S))
                self._woken.clear()
        finally:
            self.nodes.stop()
            self.events.stop()
            self.leadership.release()

    def wake(self) -> None:
        self._woken.set()

    def _node_changed(self, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
        # Kubelets write their nodes' heartbeats all the time: in a large cluster several a second.
        if before is None or now is None or before != now:
            self._woken.set()

    @property
    def alive(self) -> bool:
        """Its loops go round; whatever the API server and the gateway do, they have to."""
        parts = (self.nodes, self.events, self.leadership)
        return time.monotonic() - self.beat_s < 60.0 and all(part.alive for part in parts)

    @property
    def unready(self) -> str:
        """Why it could not do its work just now; "": it could."""
        if self.nodes.objects is None:
            return f"the nodes are not listed as yet: {self.nodes.trouble or 'the list is under way'}"
        if self.events.objects is None:
            return f"the nodes' Events are not listed as yet: {self.events.trouble or 'the list is under way'}"
        if self._stale:
            return self._stale
        unseen_s = self.leadership.unseen_s
        if unseen_s is None or unseen_s > 60.0:
            return "the lease cannot be read"
        return ""

    @property
    def _stale(self) -> str:
        """Why what is known of the nodes is no reason to act; "": it is one."""
        if (silent_s := self.nodes.silent_s or 0.0) <= STALE_S:
            return ""
        return f"nothing was heard of the nodes for {silent_s:.0f} s: {self.nodes.trouble or 'the watch says nothing'}"

    # -- one look -----------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """One pass. True: something is under way. Raises UserError, NotLeading."""
        known, leads = self.nodes.objects, self.leadership.leading
        self._metrics.looked(leads, self.nodes, self.events)
        if known is None or not leads:
            return False
        if stale := self._stale:
            self._say("stale", f"the nodes are not looked at: {stale}")
            return False
        service = self._api.get(pods.services_path(self._namespace, self._rayservice), patience_s=PATIENCE_S)
        ours = pods.pods_of(self._api, self._namespace, service, PATIENCE_S)
        told = self.events.objects
        found = nodes.leaving(known.values(), (told or {}).values(), ours)
        # An Event that was not listed as yet may be what a replica was drained for.
        undecided = found.undecided if told is not None else {pod.node for pod in ours}
        record = self.leadership.record
        self._note(found)
        if not found.nodes and not record:
            self._metrics.moved({}, {}, 0)
            return False
        replicas = self._replicas(ours)
        now_s = time.monotonic()
        there = {replica.id for replica in replicas}
        self._seen_s = {one: now_s if one in there else self._seen_s.get(one, now_s) for one in record}
        unseen_s = {one: now_s - seen_s for one, seen_s in self._seen_s.items()}
        planned = moving.plan(replicas, found.nodes, record, unseen_s, undecided, nodes.boots(known.values()))
        self._carry_out(planned, service)
        self._metrics.moved(found.nodes, planned.after, len(planned.last))
        return True

    def _replicas(self, ours: list[pods.Pod]) -> list[Replica]:
        node_of = {ip: pod.node for pod in ours for ip in pod.ips}
        report = fetch(self._url, self._api_key, "/moray/status?brief=true")
        return [
            Replica(str(one["id"]), node_of.get(pods.host_of(one), ""), str(one["state"]))
            for one in report.get("replicas") or ()
        ]

    def _carry_out(self, planned: moving.Plan, service: Mapping[str, Any]) -> None:
        """Stored first, done then; each order only while the Lease is ours."""
        if planned.record is not None and planned.record != self.leadership.record:
            self.leadership.remember(planned.record)
        undone = [self._order(move, service, undo=True) for move in planned.undo]
        for move in planned.drain:
            self._order(move, service, undo=False)
        for move in planned.last:
            self._warn_of_the_last(move, service)
        if undone and all(undone):
            self.leadership.remember(planned.after)

    def _order(self, move: Move, service: Mapping[str, Any], undo: bool) -> bool:
        if not self.leadership.leading:
            raise NotLeading
        what = "take it back" if undo else "drain it"
        try:
            drain(self._url, move.replica_id, self._api_key, migrate=not undo, undo=undo, force=False)
        except Refused as refused:
            self._metrics.ordered(undo, False)
            self._say(
                f"{what} {move.replica_id}",
                f"node {move.node} {move.why}, but its replica {move.replica_id} stays as it is: {refused}",
            )
            return False
        self._metrics.ordered(undo, True)
        if undo:
            message = f"Node {move.node} {move.why}: its replica {move.replica_id} takes requests again."
        else:
            message = f"Node {move.node} {move.why}: the streams of its replica {move.replica_id} move to others."
        logger.info(message)
        self._tell.tell(service, "ReplicaBack" if undo else "StreamsMoved", message)
        return True

    def _warn_of_the_last(self, move: Move, service: Mapping[str, Any]) -> None:
        message = (
            f"Node {move.node} {move.why}, but its replica {move.replica_id} is the last that takes requests: it is "
            "NOT drained. When the node ends, requests wait, and are answered with 503 if no other replica comes. Make "
            f"room for one on another node, or drain it all the same: moray k8s drain-node {move.node} --force"
        )
        self._say(f"last {move.replica_id}", message)
        if _due(self._evented_s, move.replica_id, EVENTS_EVERY_S):
            self._tell.tell(service, "LastReplica", message, warning=True)

    # -- what is said -------------------------------------------------------------------------------------------------

    def _note(self, found: nodes.Leaving) -> None:
        now = {node: reason.why for node, reason in found.nodes.items()}
        for node, why in now.items():
            if self._left.get(node) != why:
                logger.info("node %s %s: it is left", node, why)
        for node in self._left.keys() - now.keys():
            logger.info("node %s need not be left any more", node)
        self._left = now
        if found.withheld:
            self._say("withheld", found.withheld)

    def _say(self, about: str, message: str) -> None:
        """A warning, once a minute while it lasts."""
        if _due(self._told_s, about, TOLD_EVERY_S):
            logger.warning(message)


def _due(done_s: dict[str, float], about: str, every_s: float) -> bool:
    """It was not done within `every_s`; then it counts as done now. What is due again is forgotten."""
    now_s = time.monotonic()
    for one in [one for one, at_s in done_s.items() if now_s - at_s >= every_s]:
        del done_s[one]
    if about in done_s:
        return False
    done_s[about] = now_s
    return True

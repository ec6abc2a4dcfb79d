"""What the node watcher tells of itself: /healthz, /readyz and /metrics on one port."""

from __future__ import annotations

import socket
import threading
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from ops.k8s.nodes import Reason, Urgency
from ops.k8s.refusals import ApiRefused
from ops.k8s.watching import Mirror


class Told(NamedTuple):
    """A metric, by its name as it is scraped."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Metrics:
    """`catalogue`: what there is, for ops/METRICS.md and for those who hold that queries name what exists."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.catalogue: list[Told] = []

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            self.catalogue.append(Told(f"moray_node_watcher_{name}", "gauge", labels, text))
            return Gauge(f"moray_node_watcher_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            self.catalogue.append(Told(f"moray_node_watcher_{name}_total", "counter", labels, text))
            return Counter(f"moray_node_watcher_{name}", text, labels, registry=registry)

        self._leader = gauge("leader", "1: this process holds the lease and acts.")
        self._leaving = gauge("leaving_nodes", "Nodes with our pods that must be left, by why.", "cause")
        self._drained = gauge("drained_replicas", "Replicas that are drained because of their node.")
        self._last = gauge("last_replicas", "Replicas that would have to go, but are the last that take requests.")
        self._orders = counter("orders", "Orders to the gateway, by kind and outcome.", "order", "outcome")
        self._failures = counter("failed_looks", "Looks that the API server or the gateway spoilt.")
        self._relists = gauge("relists", "Fresh lists after the first, since the start.", "of")
        self._silence = gauge("silence_seconds", "Since when the API server said nothing of it.", "of")
        self._retries = counter("api_retries", "Calls to the API server that were tried again.", "status")
        for order in ("drain", "undo"):
            for outcome in ("done", "refused"):
                self._orders.labels(order, outcome)

    def looked(self, leads: bool, nodes: Mirror, events: Mirror) -> None:
        self._leader.set(leads)
        for name, mirror in (("nodes", nodes), ("events", events)):
            self._relists.labels(name).set(mirror.restarts)
            if mirror.silent_s is not None:
                self._silence.labels(name).set(mirror.silent_s)
        if not leads:
            self.moved({}, {}, 0)  # the leader tells

    def moved(self, leaving: Mapping[str, Reason], drained: Mapping[str, str], last: int) -> None:
        causes = Tally(reason.urgency for reason in leaving.values())
        for urgency in Urgency:
            self._leaving.labels(urgency.name.lower()).set(causes[urgency])
        self._drained.set(len(drained))
        self._last.set(last)

    def ordered(self, undo: bool, done: bool) -> None:
        self._orders.labels("undo" if undo else "drain", "done" if done else "refused").inc()

    def failed(self) -> None:
        self._failures.inc()

    def retried(self, refused: ApiRefused) -> None:
        self._retries.labels(str(refused.status or "connection")).inc()


class Health:
    """The port. `alive`: the process need not be restarted. `unready`: why it cannot do its work; "": it can."""

    def __init__(
        self, address: tuple[str, int], metrics: Metrics, alive: Callable[[], bool], unready: Callable[[], str]
    ):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._say(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
                elif path == "/healthz":
                    ok = alive()
                    self._say(200 if ok else 503, b"ok\n" if ok else b"its loop stands still\n")
                elif path == "/readyz":
                    why = unready()
                    self._say(503 if why else 200, f"{why or 'ok'}\n".encode())
                else:
                    self._say(404, b"/healthz, /readyz, /metrics\n")

            def _say(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

        self._server = Server(address, Handler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

"""A Kubernetes API server as far as Moray's operators need one, over real HTTP in this process.

It keeps objects with resourceVersions, answers lists and watches (events, bookmarks, 410 after `compact`), updates with
optimistic concurrency, applies with field ownership of whole `spec` fields, evicts, and fails as it is told to.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from ops.k8s.calls import Api
from ops.k8s.connect import api_client

NAMESPACE = "moray"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SERVICES = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayservices"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
Fault = Callable[[BaseHTTPRequestHandler], bool]


def status(
    code: int, reason: str = "", message: str = "", causes: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    details = {"causes": causes} if causes else {}
    return {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


class FakeApi:
    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.owners: dict[tuple[str, str], str] = {}  # (path, field of spec) -> manager
        self.log: list[tuple[int, str, str, dict[str, Any]]] = []
        self.version = 100
        self.compacted = 0
        self.asked: list[tuple[str, str, dict[str, str]]] = []  # method, path, query
        self.faults: list[tuple[str, str, Fault]] = []  # method, part of the path, what happens; each once
        self.proxied: dict[str, tuple[str, int]] = {}  # service or pod -> where it really is
        self.budget = 0  # evictions that a disruption budget refuses
        self.connections: set[socket.socket] = set()
        self.changed = threading.Condition()
        self._epoch = 0  # watches of an older one end
        self._port = 0
        self.start()

    # -- for tests ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_port
        self.url = f"http://127.0.0.1:{self._port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """As a server that is killed: connections that are open break."""
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def api(self, stop: Any = None) -> Api:
        configuration = client.Configuration()
        configuration.host = self.url
        return Api(api_client(configuration), stop)

    def put(self, path: str, thing: dict[str, Any]) -> dict[str, Any]:
        """Creates or replaces, and tells the watches."""
        with self.changed:
            self.version += 1
            kind = "MODIFIED" if path in self.objects else "ADDED"
            metadata = {"uid": f"uid-{path}", "name": path.rpartition("/")[2]} | thing.get("metadata", {})
            kept = thing | {"metadata": metadata | {"resourceVersion": str(self.version)}}
            self.objects[path] = kept
            self.log.append((self.version, path.rpartition("/")[0], kind, kept))
            self.changed.notify_all()
            return kept

    def delete(self, path: str) -> None:
        with self.changed:
            self.version += 1
            gone = self.objects.pop(path)
            gone = gone | {"metadata": gone["metadata"] | {"resourceVersion": str(self.version)}}
            self.log.append((self.version, path.rpartition("/")[0], "DELETED", gone))
            self.changed.notify_all()

    def bookmark(self, collection: str) -> None:
        with self.changed:
            self.version += 1
            self.log.append(
                (self.version, collection, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})
            )
            self.changed.notify_all()

    def compact(self) -> None:
        """Forgets all that was, as etcd does."""
        with self.changed:
            self.version += 1
            self.compacted = self.version

    def end_watches(self) -> None:
        with self.changed:
            self._epoch += 1
            self.changed.notify_all()

    def fail(self, method: str, path: str, fault: Fault, times: int = 1) -> None:
        self.faults += [(method, path, fault)] * times

    def asked_for(self, path: str, **query: str) -> list[dict[str, str]]:
        """The queries of what was asked of this path."""
        return [q for _, p, q in list(self.asked) if p == path and query.items() <= q.items()]

    # -- the server ---------------------------------------------------------------------------------------------------

    def listed(self, collection: str, query: dict[str, str]) -> dict[str, Any]:
        found = [thing for path, thing in self.objects.items() if path.rpartition("/")[0] == collection]
        if collection == "/api/v1/events":  # of all namespaces
            found = [thing for path, thing in self.objects.items() if re.search(r"/namespaces/[^/]+/events/", path)]
        if named := re.fullmatch(r"ray\.io/cluster in \((.*)\)", query.get("labelSelector", "")):
            names = named.group(1).split(",")
            found = [one for one in found if one["metadata"].get("labels", {}).get("ray.io/cluster") in names]
        elif query.get("labelSelector"):
            wanted = dict(part.split("=") for part in query["labelSelector"].split(","))
            found = [one for one in found if wanted.items() <= one["metadata"].get("labels", {}).items()]
        if query.get("fieldSelector") == "involvedObject.kind=Node":
            found = [one for one in found if one["involvedObject"]["kind"] == "Node"]
        begin = int(query.get("continue", 0))
        end = begin + int(query.get("limit", len(found)))
        metadata = {"resourceVersion": str(self.version)} | ({"continue": str(end)} if end < len(found) else {})
        return {"kind": "List", "metadata": metadata, "items": found[begin:end]}

    def watch(self, request: _Handler, collection: str, query: dict[str, str]) -> None:
        since = int(query["resourceVersion"])
        if since < self.compacted:
            request.say(410, status(410, "Expired", "too old resource version"))
            return
        request.begin_chunks()
        epoch, ends_s = self._epoch, time.monotonic() + float(query.get("timeoutSeconds", 300))
        while True:
            with self.changed:
                new = [one for one in self.log if one[0] > since and one[1] == collection]
                if not new and epoch == self._epoch:
                    self.changed.wait(0.2)
                if epoch != self._epoch or time.monotonic() > ends_s:
                    break
            for version, _, kind, thing in new:
                request.chunk({"type": kind, "object": thing})
                since = version
        request.end_chunks()

    def apply(self, path: str, body: dict[str, Any], manager: str) -> tuple[int, dict[str, Any]]:
        with self.changed:
            before = self.objects.get(path)
            if before is None or body["metadata"].get("uid") != before["metadata"]["uid"]:
                return 409, status(409, "Conflict", "uid mismatch")
            spec, wanted = dict(before.get("spec", {})), body.get("spec", {})
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "field": f".spec.{key}",
                    "message": f'conflict with "{owner}" using v1',
                }
                for key, value in wanted.items()
                if (owner := self.owners.get((path, key), manager)) != manager and spec.get(key) != value
            ]
            if causes:
                return 409, status(409, "Conflict", "Apply failed with conflicts", causes)
            for key in [key for (of, key), owner in self.owners.items() if of == path and owner == manager]:
                if key not in wanted:
                    spec.pop(key, None)
                    del self.owners[path, key]
            for key, value in wanted.items():
                if spec.get(key) != value or (path, key) not in self.owners:
                    self.owners.setdefault((path, key), manager)
                spec[key] = value
            fields = [
                {"manager": owner, "fieldsV1": {"f:spec": {f"f:{key}": {}}}}
                for (of, key), owner in self.owners.items()
                if of == path
            ]
            metadata = before["metadata"] | {"managedFields": fields}
        return 200, self.put(path, before | {"metadata": metadata, "spec": spec})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeApi

    def setup(self) -> None:
        super().setup()
        self.api.connections.add(self.connection)

    def finish(self) -> None:
        self.api.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        api, method, path = self.api, self.command, url.path
        api.asked.append((method, path, query))
        fault = next((one for one in api.faults if one[0] == method and one[1] in path), None)
        if fault is not None:
            api.faults.remove(fault)
            if fault[2](self):
                return
        if proxied := re.fullmatch(r"(.*)/(services|pods)/([^/]+)/proxy(/.*)", path):
            self.pass_on(proxied.group(3), proxied.group(4) + ("?" + url.query if url.query else ""), raw)
            return
        body = json.loads(raw) if raw else {}
        getattr(self, f"on_{method.lower()}")(path, query, body)

    do_GET = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815  # http.server's names

    def on_get(self, path: str, query: dict[str, str], body: Any) -> None:
        api = self.api
        if query.get("watch") == "true":
            api.watch(self, path, query)
        elif path == "/api/v1":
            self.say(200, {"resources": [{"name": "pods/eviction", "group": "policy", "version": "v1beta1"}]})
        elif path in api.objects:
            self.say(200, api.objects[path])
        elif path.rpartition("/")[2] in ("nodes", "pods", "events", "rayservices", "services", "endpoints"):
            self.say(200, api.listed(path, query))
        else:
            self.say(404, status(404, "NotFound", f"{path} not found"))

    def on_post(self, path: str, query: dict[str, str], body: Any) -> None:
        api = self.api
        if path.endswith("/eviction"):
            with api.changed:
                refused, api.budget = api.budget > 0, max(0, api.budget - 1)
            if refused:
                cause = {"reason": "DisruptionBudget", "message": "needs 1 healthy pod"}
                self.say(429, status(429, "TooManyRequests", "Cannot evict pod", [cause]))
                return
            evicted = path.removesuffix("/eviction")
            wanted = body["deleteOptions"]["preconditions"]["uid"]
            if evicted in api.objects and api.objects[evicted]["metadata"].get("uid") != wanted:
                self.say(409, status(409, "Conflict", "the UID in the precondition does not match"))
                return
            api.delete(evicted)
            self.say(201, status(201))
            return
        name = f"{path}/{body['metadata']['name']}"
        if name in api.objects:
            self.say(409, status(409, "AlreadyExists", f"{name} already exists"))
            return
        self.say(201, api.put(name, body))

    def on_put(self, path: str, query: dict[str, str], body: Any) -> None:
        with self.api.changed:
            known = self.api.objects.get(path)
            if known is None:
                self.say(404, status(404, "NotFound"))
                return
            if body["metadata"].get("resourceVersion") != known["metadata"]["resourceVersion"]:
                self.say(409, status(409, "Conflict", "the object has been modified"))
                return
            made = self.api.put(path, body)
        self.say(200, made)

    def on_patch(self, path: str, query: dict[str, str], body: Any) -> None:
        assert self.headers["content-type"] == "application/apply-patch+yaml" and query["force"] == "false"
        self.say(*self.api.apply(path, body, query["fieldManager"]))

    def pass_on(self, name: str, path: str, raw: bytes) -> None:
        import httpx

        if name not in self.api.proxied:
            self.say(503, status(503, "ServiceUnavailable", f'no endpoints available for service "{name}"'))
            return
        host, port = self.api.proxied[name]
        # The API server keeps this header for itself.
        headers = {key: value for key, value in self.headers.items() if key.lower() in ("x-api-key", "content-type")}
        reply = httpx.request(self.command, f"http://{host}:{port}{path}", content=raw or None, headers=headers)
        self.say(reply.status_code, reply.content)

    # -- answers ------------------------------------------------------------------------------------------------------

    def say(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {
            "content-type": "application/json",
            "content-length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def begin_chunks(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def chunk(self, event: Any) -> None:
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()

    def end_chunks(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None: ...


def _handler(api: FakeApi) -> type[_Handler]:
    return type("Handler", (_Handler,), {"api": api})


# -- faults -----------------------------------------------------------------------------------------------------------


def answering(code: int, reason: str = "", message: str = "", headers: dict[str, str] | None = None) -> Fault:
    def fault(request: Any) -> bool:
        request.say(code, status(code, reason, message), headers)
        return True

    return fault


def hanging_up(request: Any) -> bool:
    """Closes the connection without an answer."""
    request.close_connection = True
    request.connection.close()
    return True


def losing_the_answer(request: Any) -> bool:
    """Does what is asked, and closes the connection instead of answering."""

    def say(*_: Any) -> None:
        hanging_up(request)

    request.say = say
    return False

"""A gateway as far as Moray's operators need one, over real HTTP in this process."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeGateway:
    """Answers as a gateway does: /moray/status, /moray/drain, /moray/rollouts, /moray/targets."""

    def __init__(self, *replica_ids: str, key: str | None = None, host: str = "127.0.0.1") -> None:
        self.replicas = {
            replica_id: {
                "id": replica_id, "state": "ready", "version": "v1", "address": f"10.0.0.{number}:7000",
                "running": 2, "waiting": 0, "granted": 2, "kv_used_fraction": 0.25,
            }
            for number, replica_id in enumerate(replica_ids, 1)
        }  # fmt: skip
        self.orders: list[tuple[str, str]] = []  # drain or undo, replica
        self.rollouts: dict[str, Any] = {"current": None, "history": [], "versions": {"v1": 1.0}}
        self.targets: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = {
                    "/moray/status": {"replicas": list(outer.replicas.values())},
                    "/moray/rollouts": outer.rollouts,
                    "/moray/alarms": {"alarms": []},
                    "/moray/targets": outer.targets,
                    "/metrics": "some_metric 1\n",
                }
                self._say(200, parts[self.path.partition("?")[0]]) if self._let_in() else None

            def do_POST(self) -> None:
                asked = json.loads(self._body())
                if self._let_in():
                    self._say(*outer.drain(asked))

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers["content-length"]))
                body = b""  # as the API server passes it on
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                return body

            def _let_in(self) -> bool:
                given = (self.headers.get("authorization"), self.headers.get("x-api-key"))
                if key is not None and given not in ((f"Bearer {key}", None), (None, key)):
                    self._say(401, {"error": {"message": "An API key is needed"}})
                    return False
                return True

            def _say(self, code: int, body: Any) -> None:
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(code)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def drain(self, asked: dict[str, Any]) -> tuple[int, Any]:
        one = self.replicas[asked["replica"]]
        others = [r for r in self.replicas.values() if r is not one and r["state"] != "draining"]
        if not (asked["undo"] or asked["force"] or others):
            return 409, {"error": {"message": f"{one['id']} is the last replica that takes requests"}}
        one["state"] = "ready" if asked["undo"] else "draining"
        if asked["migrate"]:
            one["granted"] = one["running"] = 0
        self.orders.append(("undo" if asked["undo"] else "drain", one["id"]))
        return 200, {"replica": one["id"]}

    def states(self) -> dict[str, str]:
        return {one["id"]: one["state"] for one in self.replicas.values()}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

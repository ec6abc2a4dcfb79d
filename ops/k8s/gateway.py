"""How these commands reach a cluster's gateway: by its URL, or through the API server, as `kubectl port-forward` does.

The API server's proxy of Services needs nothing but the kubeconfig. It keeps `Authorization` for itself, so a gateway's
key goes as `x-api-key`, which gateways take as well. It is for questions and orders, not for streams: an answer is
passed on when it is complete.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ops.errors import UserError
from ops.k8s.calls import Api
from ops.k8s.refusals import ApiRefused, Missing


@contextmanager
def reached(api: Api, namespace: str, rayservice: str, url: str | None) -> Iterator[str]:
    """The gateway's URL, for as long as the block lasts. Raises UserError, also of what goes wrong on the way."""
    if url is not None:
        yield url.rstrip("/")
        return
    service, port = _service(api, namespace, rayservice)
    relay = Relay(api, f"/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy")
    try:
        yield relay.url
    except UserError as error:
        if relay.refused:
            raise UserError(
                f"the gateway cannot be reached through the API server (Service {service}): {relay.refused}; "
                "or give its address by --url"
            ) from error
        raise
    finally:
        relay.close()


def _service(api: Api, namespace: str, rayservice: str) -> tuple[str, int]:
    """Name and port: the chart's Service, or the one that KubeRay makes."""
    names = [f"{rayservice}-{kind}" for kind in ("gateway", "clusters", "serve-svc")]
    for name in names:
        try:
            ports = api.get(f"/api/v1/namespaces/{namespace}/services/{name}")["spec"].get("ports") or ()
        except Missing:
            continue
        if ports:
            served = next((one for one in ports if one.get("name") in ("http", "serve")), ports[0])
            return name, int(served["port"])
    raise UserError(
        f"namespace {namespace} has no Service {' or '.join(names)}: KubeRay makes it once the application runs; "
        "or give the gateway's address by --url"
    )


class Relay:
    """A port on this machine, for this process: whoever does not know the path's first part is not let through."""

    def __init__(self, api: Api, proxy_path: str) -> None:
        self.refused = ""  # what the API server said at last, where it and not the gateway answered
        secret = secrets.token_urlsafe(16)
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                relay._pass(api, self, proxy_path, secret)

            do_POST = do_GET  # noqa: N815  # http.server's name

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/{secret}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _pass(self, api: Api, request: BaseHTTPRequestHandler, proxy_path: str, secret: str) -> None:
        prefix, _, path = request.path.removeprefix("/").partition("/")
        status, said = 404, b"{}"
        if secrets.compare_digest(prefix, secret):
            sent = request.rfile.read(int(request.headers.get("content-length") or 0))
            body = json.loads(sent) if sent else None  # this process sends JSON only
            headers = {"Accept": "application/json"}
            if key := request.headers.get("authorization", "").removeprefix("Bearer "):
                headers["x-api-key"] = key
            if body is not None:
                headers["Content-Type"] = "application/json"
            try:
                status, said = api.relay(request.command, f"{proxy_path}/{path}", body, headers)
                self.refused = _of_the_api_server(status, said)
            except ApiRefused as gone:
                status, said = 502, json.dumps({"error": {"message": str(gone)}}).encode()
                self.refused = str(gone)
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(said)))
        request.end_headers()
        request.wfile.write(said)


def _of_the_api_server(status: int, said: bytes) -> str:
    """Its refusal; "": the gateway answered."""
    if status < 400:
        return ""
    try:
        told: Any = json.loads(said)
    except ValueError:
        return said.decode(errors="replace").strip()[:300] if status in (502, 503, 504) else ""
    if isinstance(told, dict) and told.get("kind") == "Status":
        return str(told.get("message") or told.get("reason") or status)
    return ""

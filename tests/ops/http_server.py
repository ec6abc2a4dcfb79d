"""An HTTP server on a real socket that answers as the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Asked(NamedTuple):
    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        """The body; None: it is empty."""
        return json.loads(self.body) if self.body else None

    @property
    def key(self) -> str | None:
        return self.headers.get("authorization")


class Answer(NamedTuple):
    status: int = 200
    body: Any = b""  # bytes are sent as they are, an iterator's one after the other, anything else as JSON
    headers: Mapping[str, str] = {}


@contextmanager
def http_server(answer: Callable[[Asked], Answer]) -> Iterator[str]:
    """Its URL; it serves until the context is left. `answer` is called in threads of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            said = answer(Asked(self.command, self.path, body, self.headers))
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            pieces = said.body
            if not isinstance(pieces, Iterator):
                whole = pieces if isinstance(pieces, bytes) else json.dumps(pieces).encode()
                self.send_header("content-length", str(len(whole)))
                pieces = iter([whole])
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()

"""Every call to the Kubernetes API goes through here: one place for waiting, trying again, time limits and errors.

Objects are the JSON that the API server sends, as dicts: no model of this client's version stands between, which would
drop the fields that it does not know.

What passes by itself is asked again, after a random part of a pause that doubles (so that clients that failed together
do not come back together), or after what `Retry-After` says: 429, 5xx, a connection that fails. A POST may then have
been done before its answer was lost: the callers expect AlreadyExists. A conflict is never asked again here: only who
asked can say what has changed. Server-side apply never forces.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import urllib3

from ops.k8s.refusals import ApiRefused, Unreachable, refusal

FIELD_MANAGER = "moray"
PATIENCE_S = 20.0  # that a call is tried for
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
CONNECT_S, READ_S = 5.0, 15.0
Query = Mapping[str, str | int | bool]


def pause_s(failures: int, retry_after_s: float | None, chance: float) -> float:
    """How long to wait after so many failures, 1 or more. `chance`: in [0, 1). Pure."""
    if retry_after_s is not None:
        return retry_after_s * (1.0 + 0.25 * chance)
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16)) * chance


class Api:
    """One API server. Safe to be used by several threads."""

    def __init__(self, client: Any, stop: threading.Event | None = None) -> None:
        """`client`: a kubernetes.client.ApiClient. `stop`: nothing is tried again once it is set."""
        self._client = client
        self._stop = stop or threading.Event()
        self.on_retry: Callable[[ApiRefused], None] = lambda _: None

    # -- what is asked ------------------------------------------------------------------------------------------------

    def get(self, path: str, query: Query | None = None, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Raises ApiRefused, as all of these do."""
        return self._object("GET", path, query, patience_s=patience_s)

    def text(self, path: str, query: Query | None = None, patience_s: float = PATIENCE_S) -> str:
        return self._tried("GET", path, query, None, {"Accept": "*/*"}, patience_s).decode(errors="replace")

    def post(self, path: str, body: Mapping[str, Any], patience_s: float = PATIENCE_S) -> dict[str, Any]:
        return self._object("POST", path, None, body, patience_s=patience_s)

    def put(self, path: str, body: Mapping[str, Any], patience_s: float = PATIENCE_S) -> dict[str, Any]:
        return self._object("PUT", path, None, body, patience_s=patience_s)

    def apply(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply as `moray`. A field that another manager has is a Conflict: see `other_managers`."""
        query: Query = {"fieldManager": FIELD_MANAGER, "force": False}
        return self._object("PATCH", path, query, body, "application/apply-patch+yaml")  # JSON is YAML

    def watch(self, path: str, query: Query, read_s: float) -> Watching:
        """The events of one watch. Not tried again. `read_s`: the longest silence."""
        answer = self._send("GET", path, {**query, "watch": True}, None, {}, (CONNECT_S, read_s))
        if answer.status != 200:
            raise refusal(answer.status, _body(answer).decode(errors="replace"), f"GET {path}")
        return Watching(answer.response, path)

    def relay(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body, whatever they are: for what is behind the API server's proxies. Raises Unreachable.

        `path`: as it stands in the request that is passed on, its query included. `body`: JSON, or None.
        """
        answer = self._send(method, path, None, body, headers, (CONNECT_S, READ_S), is_quoted=True)
        return answer.status, _body(answer)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _object(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        patience_s: float = PATIENCE_S,
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if body is not None else {})
        said = self._tried(method, path, query, body, headers, patience_s)
        try:
            answer = json.loads(said)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ApiRefused(f"{method} {path} was not answered as a Kubernetes API server does: is a proxy between?")
        return answer

    def _tried(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        patience_s: float,
    ) -> bytes:
        give_up_s = time.monotonic() + patience_s
        timeout = (min(CONNECT_S, patience_s), min(READ_S, patience_s))
        failures = 0
        while True:
            retry_after_s = None
            try:
                answer = self._send(method, path, query, body, headers, timeout)
                said = _body(answer)
                if 200 <= answer.status < 300:
                    return said
                refused = refusal(answer.status, said.decode(errors="replace"), f"{method} {path}")
                retry_after_s = _seconds(answer.headers.get("Retry-After"))
            except Unreachable as gone:
                refused = gone
            if not refused.passes:
                raise refused
            failures += 1
            pause = pause_s(failures, retry_after_s, random.random())
            if time.monotonic() + pause > give_up_s or self._stop.wait(pause):
                raise refused
            self.on_retry(refused)

    def _send(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        headers: Mapping[str, str],
        timeout: tuple[float, float],
        is_quoted: bool = False,
    ) -> Any:
        """One try. The body of the answer is unread. Raises Unreachable."""
        request = self._client.param_serialize(
            method,
            path if is_quoted else quote(path, safe="/:"),
            query_params=[(key, _word(value)) for key, value in (query or {}).items()],
            header_params=dict(headers),
            body=body,
            auth_settings=["BearerToken"],
        )
        with _Connection():
            return self._client.call_api(*request, _request_timeout=timeout)


class Watching:
    """The events of a watch, as they come. Raises Expired, ApiRefused or Unreachable; ends when the server ends it."""

    def __init__(self, response: Any, path: str) -> None:
        self._response, self._path = response, path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        left = b""
        try:
            with _Connection():
                for piece in self._response.stream(amt=None, decode_content=False):
                    *lines, left = (left + piece).split(b"\n")
                    for line in filter(None, lines):
                        yield self._event(line)
        finally:
            self._response.close()
            self._response.release_conn()

    def close(self) -> None:
        """From another thread: whoever waits for the next event need not wait any more."""
        try:
            self._response.shutdown()
        except (ValueError, OSError, RuntimeError):
            self._response.close()  # it has ended already, or cannot be shut down

    def _event(self, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
            kind, thing = event["type"], event["object"]
        except (ValueError, KeyError, TypeError):
            raise Unreachable(f"the watch of {self._path} sent what is no event") from None
        if kind == "ERROR":
            raise refusal(int(thing.get("code") or 500), json.dumps(thing), f"watch {self._path}")
        return {"type": kind, "object": thing}


class _Connection:
    """What a connection may do wrong is Unreachable."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from kubernetes.client.exceptions import ApiException

        if isinstance(error, ApiException):  # TLS, as the library tells it
            raise Unreachable(f"the API server cannot be reached: {error.reason}") from error
        if isinstance(error, (urllib3.exceptions.HTTPError, OSError)):
            raise Unreachable(f"the API server does not answer: {error}") from error


def _body(answer: Any) -> bytes:
    with _Connection():
        return bytes(answer.read() or b"")


def _word(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header; API servers send seconds."""
    try:
        return max(0.0, float(retry_after)) if retry_after is not None else None
    except ValueError:
        return None

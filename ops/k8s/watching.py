"""What a list of objects is right now, kept so by list and watch.

A list first, then a watch from its resourceVersion on, which bookmarks move forward where nothing happens. A watch that
ends (each does, within a minute), a connection that breaks, an API server that restarts: it goes on from the last
version seen. A version that the server has forgotten (410, in the answer or in the stream): a fresh list, whose
difference to what was known counts as changes. Every ten minutes a fresh list anyway: after etcd came back from a
backup, versions may have gone backwards, and a watch would wait for ever.

The library's informer does the first half of this; it has no limit to a silence, no pause between attempts to connect,
and asks for no bookmarks.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ops.k8s.calls import Api, Query, Watching, pause_s
from ops.k8s.refusals import ApiRefused, Expired, Forbidden

logger = logging.getLogger(__name__)

WATCH_S = 60  # a watch's time, asked of the server
SILENCE_S = WATCH_S + 15.0
LIST_ANEW_S = 600.0
PATIENT_FAILURES = 5
PAGE = 500  # objects of a list in one answer
Object = Mapping[str, Any]
Keep = Callable[[Object], Object]
Changed = Callable[[Object | None, Object | None], None]


class Mirror:
    """Runs in a thread of its own: `start`, then read `objects`, then `stop`."""

    def __init__(self, api: Api, path: str, query: Query, changed: Changed, keep: Keep = dict) -> None:
        """`changed`: called on this mirror's thread, with what was and what is; after a list with None and None.
        `keep`: what of an object is kept, with its name, uid and resourceVersion; it need not be all.
        """
        self._keep = keep
        self._api, self._path, self._query, self._changed = api, path, dict(query), changed
        self._objects: dict[str, Object] = {}  # replaced, never changed: readers need no lock
        self._version: str | None = None  # None: list first
        self._listed_s: float | None = None  # when, at last
        self._heard_s: float | None = None  # when the server said anything, at last
        self._stop = threading.Event()
        self._watching: Watching | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"watch {path}", daemon=True)
        self.restarts = 0  # fresh lists after the first
        self.trouble = ""  # what keeps it from listening right now

    @property
    def objects(self) -> Mapping[str, Object] | None:
        """By uid. None: nothing is known as yet, which is not the same as that there are none."""
        return self._objects if self._listed_s is not None else None

    @property
    def silent_s(self) -> float | None:
        """Since when it has heard nothing of the server; None: never."""
        return None if self._heard_s is None else time.monotonic() - self._heard_s

    @property
    def alive(self) -> bool:
        """Its thread has not ended by a mistake of ours."""
        return self._thread.is_alive() or self._thread.ident is None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if (watching := self._watching) is not None:
            watching.close()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                if self._version is None or self._listed_s is None or began_s - self._listed_s > LIST_ANEW_S:
                    self._list()
                self._watch()
                # A server that ends each watch at once is asked again as one that fails.
                self._failures = self._failures + 1 if time.monotonic() - began_s < 1.0 else 0
            except Expired:
                logger.info("%s: the API server has forgotten version %s; listing anew", self._path, self._version)
                self._version = None
                self._failures += 1
            except ApiRefused as refused:
                if self._stop.is_set():
                    return
                self._failures += 1
                if self.trouble != str(refused):
                    log = logger.error if isinstance(refused, Forbidden) else logger.warning
                    log("%s cannot be watched: %s", self._path, refused)
                self.trouble = str(refused)
                if not refused.passes or self._failures > PATIENT_FAILURES:
                    self._version = None  # perhaps it is the version that the server minds
            if self._failures:
                self._stop.wait(pause_s(self._failures, None, random.random()))

    def _list(self) -> None:
        before, now = self._objects, dict[str, Object]()
        page: dict[str, Any] = {}
        going_on = ""  # in pages, all of one version: a large cluster's nodes are tens of megabytes
        while not page or going_on:
            query = {**self._query, "limit": PAGE} | ({"continue": going_on} if going_on else {})
            page = self._api.get(self._path, query)
            now |= {thing["metadata"]["uid"]: self._keep(thing) for thing in page.get("items") or ()}
            going_on = page["metadata"].get("continue") or ""
        self.restarts += self._listed_s is not None
        self._version = page["metadata"]["resourceVersion"]
        self._objects = now
        first, self._listed_s = self._listed_s is None, time.monotonic()
        self._heard()
        if first or now != before:
            self._changed(None, None)

    def _watch(self) -> None:
        query = {
            **self._query,
            "resourceVersion": str(self._version),
            "allowWatchBookmarks": True,
            "timeoutSeconds": WATCH_S,
        }
        self._watching = watching = self._api.watch(self._path, query, SILENCE_S)
        if self._stop.is_set():
            watching.close()
        self._heard()
        for event in watching:
            self._heard()
            self._failures = 0
            thing = event["object"]
            self._version = thing["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            objects, uid = dict(self._objects), thing["metadata"]["uid"]
            before = objects.pop(uid, None)
            if event["type"] != "DELETED":
                objects[uid] = self._keep(thing)
            self._objects = objects
            self._changed(before, objects.get(uid))
        self._heard()

    def _heard(self) -> None:
        self._heard_s = time.monotonic()
        if self.trouble:
            logger.info("%s is watched again", self._path)
            self.trouble = ""

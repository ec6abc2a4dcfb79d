"""A mirror of a list: through broken connections, forgotten versions, restarts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_objects import node
from fake_api import FakeApi, answering, hanging_up

from ops.k8s import watching
from ops.k8s.watching import Mirror

NODES = "/api/v1/nodes"


class Watched:
    """A mirror of the nodes, and how often it was told of a change."""

    def __init__(self, server: FakeApi) -> None:
        self.changes: list[tuple[Any, Any]] = []
        self.mirror = Mirror(server.api(threading.Event()), NODES, {}, lambda *change: self.changes.append(change))

    @property
    def names(self) -> set[str] | None:
        known = self.mirror.objects
        return None if known is None else {one["metadata"]["name"] for one in known.values()}


@pytest.fixture
def watched(server) -> Iterator[Watched]:
    server.put(f"{NODES}/a", node("a"))
    made = Watched(server)
    yield made
    made.mirror.stop()
    assert not made.mirror._thread.is_alive()


def watches(server: FakeApi) -> list[str]:
    """From which versions watches began."""
    return [query["resourceVersion"] for query in server.asked_for(NODES, watch="true")]


def lists(server: FakeApi) -> int:
    return len(server.asked_for(NODES)) - len(watches(server))


def test_nothing_known_is_not_the_same_as_nothing_there(server, watched, until):
    assert watched.names is None
    watched.mirror.start()
    until(lambda: watched.names == {"a"})


def test_changes_arrive(server, watched, until):
    watched.mirror.start()
    until(lambda: watches(server))
    server.put(f"{NODES}/b", node("b"))
    until(lambda: watched.names == {"a", "b"})
    server.put(f"{NODES}/a", node("a", cordoned=True))
    until(lambda: any(now and now["spec"].get("unschedulable") for _, now in watched.changes))
    server.delete(f"{NODES}/a")
    until(lambda: watched.names == {"b"})
    assert lists(server) == 1


@pytest.mark.parametrize("how", ["ended", "broken", "restarted"])
def test_it_goes_on_where_it_was(server, watched, until, how):
    watched.mirror.start()
    until(lambda: watches(server))
    server.put(f"{NODES}/b", node("b"))
    until(lambda: watched.names == {"a", "b"})
    version = server.objects[f"{NODES}/b"]["metadata"]["resourceVersion"]
    if how == "ended":
        server.end_watches()
    elif how == "broken":
        server.fail("GET", NODES, hanging_up, times=3)
        server.end_watches()
    else:
        server.stop()
        server.put(f"{NODES}/c", node("c"))
        server.start()
    until(lambda: len(watches(server)) > (4 if how == "broken" else 1))
    server.put(f"{NODES}/d", node("d"))
    until(lambda: "d" in (watched.names or ()))
    assert lists(server) == 1 and set(watches(server)[1:]) <= {version, str(int(version) + 1)}
    assert watched.names == ({"a", "b", "d"} if how != "restarted" else {"a", "b", "c", "d"})


def test_a_long_list_comes_in_pages(server, watched, until, monkeypatch):
    monkeypatch.setattr(watching, "PAGE", 2)
    for name in "bcde":
        server.put(f"{NODES}/{name}", node(name))
    watched.mirror.start()
    until(lambda: watched.names == {"a", "b", "c", "d", "e"})
    assert lists(server) == 3 and len(watched.changes) == 1


def test_bookmarks_move_it_forward_where_nothing_happens(server, watched, until):
    watched.mirror.start()
    until(lambda: watches(server))
    server.bookmark(NODES)
    version = str(server.version)
    until(lambda: watched.mirror._version == version)
    server.compact()
    server.end_watches()
    until(lambda: len(watches(server)) == 2 and watches(server)[-1] == version)


def test_a_forgotten_version_is_listed_anew_and_told_as_a_change(server, watched, until):
    watched.mirror.start()
    until(lambda: watches(server))
    server.fail("GET", NODES, hanging_up)
    server.end_watches()
    del server.objects[f"{NODES}/a"]  # while nobody watched
    server.objects[f"{NODES}/b"] = node("b") | {"metadata": {"name": "b", "uid": "b", "resourceVersion": "7"}}
    server.compact()
    until(lambda: watched.names == {"b"})
    assert lists(server) == 2 and watched.mirror.restarts == 1 and len(watched.changes) == 2


def test_a_version_forgotten_while_it_watches(server, watched, until):
    def gone(request: Any) -> bool:
        request.begin_chunks()
        request.chunk({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
        request.end_chunks()
        return True

    watched.mirror.start()
    until(lambda: watches(server))
    server.fail("GET", NODES, gone)
    server.end_watches()
    until(lambda: lists(server) == 2 and len(watches(server)) == 3)
    assert watched.names == {"a"}


def test_a_server_that_ends_each_watch_at_once_is_not_hammered(server, watched, until):
    def at_once(request: Any) -> bool:
        if "watch=true" not in request.path:
            return False
        request.begin_chunks()
        request.end_chunks()
        return True

    server.fail("GET", NODES, at_once, times=10_000)
    watched.mirror.start()
    until(lambda: len(watches(server)) >= 6)
    assert watched.mirror._failures >= 4, "its pauses grow"


def test_what_keeps_it_from_listening_is_told(server, watched, until):
    server.fail("GET", NODES, answering(403, "Forbidden", "cannot list nodes"), times=2)
    watched.mirror.start()
    until(lambda: "cannot list nodes" in watched.mirror.trouble)
    until(lambda: watched.names == {"a"} and not watched.mirror.trouble)

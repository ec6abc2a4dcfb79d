"""The audit log only ever grows: through restarts, a controller that dies at any moment, and torn lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.controller.store import FileStore
from ops.rollout import audit as module
from ops.rollout.audit import AuditLog, Entry, digest


class Memory:
    """A store that can die at a put, before or after it."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.history: list[tuple[str, bytes]] = []

    def get(self, name: str) -> bytes | None:
        return self.values.get(name)

    def put(self, name: str, value: bytes) -> None:
        self.values[name] = value
        self.history.append((name, value))


def log(store: Memory | FileStore, file: Path | None = None) -> AuditLog:
    return AuditLog(store, "m", file, lambda: 100.0)


def add(to: AuditLog, what: str) -> Entry:
    return to.add(what, who="alice", where="10.0.0.7", rollout="r1", detail="Why.")


def broken(entries: Iterable[Entry]) -> int | None:
    """Number of the first entry that does not follow from the one before. None: the log is whole."""
    before = ""
    for number, entry in enumerate(entries):
        if entry.number != number or entry.before != before:
            return number
        before = digest(entry)
    return None


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_ENTRIES", 3)


@given(st.lists(st.sampled_from(["add", "restart", "die before the file"]), max_size=25))
@settings(max_examples=60, deadline=None)
def test_it_only_ever_grows_in_the_store_and_in_the_file(tmp_path_factory: pytest.TempPathFactory, steps) -> None:
    module.SEGMENT_ENTRIES = 3
    store, file = Memory(), tmp_path_factory.mktemp("audit") / "log.jsonl"
    written, one, content = 0, log(store, file), b""
    for step in steps:
        if step == "restart":
            one = log(store, file)
        elif step == "add":
            add(one, f"step {written}")
            written += 1
        else:  # it stored the entry and died: the file lacks it until the next controller starts
            add(AuditLog(store, "m", None, lambda: 100.0), f"step {written}")
            written += 1
            one = log(store, file)
        now = file.read_bytes() if file.exists() else b""
        assert now.startswith(content), "what was in the file has changed"
        content = now
    found = list(log(store, file).entries())
    assert [entry.what for entry in found] == [f"step {number}" for number in range(written)]
    assert broken(found) is None
    assert ([line["what"] for line in lines(file)] if file.exists() else []) == [entry.what for entry in found]
    last: dict[str, list[Entry]] = {}
    for name, value in store.history:  # each put keeps what was there and adds one entry to one segment
        entries = msgspec.json.decode(value, type=list[Entry])
        assert entries[:-1] == last.get(name, []) and len(entries) <= 3
        last[name] = entries


def test_an_entry_tells_who_what_when_and_from_where(tmp_path: Path) -> None:
    file = tmp_path / "not" / "there" / "yet.jsonl"
    one = log(FileStore(tmp_path, "m"), file)
    first, second = add(one, "start"), add(one, "promote")
    assert lines(file)[0] == {
        "number": 0, "at_s": 100.0, "model": "m", "who": "alice", "where": "10.0.0.7", "what": "start",
        "rollout": "r1", "detail": "Why.", "note": None, "before": "",
    }  # fmt: skip
    assert second.before == digest(first) and file.stat().st_mode & 0o077 == 0o040


def test_what_was_changed_or_taken_out_shows(tmp_path: Path) -> None:
    one = log(Memory())
    entries = [add(one, str(number)) for number in range(5)]
    changed = [*entries[:2], msgspec.structs.replace(entries[2], who="bob"), *entries[3:]]
    assert broken(entries) is None and broken(changed) == 3
    assert broken(entries[:2] + entries[3:]) == 2


def test_the_newest_come_from_as_many_segments_as_it_takes() -> None:
    store = Memory()
    one = log(store)
    for number in range(8):
        add(one, str(number))
    for count in (1, 2, 3, 7, 8, 100):
        assert [entry.what for entry in log(store).newest(count)] == [str(n) for n in range(8)][-count:]


def test_a_torn_line_costs_no_whole_one(tmp_path: Path) -> None:
    file, store = tmp_path / "log.jsonl", Memory()
    add(log(store, file), "first")
    with file.open("ab") as out:
        out.write(b'{"number": 1, "at')
    add(log(store, file), "second")
    whole = [line for line in file.read_bytes().splitlines() if line.endswith(b"}")]
    assert [json.loads(line)["what"] for line in whole] == ["first", "second"]


def test_a_new_ray_cluster_goes_on_in_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    one = log(Memory(), file)
    for number in range(5):
        add(one, f"old {number}")
    store = Memory()
    add(AuditLog(store, "m", None, lambda: 200.0), "new 0")  # it died before the file had it
    add(log(store, file), "new 1")
    assert [line["what"] for line in lines(file)] == [f"old {n}" for n in range(5)] + ["new 0", "new 1"]


def test_a_part_that_cannot_be_read_is_never_written_again(caplog) -> None:
    store = Memory()
    for number in range(5):
        add(log(store), str(number))
    store.values["audit-000001"] = b"not ours"
    add(log(store), "after")
    assert store.values["audit-000001"] == b"not ours" and "cannot be read" in caplog.text
    found = list(log(store).entries())
    assert [entry.what for entry in found] == ["0", "1", "2", "after"] and found[-1].number == 6
    assert broken(found) == 3, "that some are missing shows"


def test_models_share_a_file(tmp_path: Path) -> None:
    file, stores = tmp_path / "log.jsonl", {name: Memory() for name in "ab"}
    for name, store in stores.items():
        AuditLog(store, name, file, lambda: 1.0).add("start", who="", where="here")
    for name, store in stores.items():
        AuditLog(store, name, file, lambda: 1.0).add("end", who="", where="here")
    assert [(line["model"], line["what"]) for line in lines(file)] == [
        ("a", "start"), ("b", "start"), ("a", "end"), ("b", "end"),
    ]  # fmt: skip


def test_a_file_that_cannot_be_written_holds_nothing_up_and_catches_up(tmp_path: Path, caplog) -> None:
    file = tmp_path / "log.jsonl"
    file.mkdir()
    one = log(Memory(), file)
    for number in range(4):
        add(one, str(number))
    assert [entry.what for entry in one.entries()] == ["0", "1", "2", "3"] and "cannot be written" in caplog.text
    file.rmdir()
    add(one, "4")
    assert [line["what"] for line in lines(file)] == ["0", "1", "2", "3", "4"]

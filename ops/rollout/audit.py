"""The audit log of rollouts: who did what, when, from where. It only ever grows.

It lies in the controller's store, in segments of bounded size: only the last one is written, with an entry more each
time, and what is in a full one is never written again. Each entry holds the digest of the one before, so that a
changed or missing one shows. With `rollout.audit_path` each entry is a line of JSON in a file, too, on the
disk before what it tells of is done.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ops.controller.store import Store

logger = logging.getLogger("moray.rollout")

SEGMENT_ENTRIES = 200  # about 80 KB of JSON: what is stored anew for an entry more
NOTES_LOOKED_AT = 1000
TAIL_BYTES = 1 << 16  # of a file, in which its last whole line is looked for


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done, or asked for and refused."""

    number: int  # from 0, without gaps
    at_s: float  # seconds since 1970, by the controller's clock
    model: str
    who: str  # the operator's name in the key file; "": no keys are asked for; controller: its own decision
    where: str  # address of who asked, or the process that did
    what: str  # start, pause, promote, …; refused; or the rollout's own steps
    rollout: str = ""  # its id
    detail: str = ""  # a sentence
    note: int | None = None  # number of the rollout's own note that it tells of
    before: str = ""  # digest of the entry before; "": it is the first


def digest(entry: Entry) -> str:
    """SHA-256 of the entry as it is stored, hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(entry)).hexdigest()


class AuditLog:
    """Blocking. One process writes it: the model's controller."""

    def __init__(self, store: Store, model: str, file: Path | None, clock: Callable[[], float]) -> None:
        """`clock`: seconds since 1970. Raises what the store raises."""
        self._store, self._model, self._file, self._clock = store, model, file, clock
        self._segment = 0
        self._entries: list[Entry] = []  # of the segment that grows
        while (stored := self._store.get(_name(self._segment))) is not None:
            entries = _decoded(stored)
            if entries is not None and len(entries) < SEGMENT_ENTRIES:
                self._entries = entries
                break
            self._segment += 1  # a full one, or one that this Moray cannot read, is never written again
        self._last = self._newest()
        self._lacks = True  # the file may lack entries: whoever wrote it last died, or could not
        self._write([])

    def add(
        self, what: str, *, who: str, where: str, rollout: str = "", detail: str = "", note: int | None = None
    ) -> Entry:
        """Notes it; when this returns it is stored, and in the file.

        A file that cannot be written holds nothing up (a rollback less than anything): what it lacks it gets with the
        next entry that can be written. Raises what the store raises.
        """
        if len(self._entries) >= SEGMENT_ENTRIES:
            self._segment += 1
            self._entries = []
        entry = Entry(
            number=self._segment * SEGMENT_ENTRIES + len(self._entries),
            at_s=self._clock(),
            model=self._model,
            who=who,
            where=where,
            what=what,
            rollout=rollout,
            detail=detail,
            note=note,
            before=digest(self._last) if self._last else "",
        )
        grown = [*self._entries, entry]
        self._store.put(_name(self._segment), msgspec.json.encode(grown))
        self._entries, self._last = grown, entry
        self._write([entry])
        return entry

    def newest(self, count: int) -> list[Entry]:
        """The last `count` entries, the oldest of them first."""
        found = list(self._entries[-count:])
        segment = self._segment
        while len(found) < count and segment > 0:
            segment -= 1
            older = self._read(segment)
            found = older[-(count - len(found)) :] + found
        return found

    def noted(self, rollout: str) -> int:
        """The last of that rollout's own notes that is in the log; -1: none is."""
        told = (entry.note for entry in self.newest(NOTES_LOOKED_AT) if entry.rollout == rollout)
        return max((note for note in told if note is not None), default=-1)

    def entries(self) -> Iterator[Entry]:
        """All of them, the oldest first."""
        for segment in range(self._segment):
            yield from self._read(segment)
        yield from self._entries

    def _newest(self) -> Entry | None:
        newest = self.newest(1)
        return newest[0] if newest else None

    def _read(self, segment: int) -> list[Entry]:
        """Of a segment; empty if it cannot be read, which the digests show."""
        stored = self._store.get(_name(segment))
        return (_decoded(stored) or []) if stored is not None else []

    def _write(self, entries: list[Entry]) -> None:
        if self._file is None:
            return
        try:
            if self._lacks:
                self._catch_up(self._file)
            else:
                _append(self._file, entries)
            self._lacks = False
        except OSError as error:
            self._lacks = True
            logger.error("The audit log cannot be written to %s (%s); it is in the store.", self._file, error)

    def _catch_up(self, file: Path) -> None:
        there = _last_in(file, self._model)
        stored = self.entries()
        if there is not None and there in self._entries_from(there.number):
            stored = self._entries_from(there.number + 1)  # else it is of another Ray cluster, and all of ours is new
        _append(file, stored)

    def _entries_from(self, number: int) -> Iterator[Entry]:
        for segment in range(number // SEGMENT_ENTRIES, self._segment + 1):
            entries = self._entries if segment == self._segment else self._read(segment)
            yield from (entry for entry in entries if entry.number >= number)


def _decoded(stored: bytes) -> list[Entry] | None:
    try:
        return msgspec.json.decode(stored, type=list[Entry])
    except msgspec.MsgspecError as error:
        logger.error("A part of the audit log cannot be read (%s); it is left as it is.", error)
        return None


def _name(segment: int) -> str:
    return f"audit-{segment:06d}"


def _append(file: Path, entries: Iterable[Entry]) -> None:
    lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
    if not lines:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    at = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        if _ends_torn(file):
            lines = b"\n" + lines  # whoever wrote it died at it: what is whole stays whole
        while lines:
            lines = lines[os.write(at, lines) :]
        os.fsync(at)
    finally:
        os.close(at)


def _ends_torn(file: Path) -> bool:
    with file.open("rb") as read:
        if not read.seek(0, os.SEEK_END):
            return False
        read.seek(-1, os.SEEK_END)
        return read.read(1) != b"\n"


def _last_in(file: Path, model: str) -> Entry | None:
    """The model's last whole line near the file's end."""
    try:
        with file.open("rb") as read:
            size = read.seek(0, os.SEEK_END)
            read.seek(max(size - TAIL_BYTES, 0))
            tail = read.read()
    except FileNotFoundError:
        return None
    for line in reversed(tail.splitlines()):
        try:
            entry = msgspec.json.decode(line, type=Entry)
        except msgspec.DecodeError:
            continue
        if entry.model == model:
            return entry
    return None

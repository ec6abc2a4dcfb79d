"""Adding a version to a store: whole or not at all.

Files go to a directory whose name begins with a dot, each put on the disk; the manifest is the last of them; then the
directory gets its name. Whoever kills this at any moment leaves no version behind, only such a directory, which the
next `moray model add` removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from experts.versions import (
    MANIFEST,
    BadVersion,
    FileDigest,
    Golden,
    Manifest,
    Report,
    check_name,
    checkpoint_files,
    find,
    fingerprints,
    sha256,
    sync_directory,
    write,
)
from replicas.model_directory import check

_WORK: Final = ".adding-"
_CHUNK: Final = 8 << 20
_FICLONE: Final = 0x40049409  # linux/fs.h: the copy shares the original's blocks until one of them is written


def add(
    source: Path,
    store: Path,
    name: str,
    *,
    parent: str | None = None,
    notes: str = "",
    golden: tuple[Golden, ...] = (),
    accuracy: Mapping[str, Any] | None = None,
    link: bool = False,
    report: Report = lambda *_: None,
) -> Manifest:
    """Makes version `name` of the checkpoint in `source`; the manifest that it got. Raises BadVersion.

    Files are copied, by sharing blocks where the file system can; `link`: hard links instead. A `source` that is the
    version's own directory stays where it is. `report` is told of the bytes that are read.
    """
    target = store / check_name(name)
    _whole(source)
    if parent is not None:
        find(store, parent)
    in_place = source.resolve() == target.resolve()
    if (target / MANIFEST if in_place else target).exists():
        raise BadVersion(f"{target} exists already: a version never changes, so choose another name, or remove it")
    try:
        if in_place:
            return _finish(target, name, parent, notes, golden, accuracy, _hashed(target, report))
        store.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(store)
        with _work(store, name) as work:
            files = _fill(work, source, link, report)
            _whole(work)  # the source may have changed since it was looked at
            made = _finish(work, name, parent, notes, golden, accuracy, files)
            try:
                work.rename(target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise BadVersion(f"{target} exists already: somebody else has just added it") from None
                raise
            sync_directory(store)
    except OSError as error:
        raise BadVersion(f"{name} was not added: {error.filename or store}: {error.strerror or error}") from None
    return made


def _whole(directory: Path) -> None:
    if problems := check(directory, 1):
        raise BadVersion("\n".join(str(problem) for problem in problems))


def _finish(
    directory: Path,
    name: str,
    parent: str | None,
    notes: str,
    golden: tuple[Golden, ...],
    accuracy: Mapping[str, Any] | None,
    files: dict[str, FileDigest],
) -> Manifest:
    prints = fingerprints(directory)
    made = Manifest(
        name=name,
        parent=parent,
        notes=notes,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        files=files,
        architecture=prints.architecture,
        text=prints.text,
        golden=golden,
        accuracy=dict(accuracy) if accuracy is not None else None,
    )
    write(directory, made)
    return made


# -- the directory in the making --------------------------------------------------------------------------------------


@contextmanager
def _work(store: Path, name: str) -> Iterator[Path]:
    """A directory for the version in the making, locked as long as its maker lives; gone if it is not renamed."""
    work = Path(tempfile.mkdtemp(prefix=f"{_WORK}{name}-", dir=store))
    work.chmod(0o755)
    handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield work
    finally:
        os.close(handle)
        shutil.rmtree(work, ignore_errors=True)


def _remove_leftovers(store: Path) -> None:
    """Removes what killed runs left; those of living ones are locked."""
    for left in store.glob(f"{_WORK}*"):
        handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(handle)


# -- its files --------------------------------------------------------------------------------------------------------


def _hashed(directory: Path, report: Report) -> dict[str, FileDigest]:
    """The files of a directory that stay where they are, put on the disk."""
    progress = _Progress(directory, report)
    files = {}
    for path in progress.paths:
        file = directory / path
        files[path] = FileDigest(sha256=sha256(file, progress.of(path)), bytes=file.stat().st_size)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return files


def _fill(work: Path, source: Path, link: bool, report: Report) -> dict[str, FileDigest]:
    """Brings the checkpoint's files into `work`; their digests are of what was written."""
    progress = _Progress(source, report)
    if not link and progress.total > (free := shutil.disk_usage(work).free):
        raise BadVersion(
            f"{source} is {progress.total / 1e9:,.1f} GB, but the store's disk has {free / 1e9:,.1f} GB free: make "
            "room, or --link, which takes none on the same file system"
        )
    files = {}
    for path in progress.paths:
        origin, copy = (source / path).resolve(), work / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if link:
            _hard_link(origin, copy)
            digest = sha256(copy, progress.of(path))
        else:
            digest = _copied(origin, copy, progress.of(path))
        files[path] = FileDigest(sha256=digest, bytes=copy.stat().st_size)
    for folder, _, _ in os.walk(work):
        sync_directory(Path(folder))
    return files


def _copied(origin: Path, copy: Path, passed: Callable[[int], None]) -> str:
    """Copies a file and puts it on the disk; its digest."""
    with origin.open("rb") as read, copy.open("w+b") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError:  # another file system, or one that shares no blocks
            digest, done = hashlib.sha256(), 0
            while chunk := read.read(_CHUNK):
                written.write(chunk)
                digest.update(chunk)
                passed(done := done + len(chunk))
            found = digest.hexdigest()
        else:
            found = sha256(copy, passed)
        written.flush()
        os.fsync(written.fileno())
    return found


def _hard_link(origin: Path, copy: Path) -> None:
    try:
        copy.hardlink_to(origin)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise BadVersion(f"--link needs one file system, and {origin} is on another than the store: copy it") from None


class _Progress:
    """Which files there are, and how far their reading has come."""

    def __init__(self, directory: Path, report: Report) -> None:
        self.paths = checkpoint_files(directory)
        self._sizes = {path: (directory / path).stat().st_size for path in self.paths}
        self.total = sum(self._sizes.values())
        self._report = report

    def of(self, path: str) -> Callable[[int], None]:
        before = sum(self._sizes[earlier] for earlier in self.paths[: self.paths.index(path)])
        return lambda done: self._report(path, before + done, self.total)

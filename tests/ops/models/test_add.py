"""A version is added whole or not at all, whatever happens on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experts.tiny_r1 import checkpoint_path, store_path
from experts.versions import MANIFEST, BadVersion, find, read, verify, versions
from ops.models import add as adding
from ops.models.add import add

ADD = """
import sys
from pathlib import Path
from ops.models.add import add
add(Path(sys.argv[1]), Path(sys.argv[2]), "v2")
"""


@pytest.fixture
def source(tmp_path):
    """The embedded checkpoint as an operator has it: without a manifest."""
    directory = tmp_path / "downloaded"
    shutil.copytree(checkpoint_path(), directory, ignore=shutil.ignore_patterns(MANIFEST))
    return directory


@pytest.fixture
def store(tmp_path):
    return tmp_path / "models" / "tiny"


def contents(directory):
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.name != MANIFEST
    }


def test_a_version_holds_what_its_checkpoint_held(source, store):
    told = []
    made = add(source, store, "v1", notes="first", accuracy={"add": 1.0}, report=lambda *args: told.append(args))
    assert contents(store / "v1") == contents(source)
    assert read(store / "v1") == made and verify(store / "v1") == []
    assert (made.name, made.parent, made.notes, made.accuracy) == ("v1", None, "first", {"add": 1.0})
    assert told[-1][1] == told[-1][2] == made.bytes and [t[1] for t in told] == sorted(t[1] for t in told)
    committed = read(store_path() / "v1")
    assert (made.architecture, made.text) == (committed.architecture, committed.text)
    assert [path.name for path in store.iterdir()] == ["v1"]


def test_a_copy_is_its_own_and_a_link_is_not(source, store):
    add(source, store, "copied")
    add(source, store, "linked", link=True)
    file = source / "model.safetensors"
    assert (store / "copied" / file.name).stat().st_ino != file.stat().st_ino
    assert (store / "linked" / file.name).stat().st_ino == file.stat().st_ino
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    assert verify(store / "copied") == []
    (damage,) = verify(store / "linked")
    assert damage.file == file.name


def test_where_blocks_are_shared_the_digest_is_of_the_copy(source, store, monkeypatch):
    """As FICLONE does it: the content is there when it returns."""

    def clone(written, request, read):
        assert request == 0x40049409
        os.copy_file_range(read, written, os.fstat(read).st_size)

    monkeypatch.setattr(adding.fcntl, "ioctl", clone)
    add(source, store, "v1")
    assert verify(store / "v1") == [] and contents(store / "v1") == contents(source)


def test_a_snapshot_of_symbolic_links_becomes_files(source, store, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in source.iterdir():
        (snapshot / file.name).symlink_to(file)
    for name, link in (("copied", False), ("linked", True)):
        add(snapshot, store, name, link=link)
        assert not any(file.is_symlink() for file in (store / name).iterdir())
        assert verify(store / name) == []


def test_a_checkpoint_that_lies_in_the_store_stays_there(source, store):
    store.mkdir(parents=True)
    source.rename(store / "v1")
    before = (store / "v1" / "model.safetensors").stat()
    made = add(store / "v1", store, "v1")
    after = (store / "v1" / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert verify(store / "v1") == [] and find(store, "v1").manifest == made
    with pytest.raises(BadVersion, match="a version never changes"):
        add(store / "v1", store, "v1")


def test_hidden_files_and_an_older_manifest_are_not_taken(source, store):
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("x")
    (source / ".gitattributes").write_text("x")
    (source / MANIFEST).write_text("{}")
    made = add(source, store, "v1")
    assert not any(path.startswith(".") for path in made.files) and MANIFEST not in made.files
    assert sorted(path.name for path in (store / "v1").iterdir()) == sorted([*made.files, MANIFEST])


def test_a_parent_must_be_there(source, store):
    add(source, store, "v1")
    assert add(source, store, "v2", parent="v1").parent == "v1"
    with pytest.raises(BadVersion, match=r"no version v0; it has: v1, v2"):
        add(source, store, "v3", parent="v0")
    assert not (store / "v3").exists()


def test_what_cannot_be_a_version_leaves_nothing_behind(source, store):
    add(source, store, "v1")
    with pytest.raises(BadVersion, match="a version never changes"):
        add(source, store, "v1")
    with pytest.raises(BadVersion, match="cannot be a version's name"):
        add(source, store, "../v2")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadVersion, match=r"model\.safetensors is damaged"):
        add(source, store, "v2")
    weights.unlink()
    with pytest.raises(BadVersion, match="holds no weights"):
        add(source, store, "v2")
    with pytest.raises(BadVersion, match="does not exist"):
        add(source / "nowhere", store, "v2")
    assert [path.name for path in store.iterdir()] == ["v1"]


def test_a_source_that_changes_meanwhile_is_noticed(source, store, monkeypatch):
    """Its headers were looked at before; what is in the store must be whole itself."""
    original = adding._copied

    def copied(origin, copy, passed):
        if origin.name == "model.safetensors":
            origin.write_bytes(origin.read_bytes()[:-100])
        return original(origin, copy, passed)

    monkeypatch.setattr(adding, "_copied", copied)
    with pytest.raises(BadVersion, match="is damaged"):
        add(source, store, "v1")
    assert versions(store) == [] and list(store.iterdir()) == []


def test_a_full_disk_is_told_before_and_while_it_fills(source, store, monkeypatch):
    monkeypatch.setattr(adding.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(BadVersion, match=r"0\.0 GB free: make room, or --link"):
        add(source, store, "v1")
    monkeypatch.undo()

    def full(origin, copy, passed):
        raise OSError(28, "No space left on device", str(copy))

    monkeypatch.setattr(adding, "_copied", full)
    with pytest.raises(BadVersion, match=r"v1 was not added: .*No space left on device"):
        add(source, store, "v1")
    assert list(store.iterdir()) == []


def test_two_that_add_the_same_name_make_one_version(source, store, monkeypatch):
    original = adding._finish

    def meanwhile(*args):
        monkeypatch.setattr(adding, "_finish", original)
        add(source, store, "v1", notes="the other")
        return original(*args)

    monkeypatch.setattr(adding, "_finish", meanwhile)
    with pytest.raises(BadVersion, match="somebody else has just added it"):
        add(source, store, "v1", notes="mine")
    assert read(store / "v1").notes == "the other" and [path.name for path in store.iterdir()] == ["v1"]


def test_killed_at_any_moment_no_version_is_there_and_the_next_run_cleans_up(source, store):
    """A real process, killed while it copies: a pipe as one of the files holds it there."""
    os.mkfifo(source / "z.bin")
    child = subprocess.Popen([sys.executable, "-c", ADD, str(source), str(store)])
    try:
        deadline = time.monotonic() + 60
        while not list(store.glob(".adding-v2-*/training_log.jsonl")):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.05)
        assert versions(store) == []
        (source / "z.bin").rename(source.parent / "pipe")
        add(source, store, "v1")
        (living,) = store.glob(".adding-*")  # what a living process makes is left alone
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert living.is_dir() and [version.name for version in versions(store)] == ["v1"]
    add(source, store, "v2")
    assert sorted(path.name for path in store.iterdir()) == ["v1", "v2"] and verify(store / "v2") == []


def test_the_manifest_is_the_last_file(source, store, monkeypatch):
    """Before it is written, all the others are whole."""
    seen = []
    original = adding.write

    def write(directory: Path, manifest):
        seen.append((contents(directory) == contents(source), (directory / MANIFEST).exists(), directory.name[:8]))
        original(directory, manifest)

    monkeypatch.setattr(adding, "write", write)
    add(source, store, "v1")
    assert seen == [(True, False, ".adding-")]

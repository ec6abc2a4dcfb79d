"""scripts/build-kube-apiserver where it has nothing to do or cannot go on; that what it builds works, others show."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/build-kube-apiserver"
TOOLS = ("uname", "id", "mkdir", "rm", "flock", "sed", "head")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH of its own: what the script needs, but neither apt nor dpkg."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def build(tools: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": str(tools), "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        ["/bin/bash", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def pretend(tools: Path, name: str) -> None:
    program = tools / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


def test_what_is_there_is_left_alone(tools: Path, tmp_path: Path):
    cache = tmp_path / "cache/moray"
    cache.mkdir(parents=True)
    for name in ("kube-apiserver-1.20.2", "etcd"):
        pretend(cache, name)

    done = build(tools, tmp_path / "cache")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_apt_it_says_so_and_what_follows(tools: Path, tmp_path: Path):
    done = build(tools, tmp_path / "cache")

    assert done.returncode == 1
    assert done.stderr == (
        "kube-apiserver: its source comes through Debian's apt, which is not here; "
        "the tests that need an API server are skipped\n"
    )


def test_without_a_source_of_bookworm_it_says_so_and_leaves_no_work_behind(tools: Path, tmp_path: Path):
    for name in ("apt-get", "dpkg-source"):
        pretend(tools, name)  # they know of nothing

    done = build(tools, tmp_path / "cache")

    assert done.returncode == 1 and "apt has no source of Debian bookworm" in done.stderr
    assert [left.name for left in (tmp_path / "cache/moray").iterdir()] == ["build.lock"]

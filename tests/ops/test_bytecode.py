"""Compiled modules are found at the second start, wherever they may be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.bytecode import bytecode_environment

FORBIDDEN = {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A module that has not been compiled."""
    module = tmp_path / "site" / "big.py"
    module.parent.mkdir()
    module.write_text("VALUE = 1\n")
    return module


def compiled(directory: Path) -> list[str]:
    return [file.name for file in directory.rglob("*.pyc")]


def run(source: Path, env: dict[str, str]) -> None:
    whole = {"PATH": os.environ["PATH"], "PYTHONPATH": str(source.parent), **env}
    subprocess.run([sys.executable, "-S", "-c", "import big"], env=whole, check=True)


def test_where_python_may_not_write_beside_the_packages_it_writes_into_our_cache(source, tmp_path):
    env = FORBIDDEN | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    changes = bytecode_environment(env, source)
    assert changes == {
        "PYTHONPYCACHEPREFIX": str(tmp_path / "cache" / "moray" / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    run(source, env)
    assert not compiled(tmp_path)
    run(source, env | changes)
    assert compiled(tmp_path / "cache") and not compiled(source.parent)


def test_packages_that_cannot_be_written_beside_are_compiled_into_our_cache(source, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (source.parent, os.W_OK))
    assert bytecode_environment({}, source)


def test_nothing_is_changed_where_it_is_well_as_it_is(source):
    assert bytecode_environment({}, source) == {}, "Python writes beside the module"
    assert bytecode_environment(FORBIDDEN | {"PYTHONPYCACHEPREFIX": "/elsewhere"}, source) == {}, "somebody chose"
    assert bytecode_environment(FORBIDDEN, None) == {}, "no such package"
    run(source, {})
    assert compiled(source.parent)
    assert bytecode_environment(FORBIDDEN, source) == {}, "it was compiled when it was installed"

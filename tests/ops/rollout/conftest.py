"""A store of small versions, and an engine over a cluster in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pretend_shell import Shell, add_version


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """With v1, v2 that may take its place, and others that may not, or only by a surge."""
    add_version(tmp_path / "store", "v1")
    add_version(tmp_path / "store", "v2", golden=3)
    add_version(tmp_path / "store", "larger", architecture="b")
    add_version(tmp_path / "store", "talks", text="u")
    return tmp_path / "store"


@pytest.fixture
def shell(store: Path) -> Callable[..., Shell]:
    def make(**more: Any) -> Shell:
        return Shell(store, **more)

    return make

"""What holds for all tests: nothing stays behind, and none is timed."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from experts.linux import remove_unmapped_shared_memory

# As `core_environment` has it for an engine's own process. Torch reads this when it is imported, which is while tests
# are collected: an engine in pytest's process would compile C++ for 20 s, and have threads that wait for each other.
AS_AN_ENGINES = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
os.environ |= AS_AN_ENGINES


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots",
        metavar="DIR",
        help="with tests/e2e/test_console.py: write pictures of the console there (ops/console/screenshots)",
    )


settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


# -- engines that tests drive without a replica, or kill, leave shared memory and the file their ranks meet by ---------

MEETING_POINTS = pytest.StashKey[set[Path]]()  # that were there before
HAD_ENGINES = pytest.StashKey[bool]()


def meeting_points() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("vllm_dist_*"))


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[MEETING_POINTS] = meeting_points()


def pytest_collection_finish(session: pytest.Session) -> None:
    has_engines = any(item.get_closest_marker(name) for item in session.items for name in ("vllm", "e2e"))
    session.config.stash[HAD_ENGINES] = has_engines
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["engines"] = has_engines


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended. None cleans up itself: the ranks of another's engine may be about to meet."""
    if getattr(node, "workeroutput", {}).get("engines"):
        node.config.stash[HAD_ENGINES] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run without engines leaves alone what it finds: it may be another run's."""
    if hasattr(session.config, "workerinput") or not session.config.stash.get(HAD_ENGINES, False):
        return
    remove_unmapped_shared_memory(older_than_s=0)
    for left in meeting_points() - session.config.stash[MEETING_POINTS]:
        left.unlink(missing_ok=True)

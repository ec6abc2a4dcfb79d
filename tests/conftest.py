"""What holds for all tests: nothing stays behind, and none is timed."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session", autouse=True)
def _engines_leave_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Engines that tests drive without a replica, or kill, leave shared memory and the file their ranks meet by.

    A run without engines leaves alone what it finds: the ranks of another run's engine may be about to meet by it.
    """
    if not any(item.get_closest_marker(name) for item in request.session.items for name in ("vllm", "e2e")):
        yield
        return
    there = set(Path(tempfile.gettempdir()).glob("vllm_dist_*"))
    yield
    remove_unmapped_shared_memory(older_than_s=0)
    for left in set(Path(tempfile.gettempdir()).glob("vllm_dist_*")) - there:
        left.unlink(missing_ok=True)

"""One browser for all of the console's tests: it takes a second to start."""

from collections.abc import Iterator

import pytest
from chromium import EXECUTABLE, Browser, chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if EXECUTABLE is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with chromium() as running:
        yield running

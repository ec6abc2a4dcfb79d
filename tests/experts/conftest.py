"""Engines for the tests that shard experts."""

from collections.abc import Iterator

import pytest
from engines import Engines


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """`engines.answer(job)`."""
    made = Engines()
    yield made
    made.close()

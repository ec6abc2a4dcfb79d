"""Where a prompt is prepared: in the caller's thread if its request is short, in the pool's otherwise."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.outcomes import RequestContext, context_of_request
from cluster.short_prompts import SHORT_BYTES, run_inline


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        run_inline(pool)
        yield pool


@pytest.mark.parametrize(
    ("body_bytes", "inline"), [(0, True), (SHORT_BYTES, True), (SHORT_BYTES + 1, False), (None, False)]
)
def test_short_bodies_are_prepared_where_they_are(pool, body_bytes, inline):
    context = RequestContext()
    context.body_bytes = body_bytes
    token = context_of_request.set(context)
    try:
        ran = pool.submit(threading.get_ident).result()
        assert (ran == threading.get_ident()) is inline
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result()
    finally:
        context_of_request.reset(token)


def test_what_belongs_to_no_request_goes_to_the_pool(pool):
    assert pool.submit(threading.get_ident).result() != threading.get_ident()

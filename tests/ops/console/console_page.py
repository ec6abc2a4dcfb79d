"""The console's page, open and filled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chromium import Browser, Page
from stub_gateway import Running

NOW = "document.querySelector('#retry').click()"  # asks at once, as its button in the banner does
ALL_TOLD = "![...document.querySelectorAll('.note, .what')].some(n => n.textContent === 'waiting')"
ALL_TOLD += " && document.querySelector('#who').textContent !== ''"
ROWS = "document.querySelectorAll('#replicas tbody tr').length"


@contextmanager
def shown(
    browser: Browser, gateway: Running, width: int = 1280, rows: int = 3, scheme: str = "light"
) -> Iterator[Page]:
    with browser.page(width, scheme=scheme) as page:
        page.open(f"{gateway.url}/console")
        page.wait(f"{ROWS} === {rows} && {ALL_TOLD}")
        yield page

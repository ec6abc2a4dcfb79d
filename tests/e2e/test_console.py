"""The console of a real cluster under load, in a real browser, with API keys.

    pytest tests/e2e/test_console.py --screenshots ops/console/screenshots

also writes pictures of it, after some minutes of load, so that the charts have something to show.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from chromium import EXECUTABLE, Browser, Page, chromium
from PIL import Image

from cluster.tenants import hash_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PICTURED_AFTER_S = 180.0
PICTURE_LIMIT_BYTES = 200_000


class Client(NamedTuple):
    """One tenant's load."""

    tenant: str
    priority: int
    concurrency: int
    tokens: int  # of each answer

    @property
    def key(self) -> str:
        return f"key-of-{self.tenant}"


OPERATOR = Client("operations", 0, 0, 0)
CLIENTS = (Client("acme", 0, 6, 60), Client("research", 5, 10, 160), Client("nightly-batch", 9, 12, 220))


class Load:
    """Requests of all clients until it is left; how many were answered, and what went wrong."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self.problems: list[str] = []
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as http, asyncio.TaskGroup() as group:
            for client in CLIENTS:
                for _ in range(client.concurrency):
                    group.create_task(self._work(http, client))

    async def _work(self, http: httpx.AsyncClient, client: Client) -> None:
        for n in itertools.count():
            if self._over.is_set():
                return
            body = {
                "model": "tiny-r1",
                "prompt": f"{123 + 7 * n}+{456 + 3 * n}",
                "max_tokens": client.tokens,
                "ignore_eos": True,
                "priority": client.priority,
            }
            reply = await http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {client.key}"})
            if reply.status_code == 200:
                self.answered += 1
            else:
                self.problems.append(f"{reply.status_code} {reply.text[:200]}")


class Cluster(NamedTuple):
    url: str
    load: Load
    since: float  # when the load began

    def told(self, path: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {OPERATOR.key}"}
        told: dict[str, Any] = (
            httpx.get(f"{self.url}/moray/{path}", headers=headers, timeout=10).raise_for_status().json()
        )
        return told


@pytest.fixture(scope="module")
def busy(new_session: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas of two shards each, with fewer places in their batches than there are requests."""
    keys = tmp_path_factory.mktemp("keys") / "keys.yaml"
    entry = "  - name: {0}\n    keys: [{1}]\n    priority: {2}\n"
    keys.write_text(
        "tenants:\n" + "".join(entry.format(c.tenant, hash_of(c.key), c.priority) for c in (OPERATOR, *CLIENTS))
    )
    settings = {
        "replicas.count": "2",
        "engine.max_num_seqs": "10",
        "gateway.keys_file": str(keys),
        "gateway.operators": f'["{OPERATOR.tenant}"]',
    }
    with new_session(settings) as running, Load(running.url) as load:
        yield Cluster(running.url, load, time.monotonic())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if EXECUTABLE is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with chromium() as running:
        yield running


@contextmanager
def console(
    browser: Browser, cluster: Cluster, client: Client, width: int = 1280, scheme: str = "light"
) -> Iterator[Page]:
    with browser.page(width, scheme=scheme) as page:
        page.open(f"{cluster.url}/console")
        page.wait("!document.querySelector('#lock').hidden")  # which a first question without a key has brought
        page.errors.clear()  # that it was answered 401
        page.evaluate(
            f"document.querySelector('#key').value = '{client.key}'; document.querySelector('#lock').requestSubmit()"
        )
        page.wait("document.querySelectorAll('#replicas tbody tr').length === 2")
        page.wait("document.querySelector('#who').textContent !== ''")
        yield page


def test_it_shows_the_cluster_at_work(busy: Cluster, browser: Browser, eventually: Callable[..., Any]) -> None:
    eventually(lambda: busy.load.answered > 20, 60, "answers")
    with console(browser, busy, OPERATOR) as page:
        page.wait("document.querySelector('#ttft .p95 dd').textContent.includes('s')", 30)
        page.wait("document.querySelector('#tpot .p50 dd').textContent.includes('s')", 30)
        before = page.evaluate("document.querySelector('#ttft path.line.p50').getAttribute('d')")
        page.wait(f"document.querySelector('#ttft path.line.p50').getAttribute('d') !== {before!r}", 30)

        ids = {replica["id"] for replica in busy.told("status")["replicas"]}
        shown = page.evaluate("[...document.querySelectorAll('#replicas td.name')].map(td => td.title)")
        assert set(shown) == ids and len(ids) == 2
        assert "2 ready" in page.text("#tiles") and "tiny-r1" in page.text("h1")
        fills = page.evaluate(
            "[...document.querySelectorAll('#replicas td.wide:nth-of-type(3) .bar')].map(b => b.ariaValueText)"
        )
        assert len(fills) == 2 and all(words.endswith(" of 10") for words in fills)
        assert any(not words.startswith("0 ") for words in fills), fills
        page.wait("document.querySelector('#queue').textContent.includes('nightly-batch')", 30)
        page.wait("document.querySelector('#cell').textContent.startsWith('Highest: layer ')", 30)
        assert page.evaluate("document.querySelectorAll('#replicas td button').length") == 2
        assert "no data" not in page.text() and "NaN" not in page.text()
        assert page.text("#alarms .note") == "" and "Nobody is watching" not in page.text("#alarms")
        assert page.errors == [] and busy.load.problems == []


def test_a_phone_scrolls_one_way_and_a_tenant_may_only_look(busy: Cluster, browser: Browser) -> None:
    with console(browser, busy, CLIENTS[0], width=320) as page:
        page.wait("document.querySelector('#cell').textContent.startsWith('Highest: layer ')", 30)
        assert page.overflow() == 0
        assert page.text("#who") == "acme, read-only"
        assert page.evaluate("document.querySelectorAll('#replicas td button').length") == 0
        assert page.errors == []


def test_an_operator_drains_and_undoes_it(busy: Cluster, browser: Browser) -> None:
    def states() -> list[str]:
        return sorted(replica["state"] for replica in busy.told("status")["replicas"])

    with console(browser, busy, OPERATOR) as page:
        for button, found in (("Drain", ["draining", "ready"]), ("Undo drain", ["ready", "ready"])):
            choose = f"[...document.querySelectorAll('#replicas td button')].find(b => b.textContent === '{button}')"
            page.wait(f"{choose} !== undefined")
            page.evaluate(f"{choose}.click()")
            page.evaluate("document.querySelector('#confirm-yes').click()")
            page.wait(
                "!document.querySelector('#told').hidden && document.querySelector('#told').dataset.tone === 'good'"
            )
            page.evaluate("document.querySelector('#told').hidden = true")
            assert states() == found
        assert page.errors == [] and busy.load.problems == []


def test_pictures(busy: Cluster, browser: Browser, request: pytest.FixtureRequest) -> None:
    wanted = request.config.getoption("--screenshots")
    if not wanted:
        pytest.skip("no --screenshots")
    folder = Path(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    time.sleep(max(busy.since + PICTURED_AFTER_S - time.monotonic(), 0))
    for name, width, scheme in (("desktop", 1280, "light"), ("desktop-dark", 1280, "dark"), ("phone", 390, "light")):
        with console(browser, busy, OPERATOR, width, scheme) as page:
            page.wait("document.querySelector('#cell').textContent.startsWith('Highest: layer ')", 30)
            page.wait("document.querySelector('#ttft .p95 dd').textContent.includes('s')", 30)
            time.sleep(1)  # the bars' movement
            path = folder / f"{name}.png"
            page.screenshot(path)
        with Image.open(path) as picture:
            opaque = picture.convert("RGB")
        opaque.save(path, optimize=True)
        assert path.stat().st_size < PICTURE_LIMIT_BYTES

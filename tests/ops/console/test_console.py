"""The console in a real browser, against the real routes and edge with answers that each test chooses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Browser, Page
from console_page import NOW, ROWS, shown
from stub_gateway import OPERATOR_KEY, READER_KEY, XSS, Running, experts, replica, status, stub_gateway

FOCUSED = "(e => e.id || e.className || e.value || e.tagName)(document.activeElement)"


@pytest.fixture
def gateway() -> Iterator[Running]:
    with stub_gateway() as running:
        yield running


def test_it_shows_the_cluster(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        page.wait("document.querySelector('#ttft dd').textContent.includes('ms')")
        tiles = page.text("#tiles")
        assert "2 ready" in tiles and "1 draining, 2 gateways" in tiles and "37 waiting" in tiles and "of 192" in tiles
        assert "tokens/s" in tiles and "1 failed, 3 shed in 10 min" in tiles
        first = page.text("#replicas tbody tr")
        assert "x002" in first and "draining" in first and "54 of 64" in first and "89%" in first and "2026-11" in first
        queue = page.text("#queue")
        assert all(words in queue for words in ("acme", "research", "48.2", "(no keys)", "2 other rows"))
        alarms = page.text("#alarms")
        assert "replica-latency" in alarms and "Runbook ttft-drift" in alarms and "5 requests in a row" in alarms
        assert alarms.index("replica-latency") < alarms.index("ttft-drift")  # who is to be woken comes first
        assert "drain x001 done" in page.text("#healing")
        assert "2026-11" in page.text("#rollouts")
        assert page.evaluate("document.title") == "(2) tiny-r1 · Moray console"
        assert page.text("#health") == "Serving, with alarms" and "read-only" in page.text("header")
        assert page.evaluate("document.querySelectorAll('button[data-replica]').length") == 0
        # Its own gateway, the icon in the page itself, and nobody else.
        assert all(url.startswith((gateway.url, "data:")) for url in page.requested)
        assert page.errors == []


def test_bars_are_as_long_as_they_say(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        page.wait("document.querySelector('#replicas .bar').firstChild.getAnimations().length === 0")
        meters = page.evaluate(
            "[...document.querySelectorAll('#replicas tbody .bar')].map(b => [b.ariaValueText,"
            " b.firstChild.getBoundingClientRect().width / b.getBoundingClientRect().width])"
        )
    assert [words for words, _ in meters] == ["54 of 64", "89%", "20 of 64", "31%", "37 of 64", "60%"]
    assert [width for _, width in meters] == pytest.approx([54 / 64, 0.89, 20 / 64, 0.31, 37 / 64, 0.6], abs=0.01)


def test_a_gap_in_the_history_is_a_gap_in_the_line(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        line = page.wait("document.querySelector('#ttft path.line.p50').getAttribute('d')")
        assert line.count("M") == 2  # the stub's history is silent for half a minute
        rows = gateway.stub.answers["history"]["rows"]
        for row in rows[:-1]:
            row["ttft_p50"] = None
        page.evaluate(NOW)
        page.wait("document.querySelector('#ttft path.line.p50').getAttribute('d').endsWith('h0')")  # a dot


def test_the_sparkline_moves(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        before = page.wait("document.querySelector('#ttft path.line.p50').getAttribute('d')")
        rows = gateway.stub.answers["history"]["rows"]
        rows.append(rows[-1] | {"at_s": rows[-1]["at_s"] + 5, "ttft_p50": 0.5})
        page.wait(f"document.querySelector('#ttft path.line.p50').getAttribute('d') !== {before!r}")
        page.wait("document.querySelector('#ttft .p50 dd').textContent.includes('500')")


@pytest.mark.parametrize(
    "answers",
    [
        {name: {} for name in ("status", "history", "alarms", "experts")},
        {
            "status": {"replicas": [{}], "router": {}, "queue": {"rows": [{}]}, "model": {}},
            "history": {"rows": [{}, None]},
        }
        | {
            "alarms": {"alarms": [{}], "recent": [{}], "healing": [{}]},
            "experts": {"tokens": [[None, 0]], "replicas": [{}]},
        },
        {
            "status": {"replicas": [None, 3], "queue": 5},
            "history": {"rows": "x"},
            "alarms": [],
            "experts": {"tokens": 3},
        },
        {"status": status([]), "history": {"bucket_s": 5, "rows": []}, "alarms": {"alarms": [], "watching": False}}
        | {"experts": {"layers": [], "tokens": [], "replicas": [], "seconds": 0}},
        {
            "history": 404,
            "alarms": 404,
            "experts": 404,
            "status": {"replicas": [replica(0, version=None, shards=None)]},
        },
    ],
    ids=["empty", "hollow", "wrong types", "no replica", "an older gateway"],
)
def test_what_is_missing_is_said_to_be_missing(browser: Browser, gateway: Running, answers: dict[str, Any]) -> None:
    gateway.stub.answers = answers
    with browser.page() as page:
        page.open(f"{gateway.url}/console")
        page.wait("performance.getEntriesByType('resource').length >= 5")
        page.wait("document.querySelector('#health').textContent !== 'Connecting'")
        time.sleep(0.3)
        for view in ("experts", "replicas", "shards"):
            page.evaluate(f"document.querySelector('input[value={view}]').click()")
        text = page.text()
        assert "no data" in text
        for wrong in ("NaN", "undefined", "null", "Infinity", "[object"):
            assert wrong not in text, text
        paths = page.evaluate("[...document.querySelectorAll('path')].map(p => p.getAttribute('d')).join()")
        assert "NaN" not in paths and "Infinity" not in paths
        assert [e for e in page.errors if "404" not in e] == []


def test_names_are_words_never_markup(browser: Browser, gateway: Running) -> None:
    told = gateway.stub.answers
    told["status"] = status([replica(0, id=XSS, state=XSS, version=XSS, address=XSS)])
    told["status"]["model"]["name"] = XSS
    told["status"]["queue"]["rows"][0]["tenant"] = XSS
    told["status"]["replicas"][0]["shards"][0]["device"] = XSS
    for alarm in told["alarms"]["alarms"]:
        alarm |= {"name": XSS, "summary": XSS, "runbook": XSS, "severity": XSS, "labels": {XSS: XSS}}
    told["alarms"]["healing"][0] |= {"action": XSS, "outcome": XSS, "why": XSS, "replica": XSS}
    told["experts"]["replicas"][0]["id"] = told["experts"]["layers"][0] = XSS
    with shown(browser, gateway, rows=1) as page:
        assert page.evaluate("document.querySelectorAll('img, [onerror]').length") == 0
        for section in ("#queue", "#replicas", "#alarms", "#healing", "#rollouts", "#model"):
            assert XSS in page.text(section), section
        assert "broken in" not in page.evaluate("document.title").replace(XSS, "")
        # And were there a slip, the policy would stop it.
        refused = page.evaluate(
            f"(() => {{ try {{ document.body.innerHTML = {XSS!r}; }} catch (e) {{ return e.name; }} }})()"
        )
        assert refused == "TypeError"


def test_what_does_not_answer_makes_the_page_stale_and_it_recovers(browser: Browser) -> None:
    with stub_gateway() as gateway, shown(browser, gateway) as page:
        assert page.evaluate("document.querySelector('#stale').hidden")
        gateway.go_away()
        page.evaluate(NOW)
        page.wait("!document.querySelector('#stale').hidden")
        assert "Stale since" in page.text("#stale") and "the gateway does not answer" in page.text("#stale")
        page.wait("document.querySelector('#stale').textContent.includes('next try in')")
        assert "x002" in page.text("#replicas")  # what was known stays, marked
        assert "stale since" in page.text("#replicas .note")
        gateway.come_back()
        page.evaluate(NOW)
        page.wait("document.querySelector('#stale').hidden")
        assert page.text("#replicas .note") == ""


def test_it_backs_off_from_what_fails_and_asks_on_for_the_rest(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        gateway.stub.answers["status"] = 503
        page.evaluate(NOW)
        page.wait("document.querySelector('#stale').textContent.includes('next try in 4 s')")
        assert "the gateway answers 503 (The router does not answer.)" in page.text("#stale")
        page.evaluate(NOW)
        page.wait("document.querySelector('#stale').textContent.includes('next try in 8 s')")
        gateway.stub.asked.clear()
        page.wait("document.querySelector('#stale').textContent.includes('next try in 5 s')")
        assert "status" not in gateway.stub.asked and gateway.stub.asked["history"] >= 1


def test_a_hidden_tab_asks_nothing(browser: Browser, gateway: Running) -> None:
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    hide += "document.dispatchEvent(new Event('visibilitychange'))"
    with shown(browser, gateway) as page:
        page.evaluate(hide % "true")
        time.sleep(0.2)
        gateway.stub.asked.clear()
        time.sleep(2.5)
        assert gateway.stub.asked == {}
        page.evaluate(hide % "false")
        deadline = time.monotonic() + 5
        while not gateway.stub.asked.get("status"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


# -- keys and actions -------------------------------------------------------------------------------------------------


def enter(page: Page, key: str) -> None:
    page.evaluate(f"document.querySelector('#key').value = {key!r}; document.querySelector('#lock').requestSubmit()")


def test_where_keys_are_configured_it_asks_for_one_and_keeps_it_in_the_tab(browser: Browser) -> None:
    with stub_gateway(keys=True) as gateway, browser.page() as page:
        page.open(f"{gateway.url}/console")
        page.wait("!document.querySelector('#lock').hidden")
        assert "This cluster asks for an API key" in page.text() and "Replicas" not in page.text()
        enter(page, "ключ")
        assert "no API key" in page.text("#lock")
        enter(page, "a-wrong-key")
        page.wait("document.querySelector('#lock-words').textContent.includes('not known')")
        enter(page, READER_KEY)
        page.wait(f"{ROWS} === 3")
        page.wait("document.querySelector('#who').textContent === 'acme, read-only'")
        assert page.evaluate("document.querySelectorAll('button[data-replica]').length") == 0
        kept = "JSON.stringify([Object.values(sessionStorage), localStorage.length, document.cookie, location.search])"
        assert page.evaluate(kept) == f'[["{READER_KEY}"],0,"",""]'
        assert not any(READER_KEY in url for url in page.requested)
        page.evaluate("document.querySelector('#forget').click()")
        page.wait("!document.querySelector('#lock').hidden")
        assert page.evaluate("sessionStorage.length") == 0 and "x002" not in page.evaluate("document.body.textContent")
        assert [e for e in page.errors if "401" not in e] == []


def test_an_operator_drains_after_a_question(browser: Browser) -> None:
    with stub_gateway(keys=True) as gateway, browser.page() as page:
        page.open(f"{gateway.url}/console")
        page.wait("!document.querySelector('#lock').hidden")
        enter(page, OPERATOR_KEY)
        page.wait("document.querySelectorAll('button[data-replica]').length === 3")
        buttons = page.evaluate("[...document.querySelectorAll('button[data-replica]')].map(b => b.textContent)")
        assert buttons == ["Undo drain", "Drain", "Drain"]
        ask = "[...document.querySelectorAll('button[data-replica]')][%d].click()"

        page.evaluate(ask % 1)
        assert "Drain x000?" in page.text("#confirm")
        page.press("Escape")
        page.wait("!document.querySelector('#confirm').open")
        assert gateway.stub.drains == []

        page.evaluate(ask % 1)
        page.evaluate("document.querySelector('#move').click()")
        page.evaluate("document.querySelector('#confirm-yes').click()")
        page.wait("document.querySelector('#told').textContent === 'x000 drains.'")
        assert gateway.stub.drains == [{"replica": "moray#replica#x000", "undo": False, "migrate": True}]

        page.evaluate(ask % 0)
        assert page.evaluate("document.querySelector('#move-line').hidden")
        page.evaluate("document.querySelector('#confirm-yes').click()")
        page.wait("document.querySelector('#told').textContent === 'x002 takes requests again.'")
        assert gateway.stub.drains[1] == {"replica": "moray#replica#x002", "undo": True, "migrate": False}

        gateway.stub.refusal = "x001 is the last replica that takes requests"
        page.evaluate(ask % 2)
        page.evaluate("document.querySelector('#confirm-yes').click()")
        page.wait(f"document.querySelector('#told').textContent === 'Not done: {gateway.stub.refusal}'")


# -- reading it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_scrolls_sideways(browser: Browser, gateway: Running, width: int) -> None:
    told = gateway.stub.answers
    long = "a-tenant-whose-name-is-as-long-as-a-name-may-be-and-has-no-space"
    told["status"] = status([replica(0, id=f"app#deployment#{long}", version=long), replica(1, state="draining")])
    told["status"]["model"]["name"] = "deepseek-r1-distill-of-some-length-0528-int8"
    told["status"]["queue"]["rows"][0]["tenant"] = long
    told["alarms"]["alarms"][0]["summary"] = f"{long} {long}"
    told["experts"] = experts(layers=58, of=256, shards=32)
    with shown(browser, gateway, width, rows=2) as page:
        for view in ("experts", "replicas", "shards"):
            page.evaluate(f"document.querySelector('input[value={view}]').click()")
            page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            assert page.overflow() == 0, view


def test_it_is_read_and_used_by_the_keyboard_alone(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        reached = []
        for _ in range(20):
            page.press("Tab")
            reached.append(page.evaluate(FOCUSED))
            if reached[-1] == "heat":
                break
        assert reached[0] == "skip" and "plain runbook" in reached and "SUMMARY" in reached and "shards" in reached
        assert reached[-1] == "heat"
        page.press("ArrowRight")
        assert page.text("#cell").startswith("layer 0, shard 0: ")
        page.press("ArrowDown")
        page.press("ArrowRight")
        assert page.text("#cell").startswith("layer 1, shard 1: ")
        page.press("Escape")
        assert page.text("#cell").startswith("Highest: ")


def test_the_heat_map_has_the_chosen_columns_and_its_colours_mean_something(browser: Browser, gateway: Running) -> None:
    tokens = [[8, 0, 0, 0], [2, 2, 2, 2]]
    told = {"layers": ["model.layers.3.mlp", "model.layers.4.mlp"], "tokens": tokens, "seconds": 60.0}
    told |= {"shard_tokens": [[6, 2], [4, 4]], "replicas": [{"id": "x", "shard_max_over_mean": [1.5, 1.0]}]}
    gateway.stub.answers["experts"] = told
    pixel = """(x, y) => { const c = document.querySelector('#heat'), k = c.width / c.clientWidth;
        return [...c.getContext('2d').getImageData(x * k, y * k, 1, 1).data.slice(0, 3)]; }"""
    with shown(browser, gateway) as page:
        page.wait("document.querySelector('#cell').textContent.startsWith('Highest: layer 3, shard 0: 1.50')")
        width = page.evaluate("document.querySelector('#heat').clientWidth")
        hot, cold = (page.evaluate(f"({pixel})({x}, 6)") for x in (40, width - 20))
        even = page.evaluate(f"({pixel})(40, 30)")
        assert hot[0] > hot[2] and cold[2] > cold[0] and max(even) - min(even) < 10  # orange, blue, grey
        page.evaluate("document.querySelector('input[value=experts]').click()")
        page.wait("document.querySelector('#cell').textContent.startsWith('Highest: layer 3, expert 0: 4.00')")
        page.evaluate("document.querySelector('input[value=replicas]').click()")
        page.wait("document.querySelector('#cell').textContent.includes('replica x: 1.50')")


# What has less contrast than WCAG AA asks for, 4.5 to 1.
WEAK_WORDS = """(() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = rgb(c).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgb(c)[3] !== 0) return c; }
    return 'rgb(255, 255, 255)';
  };
  const weak = [];
  for (const e of document.querySelectorAll('body *:not(script, style)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) weak.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 20)} ${contrast.toFixed(2)}`);
  }
  return weak.length ? weak : document.body.textContent.length > 1000 ? [] : ['nothing was looked at'];
})()"""


def test_one_shard_is_shown_by_its_experts(browser: Browser, gateway: Running) -> None:
    gateway.stub.answers["experts"] |= {"shard_tokens": [[9], [9], [9], [9]]}
    with shown(browser, gateway) as page:
        page.wait("document.querySelector('#cell').textContent.includes('expert 0')")
        page.evaluate("document.querySelector('input[value=shards]').click()")
        page.wait("document.querySelector('#cell').textContent.includes('shard 0: 1.00')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(browser: Browser, gateway: Running, scheme: str) -> None:
    with shown(browser, gateway, scheme=scheme) as page:
        assert page.evaluate(WEAK_WORDS) == []


def test_many_replicas_are_shown_when_asked_for(browser: Browser, gateway: Running) -> None:
    gateway.stub.answers["status"] = status([replica(n) for n in range(300)])
    with shown(browser, gateway, rows=40) as page:
        assert page.text("#all-replicas") == "Show all 300"
        page.evaluate("document.querySelector('#all-replicas').click()")
        page.wait(f"{ROWS} === 300")


def test_details_that_were_opened_stay_open(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        assert gateway.stub.brief
        page.evaluate("document.querySelector('#replicas details').open = true")
        deadline = time.monotonic() + 10
        while gateway.stub.brief:  # which experts are where is asked for while somebody looks
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "0 on cuda, process 5000: experts 0–3, 3.0 MiB" in page.text("#replicas")
        gateway.stub.answers["status"]["replicas"][2]["running"] = 1
        page.evaluate(NOW)
        page.wait("document.querySelector('#replicas tbody tr').innerText.includes('1 of 64')")
        assert page.evaluate("document.querySelector('#replicas details').open")


def test_a_runbook_opens_in_the_page(browser: Browser, gateway: Running) -> None:
    gateway.stub.runbooks["replica-latency"] = "# A replica is slow\n<b>Check</b> `moray status`."
    button = "document.querySelector('button[data-runbook=\"%s\"]')"
    with shown(browser, gateway) as page:
        page.wait(f"{button % 'replica-latency'} !== null")
        page.evaluate(f"{button % 'replica-latency'}.click()")
        page.wait("document.querySelector('#runbook-text').textContent.startsWith('# A replica is slow')")
        assert "<b>Check</b>" in page.text("#runbook-text")
        assert page.text("#runbook-title") == "ops/runbooks/replica-latency.md"
        page.press("Escape")
        page.wait("!document.querySelector('#runbook').open")
        page.evaluate(f"{button % 'ttft-drift'}.click()")
        page.wait("document.querySelector('#runbook-text').textContent.includes('cannot be shown here (404)')")

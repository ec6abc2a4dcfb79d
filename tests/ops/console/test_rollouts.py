"""The console's Versions panel: what runs where, the rollout, and what an operator may say to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Browser
from console_page import NOW, shown
from stub_gateway import OPERATOR_KEY, XSS, Running, replica, rollouts, status, stub_gateway

COMMANDS = "[...document.querySelectorAll('#rollout-commands button')].map(b => b.textContent)"


@pytest.fixture
def gateway() -> Iterator[Running]:
    with stub_gateway() as running:
        replicas = [replica(0, version="2026-12", running=10), replica(1), replica(2, running=20)]
        running.stub.answers |= {"rollouts": rollouts(), "status": status(replicas)}
        yield running


def press(command: str) -> str:
    return f"document.querySelector('button[data-command={command}]').click()"


def test_it_shows_the_rollout_and_who_serves_what(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        page.wait("!document.querySelector('#rollout').hidden")
        panel = page.text("#rollouts")
        assert "2026-11 → 2026-12" in panel and "canary" in panel and "watched for 20 s more" in panel
        assert "step 1 of 2 (10%, 50%)" in panel and "10% of new requests" in panel and "by ops" in panel
        assert "2027-01 is wanted next." in panel
        gates = page.evaluate(
            "[...document.querySelectorAll('#gates li')].map(li => [li.firstChild.dataset.tone, li.innerText])"
        )
        assert [tone for tone, _ in gates] == ["good", "bad", "quiet"]
        assert "3.1 times as long (121 requests of the new, 180 of the old)" in gates[1][1]
        assert "not known yet" in gates[2][1]
        rows = page.evaluate("[...document.querySelectorAll('#rollouts tbody tr')].map(tr => tr.innerText)")
        assert any("2026-11 (stable)" in row and "90%" in row for row in rows)
        assert any("2026-12" in row and "10%" in row for row in rows) and len(rows) == 2
        assert "x000 2026-12: done" in page.text("#rollout-replicas")
        assert page.evaluate(COMMANDS) == []  # nobody's key is an operator's here
        page.evaluate("document.querySelector('#rollout-history-box').open = true")
        assert page.evaluate("document.querySelectorAll('#rollout-history li').length") == 2
        assert page.text("#rollout-history").index("2026-10 → 2026-11") < page.text("#rollout-history").index("bad")
        assert page.errors == []


def test_it_follows_the_rollout_to_its_end(browser: Browser, gateway: Running) -> None:
    with shown(browser, gateway) as page:
        page.wait("document.querySelector('#rollout-phase').dataset.tone === 'warn'")
        gateway.stub.answers["rollouts"] = rollouts(phase="rolling-back", why="length says no")
        page.evaluate(NOW)
        page.wait("document.querySelector('#rollout-phase').textContent === 'rolling-back'")
        assert page.evaluate("document.querySelector('#rollout-phase').dataset.tone") == "bad"
        assert page.text("#rollout-why") == "length says no"
        gateway.stub.answers["rollouts"] |= {"current": None}
        page.evaluate(NOW)
        page.wait("document.querySelector('#rollout').hidden")


@pytest.mark.parametrize(
    "told",
    [
        404,
        503,
        {},
        {"current": {}, "versions": {"v": None}, "history": [None, {}]},
        {"current": {"gates": 3, "steps": "x", "replicas": [{}], "step": "1"}, "versions": [], "history": 4},
    ],
    ids=["an older gateway", "no controller", "empty", "hollow", "wrong types"],
)
def test_what_is_missing_is_said_to_be_missing(browser: Browser, gateway: Running, told: Any) -> None:
    gateway.stub.answers["rollouts"] = told
    with shown(browser, gateway) as page:
        assert "2026-12" in page.text("#rollouts .versions")  # as the status tells it
        for wrong in ("NaN", "undefined", "[object", "Invalid Date", "null"):
            assert wrong not in page.text("#rollouts")
        assert ("no data" in page.text("#rollouts .note")) == (told == 503)
        assert [error for error in page.errors if "Failed to load" not in error] == []


def test_nothing_of_it_becomes_markup(browser: Browser, gateway: Running) -> None:
    gate = {"name": XSS, "answer": XSS, "detail": XSS, "n_stable": 1, "n_canary": 1}
    told = rollouts(**{"from": XSS, "to": XSS, "phase": XSS, "why": XSS, "started_by": XSS, "gates": [gate]})
    told |= {"stable": XSS, "versions": {XSS: {"replicas": 1, "share": 1}}, "history": [told["current"]]}
    gateway.stub.answers["rollouts"] = told
    with shown(browser, gateway) as page:
        page.wait("!document.querySelector('#rollout').hidden")
        assert XSS in page.text("#rollouts") and page.evaluate("document.querySelectorAll('#main img').length") == 0
        assert "broken in" not in page.evaluate("document.title")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_scrolls_sideways(browser: Browser, gateway: Running, width: int) -> None:
    long = "a-version-whose-name-is-as-long-as-a-name-may-be-and-has-no-space"
    gateway.stub.answers["rollouts"] = rollouts(**{"from": long, "to": f"{long}2", "why": long * 3})
    with shown(browser, gateway, width) as page:
        page.wait("!document.querySelector('#rollout').hidden")
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.overflow() == 0


def test_an_operator_pauses_promotes_and_aborts(browser: Browser) -> None:
    with stub_gateway(keys=True) as gateway, browser.page() as page:
        gateway.stub.answers["rollouts"] = rollouts()
        page.open(f"{gateway.url}/console")
        page.wait("!document.querySelector('#lock').hidden")
        page.evaluate(f"document.querySelector('#key').value = '{OPERATOR_KEY}'")
        page.evaluate("document.querySelector('#lock').requestSubmit()")
        page.wait(f"{COMMANDS}.join() === 'Pause,Promote,Abort'")

        page.evaluate(press("pause"))
        page.wait("document.querySelector('#told').textContent === 'The rollout pauses.'")
        gateway.stub.answers["rollouts"] = rollouts(paused=True)
        page.evaluate(NOW)
        page.wait(f"{COMMANDS}.join() === 'Resume,Promote,Abort'")
        assert page.text("#rollout-phase") == "canary, paused"

        page.evaluate(press("abort"))
        assert page.text("#confirm-title") == "Go back to 2026-11?"
        assert page.evaluate("document.querySelector('#move-line').hidden")
        page.press("Escape")
        page.wait("!document.querySelector('#confirm').open")
        page.evaluate(press("abort"))
        page.evaluate("document.querySelector('#confirm-yes').click()")
        page.wait("document.querySelector('#told').textContent === 'The rollout goes back.'")
        assert gateway.stub.commands == [{"command": "pause"}, {"command": "abort"}]

        gateway.stub.refusal = "It is going back already"
        page.evaluate(press("promote"))
        page.evaluate("document.querySelector('#confirm-yes').click()")
        page.wait("document.querySelector('#told').textContent === 'Not done: It is going back already'")
        gateway.stub.answers["rollouts"] = rollouts(phase="rolling-back")
        page.evaluate(NOW)
        page.wait(f"{COMMANDS}.length === 0")

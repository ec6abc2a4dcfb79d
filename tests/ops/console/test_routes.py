"""What the gateway serves for the console, without a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx
import pytest
from stub_gateway import OPERATOR_KEY, READER_KEY, stub_gateway

from ops.anomaly.progress import STUCK_QUEUE
from ops.console import page
from ops.console.routes import _console, _runbooks

LIMIT_BYTES = 70_000
VOID_OF_DATA = {"connect-src": "'self'", "default-src": "'none'", "img-src": "data:", "trusted-types": "'none'"}


def policy(headers: httpx.Headers) -> dict[str, str]:
    return dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))


def test_the_page_is_one_small_answer_that_needs_no_key() -> None:
    with stub_gateway(keys=True) as gateway:
        answer = httpx.get(f"{gateway.url}/console")
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
        assert len(answer.content) < LIMIT_BYTES
        assert gateway.stub.asked == {}
        for path in ("status", "access", "runbooks/ttft-drift"):
            assert httpx.get(f"{gateway.url}/moray/{path}").status_code == 401, path


def test_its_policy_lets_nothing_in_but_itself() -> None:
    with stub_gateway() as gateway:
        headers = httpx.get(f"{gateway.url}/console").headers
    found = policy(headers)
    assert found.items() >= VOID_OF_DATA.items()
    assert all(re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", found[kind]) for kind in ("script-src", "style-src"))
    assert found["require-trusted-types-for"] == "'script'" and found["frame-ancestors"] == "'none'"
    assert not any("unsafe" in value or "*" in value or "http" in value for value in found.values())
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


class Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []  # what a policy without 'unsafe-inline' would block

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.found.append(value or "")
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")


def test_it_fetches_nothing_from_elsewhere() -> None:
    html = _console().html.decode()
    parser = Addresses()
    parser.feed(html)
    assert parser.inline == []
    assert all(address.startswith(("#", "data:")) for address in parser.found), parser.found
    # The names of XML namespaces are no addresses.
    without_names = html.replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+|@import|url\(", without_names) == []


def test_nothing_puts_data_into_markup() -> None:
    html = _console().html.decode()
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", html) == []


def test_a_frame_without_a_place_for_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("page.html needs")):
        page.assemble("<style></style>", "a{}", [])


@pytest.mark.parametrize(
    ("keys", "key", "told"),
    [
        (False, None, {"tenant": "", "operator": False}),  # whoever asks may drain by the API; the page only shows
        (True, READER_KEY, {"tenant": "acme", "operator": False}),
        (True, OPERATOR_KEY, {"tenant": "ops", "operator": True}),
    ],
)
def test_access_says_whether_the_key_is_an_operators(keys: bool, key: str | None, told: dict[str, object]) -> None:
    with stub_gateway(keys) as gateway:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        assert httpx.get(f"{gateway.url}/moray/access", headers=headers).json() == told


def test_the_repositorys_runbooks_are_there_by_their_alarms_names() -> None:
    assert _runbooks()[STUCK_QUEUE.name].startswith("#")


def test_a_runbook_that_is_not_there_is_named_and_no_path_leads_elsewhere() -> None:
    with stub_gateway() as gateway:
        answer = httpx.get(f"{gateway.url}/moray/runbooks/no-such-alarm")
        assert answer.status_code == 404 and "no-such-alarm" in answer.json()["detail"]
        for name in ("..%2F..%2Fpyproject", "%2e%2e%2fcli.py", "..%2fsession.py"):
            assert httpx.get(f"{gateway.url}/moray/runbooks/{name}").status_code == 404

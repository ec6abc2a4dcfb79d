"""A headless Chromium for tests, driven over the DevTools protocol through a pipe: no port, no library.

When this process ends, in whatever way, the pipe ends, and Chromium with it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")
ANSWER_WITHIN_S = 30.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--mute-audio",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """Chromium refused a command, or a script in the page failed."""


class Browser:
    """One Chromium process; each `page` of it has a context, and so a session storage, of its own."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out = to_browser
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}  # by session
        self._last = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._read, args=(from_browser,), daemon=True).start()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A DevTools command and its result. Raises BrowserError, and TimeoutError if there is none."""
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._lock:
            self._last += 1
            number = self._last
            self._answers[number] = answers
            message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
            _write(self._out, json.dumps(message).encode() + b"\0")
        try:
            answer = answers.get(timeout=ANSWER_WITHIN_S)
        except queue.Empty:
            raise TimeoutError(f"Chromium did not answer {method} in {ANSWER_WITHIN_S:g} s") from None
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    @contextmanager
    def page(self, width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[Page]:
        """An empty page, as a window of that many CSS pixels."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.resize(width, height)
            page.prefer(scheme)
            yield page
        finally:
            del self._pages[session]
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def _read(self, from_browser: int) -> None:
        rest = b""
        while chunk := os.read(from_browser, 1 << 16):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if answers := self._answers.pop(message.get("id"), None):
                    answers.put(message)
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.take(message)
        os.close(from_browser)


class Page:
    """A tab. What it logged is in `errors`, which addresses it asked for in `requested`."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []  # uncaught exceptions, console.error, what the policy blocked, failed loads
        self.requested: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def take(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event["method"]:
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it gives. Raises BrowserError."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        if details := told.get("exceptionDetails"):
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return told["result"].get("value")

    def wait(self, script: str, within_s: float = 20.0) -> Any:
        """Waits until an expression is true; returns what it is then."""
        deadline = time.monotonic() + within_s
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {script}\n{self.text()}\n{self.errors}"
            time.sleep(0.05)
        return value

    def text(self, selector: str = "body") -> str:
        """What a reader sees there, all space between words as one."""
        return " ".join(str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")).split())

    def press(self, key: str) -> None:
        """One key on the keyboard, such as Tab, Enter, ArrowDown."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 40)}
        text = {"Enter": "\r", " ": " "}.get(key)
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def overflow(self) -> float:
        """By how many CSS pixels the page is wider than its window."""
        return float(self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own; both are gone afterwards."""
    assert EXECUTABLE is not None
    profile = tempfile.mkdtemp(prefix="moray-chromium-")
    # Chromium reads commands from 3 and writes to 4. Numbers from 10 on are in nobody's way when these are set.
    theirs_in, ours_out, ours_in, theirs_out = (_high(fd) for pipe in (os.pipe(), os.pipe()) for fd in pipe)
    null = os.open(os.devnull, os.O_RDWR)
    actions = [
        (os.POSIX_SPAWN_DUP2, fd, n) for n, fd in ((0, null), (1, null), (2, null), (3, theirs_in), (4, theirs_out))
    ]
    arguments = [EXECUTABLE, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    pid = os.posix_spawn(EXECUTABLE, arguments, os.environ | {"HOME": profile}, file_actions=actions, setsid=True)
    for fd in (theirs_in, theirs_out, null):
        os.close(fd)
    browser = Browser(ours_out, ours_in)
    try:
        yield browser
    finally:
        with contextlib.suppress(OSError, TimeoutError, BrowserError):
            browser.call("Browser.close")
        os.close(ours_out)
        _reap(pid)
        shutil.rmtree(profile, ignore_errors=True)


def _high(fd: int) -> int:
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return high


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _reap(pid: int, within_s: float = 5.0) -> None:
    """Waits for its end; then ends whatever is left of its session."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)

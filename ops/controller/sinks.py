"""Where alarms are told: the log, a webhook, Alertmanager. None of them may keep the watching waiting.

`tell` only notes; each sink's own task delivers, in order, and tries again for as long as it takes.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol

import httpx

from ops.anomaly.alarms import Alarm
from ops.controller.news import Change, Healing, News, alert, rfc3339, runbook

logger = logging.getLogger("moray.alarms")

TIMEOUT_S = 5.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
KEPT_NEWS = 256  # that a sink could not deliver yet; of more, the oldest are lost
RESEND_S = 30.0  # Alertmanager takes what is not sent again for resolved
ENDS_AFTER_S = 4 * RESEND_S


class Sink(Protocol):
    name: str  # under which its undelivered news are stored

    def tell(self, news: News) -> None:
        """Notes it; returns at once."""
        ...

    async def run(self) -> None:
        """Delivers until it is cancelled."""
        ...

    def undelivered(self) -> list[News]:
        """What a restart must not lose."""
        ...


class Log:
    """One WARNING line each, with the figures and the runbook."""

    name = "log"

    def tell(self, news: News) -> None:
        logger.warning("%s", line(news))

    async def run(self) -> None:
        """A line is written when it is told."""

    def undelivered(self) -> list[News]:
        return []


def line(news: News) -> str:
    if isinstance(news, Healing):
        return f"healing: {news.action} {news.replica}: {news.outcome}. {news.why}"
    what = "RAISED" if news.raised else "resolved"
    return f"alarm {what}: {news.alarm.name} ({news.alarm.severity}): {news.alarm.summary} See {runbook(news.alarm)}."


class Refused(Exception):
    """The receiver will not take this one, however often it is sent."""


Post = Callable[[str, Any], Awaitable[None]]  # (url, body); raises httpx.HTTPError, or Refused


class Webhook:
    """Posts each piece of news as JSON: Alertmanager's webhook format (version 4), so that its receivers take it.

    `told` is called after each delivery: from then on a restart must not tell it again.
    """

    name = "webhook"

    def __init__(
        self,
        url: str,
        post: Post,
        runbook_url: str | None,
        told: Callable[[], Awaitable[None]],
        undelivered: Iterable[News] = (),
    ) -> None:
        self._url, self._post, self._runbook_url, self._told = url, post, runbook_url, told
        self._news: deque[News] = deque(undelivered)
        self._wake = asyncio.Event()
        self.lost = 0

    def tell(self, news: News) -> None:
        self._news.append(news)
        if len(self._news) > KEPT_NEWS:
            self._news.popleft()
            self.lost += 1
            logger.error("The webhook takes nothing; %d pieces of news are lost.", self.lost)
        self._wake.set()

    def undelivered(self) -> list[News]:
        return list(self._news)

    async def run(self) -> None:
        pauses = _backoff()
        while True:
            if not self._news:
                self._wake.clear()
                await self._wake.wait()
            news = self._news[0]
            try:
                await self._post(self._url, payload(news, self._runbook_url))
            except Refused as error:
                logger.error("The webhook refuses what it is told (%s): %s", error, line(news))
            except httpx.HTTPError as error:
                pause_s = next(pauses)
                logger.warning("The webhook does not answer (%s); trying again in %.1f s.", _words(error), pause_s)
                await asyncio.sleep(pause_s)
                continue
            pauses = _backoff()
            if self._news and self._news[0] is news:  # else it fell out meanwhile
                self._news.popleft()
            await self._told()


def payload(news: News, runbook_url: str | None) -> dict[str, Any]:
    """The body that a webhook gets. Of a healing, `alerts` is empty and `healing` tells what was done."""
    body: dict[str, Any] = {
        "version": "4",
        "receiver": "moray",
        "status": "resolved",
        "groupKey": "",
        "truncatedAlerts": 0,
        "externalURL": "",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "alerts": [],
    }
    if isinstance(news, Healing):
        healing = {field: getattr(news, field) for field in news.__struct_fields__ if field != "at_s"}
        return body | {"status": "healing", "healing": healing | {"at": rfc3339(news.at_s)}}
    one = alert(news, runbook_url)
    status = "firing" if news.raised else "resolved"
    return body | {
        "status": status,
        "groupKey": one.fingerprint,
        "groupLabels": {"alertname": news.alarm.name},
        "commonLabels": one.labels,
        "commonAnnotations": one.annotations,
        "alerts": [
            {
                "status": status,
                "labels": one.labels,
                "annotations": one.annotations,
                "startsAt": rfc3339(one.starts_s),
                "endsAt": rfc3339(one.ends_s) if one.ends_s is not None else "0001-01-01T00:00:00Z",
                "generatorURL": "",
                "fingerprint": one.fingerprint,
            }
        ],
    }


class Alertmanager:
    """Keeps Alertmanager (API v2) told of what is raised: again before it would expire, and once when it is resolved.

    It holds states, not a queue: an alarm that came and went while nobody answered is told as resolved. What was done
    to a replica is no alarm: that goes to the log and the webhook.
    """

    def __init__(
        self,
        name: str,
        url: str,
        post: Post,
        runbook_url: str | None,
        clock: Callable[[], float],
        raised: Iterable[Alarm] = (),
        undelivered: Iterable[News] = (),
    ) -> None:
        self._url, self._post, self._runbook_url = f"{url.rstrip('/')}/api/v2/alerts", post, runbook_url
        self.name, self._clock = name, clock
        # What is to be told of each, by identity; those that ended stay until that is told.
        self._changes = {_identity(alarm): Change(alarm.raised_s, True, alarm) for alarm in raised}
        for news in undelivered:
            self._note(news)
        self._wake = asyncio.Event()
        self._wake.set()

    def tell(self, news: News) -> None:
        self._note(news)
        self._wake.set()

    def _note(self, news: News) -> None:
        if isinstance(news, Change):
            self._changes[_identity(news.alarm)] = news

    def undelivered(self) -> list[News]:
        return [change for change in self._changes.values() if not change.raised]

    async def run(self) -> None:
        pauses = _backoff()
        while True:
            try:
                async with asyncio.timeout(RESEND_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            sent = dict(self._changes)
            if not sent:
                continue
            try:
                await self._post(self._url, [self._alert(change) for change in sent.values()])
            except Refused as error:
                logger.error("Alertmanager refuses what it is told: %s", error)
            except httpx.HTTPError as error:
                pause_s = next(pauses)
                logger.warning("Alertmanager does not answer (%s); trying again in %.1f s.", _words(error), pause_s)
                await asyncio.sleep(pause_s)
                self._wake.set()
                continue
            pauses = _backoff()
            for key, change in sent.items():
                if not change.raised and self._changes.get(key) is change:
                    del self._changes[key]

    def _alert(self, change: Change) -> dict[str, Any]:
        one = alert(change, self._runbook_url)
        ends_s = self._clock() + ENDS_AFTER_S if one.ends_s is None else one.ends_s
        return {
            "labels": one.labels,
            "annotations": one.annotations,
            "startsAt": rfc3339(one.starts_s),
            "endsAt": rfc3339(ends_s),
            "generatorURL": "",
        }


def poster(client: httpx.AsyncClient) -> Post:
    """Posts JSON. A 4xx is the sender's fault and stays, but for 408 and 429."""

    async def post(url: str, body: Any) -> None:
        reply = await client.post(url, json=body, timeout=TIMEOUT_S)
        if 400 <= reply.status_code < 500 and reply.status_code not in (408, 429):
            raise Refused(f"it answered {reply.status_code}: {reply.text[:200]}")  # a URL may hold a secret
        reply.raise_for_status()

    return post


def _identity(alarm: Alarm) -> str:
    return repr((alarm.name, sorted(alarm.labels.items())))


def _backoff() -> Iterator[float]:
    """Doubling pauses, each shortened by chance: senders that failed together do not come back together."""
    pause_s = FIRST_BACKOFF_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, LONGEST_BACKOFF_S)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")

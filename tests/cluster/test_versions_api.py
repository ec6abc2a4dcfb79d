"""vLLM's OpenAI app over ClusterCore and one real core: answers name their version, and begin again if it is gone.

The core says of itself that it is v1, and later v2: to its gateway a version is a name that its replica tells.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from api_stack import Stack, running
from scripted_core import until

from cluster.journal import Ended, Listener
from cluster.traffic import session_of
from replicas.assignment import Assignment

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SAID = [{"role": "user", "content": "What is 123+456?"}]
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": SAID, "max_tokens": 40, "temperature": 0},
    COMPLETIONS: {"prompt": "1+2=", "max_tokens": 40, "temperature": 0},
    RESPONSES: {"input": "What is 123+456?", "max_output_tokens": 40, "temperature": 0},
    MESSAGES: {"messages": SAID, "max_tokens": 40, "temperature": 0},
}
LONG = {"messages": SAID, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


class Records(Listener):
    def __init__(self) -> None:
        self.all: list[Ended] = []

    def ended(self, record: Ended) -> None:
        self.all.append(record)


class Versions(Stack):
    """A stack whose replica can be told to be of another version."""

    def __init__(self) -> None:
        super().__init__(version="v1", no_replica_wait_s=0.3)
        self.records = Records()

    async def start(self) -> None:
        await super().start()
        self.core.journal.listeners.append(self.records)
        self.fingerprint = self.app.state.openai_serving_chat.__dict__["system_fingerprint"]

    async def be(self, version: str) -> None:
        """The replica is of that version from now on; what it ran as another is lost."""
        self._become(version)
        await self._is(version)

    async def be_at(self, tokens: int, version: str) -> None:
        """The same once a request has so many tokens."""
        await self.at(tokens, lambda: self._become(version))
        await self._is(version)

    def _become(self, version: str) -> None:
        [info] = self.router.alive
        self.router.alive[:] = [msgspec.structs.replace(info, version=version, epoch=info.epoch + 1)]
        self.cut()

    async def _is(self, version: str) -> None:
        await until(lambda: {peer.info.version for peer in self.core._peers.values() if peer.connection} == {version})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_stack() -> AsyncIterator[Versions]:
    async with running(Versions) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(module_stack: Versions) -> Versions:
    await module_stack.be("v1")
    module_stack.records.all.clear()
    return module_stack


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("path", ASKED)
async def test_an_answer_names_its_version(stack: Versions, path: str) -> None:
    for version in ("v1", "v2"):
        await stack.be(version)
        reply = await stack.post(path, ASKED[path])
        assert reply.headers["x-moray-version"] == version and "x-moray-restarted" not in reply.headers
        if path in (CHAT, COMPLETIONS):  # OpenAI's Responses and Anthropic's messages have no such field
            assert reply.json()["system_fingerprint"] == f"{stack.fingerprint}-{version}"


@pytest.mark.parametrize("path", ASKED)
async def test_a_stream_names_its_version_at_its_head_and_at_its_end(stack: Versions, path: str) -> None:
    reply = await stack.post(path, ASKED[path] | {"stream": True})
    assert reply.headers["x-moray-version"] == "v1"
    if path in (CHAT, COMPLETIONS):
        named = [event["system_fingerprint"] for event in events(reply) if event.get("system_fingerprint")]
        assert named == [f"{stack.fingerprint}-v1"]
        usage = events(await stack.post(path, ASKED[path] | USAGE))[-1]
        assert usage["usage"] and usage["system_fingerprint"] == f"{stack.fingerprint}-v1"


@pytest.mark.parametrize("more", [{}, {"n": 3, "temperature": 2.0, "seed": 7}], ids=["one", "samples"])
async def test_an_answer_begins_again_when_its_version_is_gone(stack: Versions, more: dict[str, Any]) -> None:
    undisturbed = (await stack.post(CHAT, LONG | more)).json()
    changing = asyncio.ensure_future(stack.be_at(9, "v2"))
    reply = await stack.post(CHAT, LONG | more)
    await changing
    assert (reply.headers["x-moray-version"], reply.headers["x-moray-restarted"]) == ("v2", "v1")
    told = reply.json()
    assert told["choices"] == undisturbed["choices"] and told["usage"] == undisturbed["usage"]
    assert told["system_fingerprint"] == f"{stack.fingerprint}-v2"
    count = more.get("n", 1)
    endings = [(record.version, record.ending) for record in stack.records.all[count:]]
    assert endings == [("v1", "RESTARTED")] * count + [("v2", "DONE")] * count
    first, again = stack.records.all[count], stack.records.all[-1]
    assert again.arrived_at == first.arrived_at and again.session == first.session
    assert stack.core.open_requests == 0


async def test_a_stream_that_is_read_ends_with_its_version(stack: Versions) -> None:
    changing = asyncio.ensure_future(stack.be_at(9, "v2"))
    reply = await stack.client.post(CHAT, json={"model": "tiny-r1", **LONG, "stream": True})
    await changing
    *tokens, last = events(reply)
    assert reply.status_code == 200 and reply.headers["x-moray-version"] == "v1" and len(tokens) > 8
    assert last["error"]["code"] == 503 and last["error"]["message"].startswith("Version v1: No replica serves")
    assert [record.ending for record in stack.records.all] == ["VERSION_GONE"]


async def test_a_version_is_chosen_among_those_that_are_there(stack: Versions) -> None:
    body = {"model": "tiny-r1", **ASKED[CHAT]}
    chosen = await stack.client.post(CHAT, json=body, headers={"x-moray-version": "v1"})
    assert chosen.status_code == 200 and chosen.headers["x-moray-version"] == "v1"
    unknown = await stack.client.post(CHAT, json=body, headers={"x-moray-version": "v9"})
    assert unknown.status_code == 400 and "there are: v1" in unknown.json()["error"]["message"]
    known = Assignment(revision=1, stable="v1", new_replica="v1", directories={"v1": "/1", "v2": "/2"})
    stack.router.assign(known)
    gone = await stack.client.post(CHAT, json=body, headers={"x-moray-version": "v2"})
    assert gone.status_code == 503 and gone.json()["error"]["message"].startswith("Version v2: ")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
async def test_what_a_client_calls_its_session_decides(stack: Versions, path: str) -> None:
    async def session(headers: dict[str, str], **fields: str) -> int:
        reply = await stack.client.post(path, json={"model": "tiny-r1", **ASKED[path], **fields}, headers=headers)
        assert reply.status_code == 200, reply.text
        return stack.records.all[-1].session

    assert await session({"x-session-id": "a"}, user="b", prompt_cache_key="c") == session_of("", "a")
    assert await session({}, user="b", prompt_cache_key="c") == session_of("", "c")
    assert await session({}, user="b") == session_of("", "b")
    assert await session({}) != await session({})  # each request of a client that names none

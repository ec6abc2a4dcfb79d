"""The load under a rollout, against a real server that answers rightly, wrongly, partly, or not at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ops.bench.rollout_answers import Verdict, tally
from ops.bench.rollout_load import Load, NoLoad, asks, weight
from ops.soak.catalogue import CHAT, COMPLETIONS, Ask

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


class Server:
    """Answers as a model whose version is `version`; `fault` says what goes wrong."""

    def __init__(self) -> None:
        self.version, self.fault = "v1", ""
        self.app = FastAPI()
        self.app.post(COMPLETIONS)(self.answer)
        self.app.post(CHAT)(self.answer)

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        version = self.version
        headers = {"x-moray-version": version} | ({"x-moray-restarted": "v0"} if self.fault == "restarted" else {})
        if self.fault == "refused":
            return JSONResponse({"error": {"message": "no replica"}}, 503, headers={"retry-after": "1"})
        text = f"{version} says {body['prompt']}"
        if not body.get("stream"):
            choice = {"index": 0, "text": text, "finish_reason": "stop"}
            return JSONResponse({"choices": [choice], "usage": USAGE}, headers=headers)

        async def events() -> AsyncIterator[str]:
            end = len(text) // 2 if self.fault == "mixed" else len(text)
            said = text[:end] + (" and what another version says" if self.fault == "mixed" else "")
            for at in range(0, len(said), 4):
                yield event({"index": 0, "text": said[at : at + 4], "finish_reason": None})
                await asyncio.sleep(0.001)
                if self.fault == "cut":
                    return
                if self.fault == "silent" and at == 4:
                    await asyncio.sleep(0.5)
            yield event({"index": 0, "text": "", "finish_reason": "stop"}, usage=USAGE)
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), headers=headers, media_type="text/event-stream")


def event(choice: dict[str, object], **more: object) -> str:
    return f"data: {json.dumps({'choices': [choice], **more})}\n\n"


@pytest.fixture
def server() -> Iterator[Server]:
    yield Server()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(uvicorn.Config(server.app, log_level="error", lifespan="off"))
        task = asyncio.ensure_future(running.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        await task


def made(count: int = 3) -> list[Ask]:
    found = []
    for n in range(count):
        body = {"prompt": f"{n}+{n}=", "max_tokens": 20}
        found += [
            Ask(f"sum {n}", COMPLETIONS, body, True),
            Ask(f"sum {n}, s", COMPLETIONS, body | {"stream": True}, True),
        ]
    return found


async def test_answers_are_judged_by_the_version_that_they_name(server: Server) -> None:
    async with serving(server) as url, Load(url, made()) as load:
        version, first = await load.references((4, 2))
        assert version == "v1" and len(first) == 6
        load.start(4)
        await asyncio.sleep(0.3)
        server.version = "v2"
        await asyncio.sleep(0.3)
        await load.stop()
        _, second = await load.references((2,))
        found = tally(load.exchanges, {"v1": first, "v2": second})
    assert found.requests > 10 and found.by_verdict[Verdict.RIGHT] == found.requests, found.wrong
    assert found.by_version["v1"] > 3 and found.by_version["v2"] > 3


@pytest.mark.parametrize(
    ("fault", "verdict", "streams_only"),
    [
        ("refused", Verdict.FAILED, False),
        ("cut", Verdict.TRUNCATED, True),
        ("mixed", Verdict.MIXED, True),
        ("", Verdict.RIGHT, False),
    ],
)
async def test_what_goes_wrong_is_counted(server: Server, fault: str, verdict: Verdict, streams_only: bool) -> None:
    async with serving(server) as url, Load(url, made()) as load:
        _, right = await load.references((4,))
        server.fault = fault
        found = tally([await load.once(ask) for ask in made()], {"v1": right})
    assert found.by_verdict[verdict] == (3 if streams_only else 6), found.wrong
    assert sum(found.by_verdict.values()) == 6


async def test_the_longest_gap_and_a_restart_are_seen(server: Server) -> None:
    async with serving(server) as url, Load(url, made()) as load:
        _, right = await load.references((4,))
        usual = tally([await load.once(made()[1])], {"v1": right}).longest_gap_s
        server.fault = "silent"
        assert tally([await load.once(made()[1])], {"v1": right}).longest_gap_s > max(usual, 0.25)
        server.fault = "restarted"
        assert tally([await load.once(made()[0])], {"v1": right}).restarted == 1


async def test_a_server_that_is_gone_fails_requests_and_gives_no_references(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with Load(url, made(1)) as load:
        exchange = await load.once(made(1)[0])
        assert tally([exchange], {}).by_verdict[Verdict.FAILED] == 1 and "ConnectError" in exchange.words
        with pytest.raises(NoLoad, match="was not answered"):
            await load.references((1,))


async def test_two_versions_give_no_references(server: Server) -> None:
    server.version = ""
    async with serving(server) as url, Load(url, made(1)) as load:
        with pytest.raises(NoLoad, match="one version"):
            await load.references((1,))


def test_the_load_is_mixed() -> None:
    mixed = asks("m")
    assert len({ask.path for ask in mixed}) == 2 and len({ask.streamed for ask in mixed}) == 2
    assert all(ask.body.get("temperature") == 0 and ask.exact for ask in mixed)
    weights = [weight(ask) for ask in mixed]
    assert len(set(weights)) == 3 and len(mixed) > 20
    assert sum(weight(ask) for ask in mixed if ask.output_tokens is None) > sum(weights) / 2
    assert any(ask.output_tokens is None for ask in mixed) and any((ask.output_tokens or 0) > 1000 for ask in mixed)

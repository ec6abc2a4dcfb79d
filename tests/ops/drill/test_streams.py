"""The drill's own load, against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ops.drill.streams import Load, NoLoad

REFUSED = (503, {"retry-after": "1"})


def events(text: str, done: bool = True) -> list[str]:
    pieces = [{"choices": [{"index": 0, "text": letter, "finish_reason": None}]} for letter in text]
    last = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(text)}}
    said = [json.dumps(piece) for piece in ([*pieces, last, usage] if done else pieces)]
    return [*said, "[DONE]"] if done else said


async def load_for(gateway: Any, places: int, seconds: float, stop_s: float = 10.0) -> Load:
    async with Load(gateway.url, "key", "tiny-r1", places) as load:
        await load.undisturbed()
        load.start()
        await asyncio.sleep(seconds)
        await load.stop(stop_s)
    return load


async def test_whole_streams_are_compared_and_their_times_are_noted(gateway):
    gateway.stream = lambda n, body: events("ab" + body["prompt"])
    gateway.delay_s = 0.002
    load = await load_for(gateway, 3, 0.3)
    assert load.unfit == 0 and len(load.streams) > 5
    for stream in load.streams:
        assert stream.compared and not stream.wrong and not stream.broken and stream.status == 200
        assert len(stream.token_s) == 2 + len("123+456=") + 2
        assert stream.begun_s <= stream.token_s[0] <= stream.token_s[-1] <= stream.ended_s


async def test_a_missing_token_is_a_wrong_one(gateway):
    gateway.stream = lambda n, body: events("abcdefgh" if n <= 2 else "abcefgh")
    load = await load_for(gateway, 1, 0.1)
    assert load.streams and all("1 missing at 3" in stream.wrong for stream in load.streams)


async def test_a_cut_stream_and_a_500_are_broken_and_a_refusal_is_not(gateway):
    answers = {3: events("abc", done=False), 4: (500, {}), 5: REFUSED, 6: (503, {})}
    gateway.stream = lambda n, body: answers.get(n, events("abc"))
    load = await load_for(gateway, 1, 1.8)
    cut, failed, refused, lost, *good = load.streams
    assert "cut after 3 events" in cut.broken and cut.status == 200
    assert failed.broken.startswith("HTTP 500") and lost.broken.startswith("HTTP 503")  # without Retry-After
    assert refused.refused and not refused.broken and refused.status == 503
    assert lost.begun_s - refused.ended_s > 0.9  # it was told to wait for a second
    assert good and all(stream.compared for stream in good)


async def test_what_is_not_the_same_twice_is_not_compared(gateway):
    gateway.stream = lambda n, body: events(f"{n:03}")
    load = await load_for(gateway, 2, 0.1)
    assert load.unfit == 2 and load.streams and not any(s.compared or s.wrong for s in load.streams)


@pytest.mark.parametrize(("answer", "said"), [(REFUSED, "refused with 503"), ((404, {}), "HTTP 404.*not now")])
async def test_a_load_that_does_not_run_undisturbed_is_none(gateway, answer, said):
    gateway.stream = lambda n, body: answer
    with pytest.raises(NoLoad, match=said + ".*--load 0"):
        await load_for(gateway, 2, 0.1)


async def test_a_stream_that_the_end_of_the_drill_cuts_has_not_ended(gateway):
    gateway.stream = lambda n, body: events("abc")
    async with Load(gateway.url, None, "tiny-r1", 1) as load:
        await load.undisturbed()
        gateway.delay_s = 0.5
        load.start()
        await asyncio.sleep(0.8)
        await load.stop(0.1)
    [stream] = load.streams
    assert stream.ended_s is None and not stream.broken and len(stream.token_s) == 1

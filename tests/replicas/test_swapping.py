"""The phases of a swap, on a host that does as it is told; and what is made of golden prompts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experts.placement import ShardPlacement
from replicas.core import Probed
from replicas.core_host import ReloadEnded
from replicas.engine_host import EngineFailed
from replicas.messages import Probe, Swap, SwapReport
from replicas.swapping import Judged, Outcome, Swapping, Weights, judge, placed

EVENT_LOOPS = ("asyncio",)
HAD = Weights("v1", "/models/v1", "sum of v1")
SWAP = Swap(id="s1", version="v2", directory="/models/v2", finish_s=7.0)
PROBE = Probe(prompt=(1, 2, 3), answer=(8, 9), max_tokens=4, logprobs=(-1.0, -2.0))


class Host:
    """Reloads one after another as given; its tokens for any probe are 7, 8, 9."""

    def __init__(self, *reloads: ReloadEnded | Exception) -> None:
        self.reloads = list(reloads) or [ReloadEnded("t2", "sum of v2")]
        self.asked: list[tuple[str, str]] = []
        self.probed: list[Probe] = []

    async def reload(self, directory: str, expected: str, limit_s: float) -> ReloadEnded:
        assert limit_s == 100.0
        self.asked.append((directory, expected))
        await asyncio.sleep(0)
        ended = self.reloads.pop(0)
        if isinstance(ended, Exception):
            raise ended
        return ended

    async def probe(self, probes: tuple[Probe, ...], limit_s: float) -> list[Probed]:
        self.probed += probes
        return [Probed((7, 8, 9), (-1.5, -2.5))] * len(probes)


async def idle(_: float) -> None: ...


async def run(
    swap: Swap = SWAP, host: Host | None = None, until_idle: Callable[[float], Awaitable[None]] = idle
) -> tuple[Outcome, list[str]]:
    """How it ended, and the phases that were told on the way."""
    phases: list[str] = []
    swapping = Swapping(swap, host or Host(), HAD, 100.0, lambda report: phases.append(report.phase))
    return await swapping.run(until_idle), phases


async def test_a_swap_goes_through_its_phases() -> None:
    waited: list[float] = []

    async def until_idle(limit_s: float) -> None:
        waited.append(limit_s)

    host = Host()
    outcome, phases = await run(msgspec.structs.replace(SWAP, probes=(PROBE, PROBE)), host, until_idle)
    assert phases in (["finishing", "loading", "probing"], ["finishing", "verifying", "loading", "probing"])
    assert waited == [7.0] and host.asked == [("/models/v2", "")] and len(host.probed) == 2
    assert outcome.serves == Weights("v2", "/models/v2", "sum of v2") and outcome.reloaded == ReloadEnded(
        "t2", "sum of v2"
    )
    report = outcome.report
    assert (report.id, report.version, report.phase, report.detail) == ("s1", "v2", "done", "") and report.ended
    assert (report.exact, report.asked, report.logprob_distance, report.checksum) == (2, 2, 0.5, "sum of v2")
    assert not report.broken and report.seconds > 0


async def test_damaged_files_fail_before_anything_is_touched(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    swap = msgspec.structs.replace(SWAP, directory=str(tmp_path), sha256={"model.safetensors": right})
    host = Host()
    outcome, _ = await run(swap, host)
    assert outcome.report.phase == "done"

    never = asyncio.Event()

    async def busy(_: float) -> None:
        await never.wait()

    for digests, why in (({"model.safetensors": "0" * 64}, "is corrupt"), ({"config.json": right}, "cannot be read")):
        host = Host()
        bad = msgspec.structs.replace(swap, sha256=digests)
        outcome, phases = await asyncio.wait_for(run(bad, host, busy), 5)  # what runs need not end for that
        assert outcome.report.phase == "failed" and why in outcome.report.detail and phases == ["finishing"]
        assert outcome.serves == HAD and outcome.reloaded is None and host.asked == []


async def test_weights_that_are_refused_leave_the_old_ones() -> None:
    refused = ReloadEnded("t2", failure="/models/v2 lacks a tensor", touched=False)
    host = Host(refused)
    outcome, _ = await run(host=host)
    assert outcome.report.phase == "failed" and outcome.report.detail == "/models/v2 lacks a tensor"
    assert outcome.serves == HAD and outcome.reloaded == refused and len(host.asked) == 1 and not outcome.report.broken


async def test_a_reload_that_fails_half_way_is_taken_back() -> None:
    again = ReloadEnded("t3", "sum of v1")
    host = Host(ReloadEnded("t2", failure="no memory", touched=True), again)
    outcome, _ = await run(msgspec.structs.replace(SWAP, checksum="sum of v2"), host)
    assert host.asked == [("/models/v2", "sum of v2"), ("/models/v1", "sum of v1")]
    assert outcome.report.detail == "no memory" and outcome.serves == HAD and outcome.reloaded == again


async def test_without_the_old_weights_it_is_broken() -> None:
    gone = ReloadEnded("t3", failure="the disk is gone", touched=True)
    outcome, _ = await run(host=Host(ReloadEnded("t2", failure="no memory", touched=True), gone))
    assert outcome.report.broken and outcome.report.phase == "failed"
    assert "no memory" in outcome.report.detail and "the disk is gone" in outcome.report.detail


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        ({"min_exact": 2}, "1 of 2 golden prompts gave their answer, and 2 must"),
        ({"max_logprob_distance": 0.4}, "log-probabilities are off by 0.5"),
        ({"min_exact": 1, "max_logprob_distance": 0.5}, None),
    ],
)
async def test_golden_prompts_decide(bounds: dict[str, Any], why: str | None) -> None:
    other = msgspec.structs.replace(PROBE, answer=(7, 8))
    host = Host(ReloadEnded("t2", "sum of v2"), ReloadEnded("t3", "sum of v1"))
    outcome, phases = await run(msgspec.structs.replace(SWAP, probes=(PROBE, other), **bounds), host)
    assert phases[-1] == "probing" and (outcome.report.exact, outcome.report.asked) == (1, 2)
    if why is None:
        assert outcome.report.phase == "done" and outcome.serves.version == "v2"
    else:
        assert why in outcome.report.detail and outcome.serves == HAD and host.asked[-1] == ("/models/v1", "sum of v1")


async def test_the_cores_death_is_the_replicas() -> None:
    with pytest.raises(EngineFailed):
        await run(host=Host(EngineFailed("it died")))


def test_what_is_made_of_probes() -> None:
    assert judge([], []) == Judged()
    silent = Probe(prompt=(1,))
    assert judge([silent], [Probed((1,), ())]) == Judged(0, 0, None)
    endless = Probed((8, 9, 8, 9, 1), ())  # it goes on after the answer
    assert judge([PROBE, PROBE], [endless, Probed((8, 9), (-1.0, -5.0))]) == Judged(1, 2, 1.5)
    assert judge([PROBE], [Probed((9,), ())]).exact == 0
    wanted = msgspec.structs.replace(SWAP, probes=(PROBE,), max_logprob_distance=1.0)
    assert "told no log-probabilities" in judge([PROBE], [endless]).fails(wanted)
    assert "off by nan" in Judged(0, 0, float("nan")).fails(wanted)


def test_experts_stay_where_they_were_unless_the_core_says_otherwise() -> None:
    before, after = ((ShardPlacement(0, 0, 1, pid, {}, 0),) for pid in (1, 2))
    report = SwapReport(id="s1", version="v2", phase="failed")
    assert placed(Outcome(report, HAD, None), before) == before
    assert placed(Outcome(report, HAD, ReloadEnded("t2", failure="refused")), before) == before
    assert placed(Outcome(report, HAD, ReloadEnded("t2", "sum", after)), before) == after

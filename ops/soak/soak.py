"""`moray soak`: the undisturbed pass, the disturbed phase, and the accounts at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import uvloop

from ops.own_session import own_session
from ops.soak.answers import Broken
from ops.soak.catalogue import catalogue
from ops.soak.chaos import schedule
from ops.soak.client import Client
from ops.soak.leaks import Levels, is_quiet, leaked_handles, leaked_kv, leaked_processes, leaked_tickets
from ops.soak.load import Load, undisturbed
from ops.soak.session import SoakedSession, SoakFailed, levels
from ops.soak.strikes import Chaos, NotMended

MODEL = "tiny-r1"
HANG_TIMEOUT_S = 5  # the embedded model's slowest honest step takes a fraction of a second
SETTINGS = {
    "model.path": "null",
    "model.store": "null",
    "model.version": "null",
    "experts.expert_parallel": "1",
    "engine.host": "process",
    "model.tool_call_parser": "hermes",
    "replicas.hang_timeout_s": str(HANG_TIMEOUT_S),
    # A lone replica may be lost while the other loads: that is to cost time, not answers.
    "router.no_replica_wait_s": "120",
    "ray.dashboard": "false",
    "gateway.keys_file": "null",
}
PROGRESS_S = 15.0
STEADY_S = 6.0  # kept-alive connections are closed after 5
SETTLE_LIMIT_S = 60.0  # for requests to end, and for descriptors that their owner is about to close
_SHOWN = 3

Report = Callable[[str], None]


def measure(minutes: float, seed: int, replicas: int, concurrency: int, report: Report) -> dict[str, Any]:
    """The whole soak; returns its figures (see `moray soak --help`). Raises SoakFailed if there is nothing to tell."""
    report(f"starting a session with {replicas} replicas")
    with own_session(SETTINGS | {"replicas.count": str(replicas)}) as own:
        session = SoakedSession(own)
        figures: dict[str, Any] = uvloop.run(_soak(session, minutes, seed, replicas, concurrency, report))
        report("stopping the session")
        figures["leaked"]["processes"] += len(session.down())
    return {"minutes": minutes, "seed": seed, "replicas": replicas, "concurrency": concurrency} | figures


def failures(figures: Mapping[str, Any]) -> list[str]:
    """Names of the figures that a soak fails for: what must be zero and is not, or the other way round. Pure."""
    zero = ("broken_streams", "wrong_answers", "not_mended")
    found = [name for name in zero if figures[name]]
    found += [f"leaked.{name}" for name, n in figures["leaked"].items() if n]
    # A soak that disturbed nobody proves nothing.
    return found + [name for name in ("requests", "resumed", "disturbances") if not figures[name]]


async def _soak(
    session: SoakedSession, minutes: float, seed: int, replicas: int, concurrency: int, report: Report
) -> dict[str, Any]:
    asks = catalogue(MODEL)
    report(f"asking {len(asks)} requests undisturbed, three times")
    try:
        async with Client(session.url) as client:
            right, unfit = await undisturbed(client, asks, (2, concurrency, 2 * concurrency), seed)
    except Broken as broken:
        raise SoakFailed(str(broken)) from broken
    for name, words in unfit.items():
        report(f"dropped, for it is not the same twice even undisturbed: {name}: {words}")
    asks = [ask for ask in asks if ask.name not in unfit]
    before, _ = await _at_rest(session, None)

    chaos = Chaos(session, replicas, schedule(seed), report)
    async with Client(session.url) as client:
        load = Load(client, asks, right, seed)
        not_mended = await _disturbed(load, chaos, 60 * minutes, concurrency, report)
    report("the load has ended; looking at what is left")
    after, status = await _at_rest(session, before)

    tally, gateway = load.tally, status["gateway"]
    for failure in (*tally.broken[:_SHOWN], *tally.wrong[:_SHOWN]):
        report(failure.in_full())
    handles, extra = leaked_handles(before, after), leaked_processes(before, after)
    if handles or extra:
        report(f"above the level before: descriptors {handles}, processes {extra}")
    return {
        "requests": tally.requests,
        "tokens": tally.tokens,
        "aborted": tally.aborted,
        "resumed": gateway["resumed"],
        "moved": gateway["moved"],
        "disturbances": sum(chaos.struck.values()),
        "kills": {kind.value: n for kind, n in sorted(chaos.struck.items())},
        "broken_streams": len(tally.broken),
        "wrong_answers": len(tally.wrong),
        "not_mended": not_mended,
        "leaked": {
            "kv": leaked_kv(status),
            "tickets": leaked_tickets(status),
            "handles": sum(handles.values()),
            "processes": sum(extra.values()),
        },
        "retried": client.refused,
        "quarantined": tally.quarantined,
        "longest_resume_gap_s": round(gateway["longest_resume_gap_s"], 2),
        "longest_silence_s": round(client.longest_silence_s, 2),
        "dropped_bodies": len(unfit),
        "handles": {role: [before.handles.get(role, 0), n] for role, n in after.handles.items()},
        "gateway_mib": [round(before.gateway_mib), round(after.gateway_mib)],
    }


async def _disturbed(load: Load, chaos: Chaos, seconds: float, concurrency: int, report: Report) -> str:
    """Load and disturbances side by side; says what did not mend, if anything."""
    began = time.monotonic()
    working = asyncio.ensure_future(load.run(concurrency))
    telling = asyncio.ensure_future(_tell(load, chaos, began, report))
    not_mended = ""
    try:
        await chaos.run(began + seconds)
    except NotMended as error:
        not_mended = str(error)
        report(f"NOT MENDED: {not_mended}")
    finally:
        load.stop()
        telling.cancel()
    await working
    return not_mended


async def _at_rest(session: SoakedSession, before: Levels | None) -> tuple[Levels, dict[str, Any]]:
    """Waits until nothing runs, levels are steady and none is above that before; for as long as the limits allow."""
    began = steady_since = time.monotonic()
    last: Levels | None = None
    while True:
        status, now = await session.status(), time.monotonic()
        if status is not None:
            held = levels(session, status)
            if last is None or held.handles != last.handles or not is_quiet(status):
                steady_since = now
            last = held
            above = before is not None and (leaked_handles(before, held) or leaked_processes(before, held))
            if (now - steady_since >= STEADY_S and not above) or now - began > SETTLE_LIMIT_S:
                return held, status
        elif now - began > SETTLE_LIMIT_S:
            raise SoakFailed("the router does not answer any more")
        await asyncio.sleep(1.0)


async def _tell(load: Load, chaos: Chaos, began: float, report: Report) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        tally = load.tally
        report(
            f"{time.monotonic() - began:.0f} s: {tally.requests:,} requests, {tally.tokens:,} tokens, "
            f"{tally.aborted} aborted, {sum(chaos.struck.values())} disturbances; {len(tally.broken)} broken, "
            f"{len(tally.wrong)} wrong, {tally.quarantined} quarantined"
        )

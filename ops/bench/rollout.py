"""`moray bench rollout`: a version rolled out under load, then bad ones that have to be taken back by themselves.

One session of two replicas and one load from beginning to end. Every answer is compared: with what its version answers
undisturbed, which is asked before the first rollout and behind it. The load is on while bad versions are rolled out, so
what is counted as failed, truncated or mixed is of all of it; a bad version's own answers are not known beforehand and
are counted as uncompared.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from cluster.config import load as load_settings
from experts.tiny_r1 import store_path
from experts.versions import BadVersion, Golden, find
from ops.bench.bad_versions import Fault, make
from ops.bench.direct_engine import BenchFailed
from ops.bench.rollout_answers import Exchange, References, WayBack, tally, way_back
from ops.bench.rollout_load import Load, asks
from ops.bench.rollout_watch import Ended, Eye, Sight, canary_share, extra_replicas, replica_seconds, settled
from ops.drill.strikes import Hold, LocalArm
from ops.gateway_calls import Refused
from ops.models.add import add
from ops.own_session import OwnSession, own_session
from ops.rollout.client import Client
from ops.soak.answers import Answer

OLD, NEW = "v1", "v2"
REPLICAS = 2
PASSES = (8, 3)  # concurrencies at which the right answers are asked for: what differs between them is not compared
LOOK_EVERY_S = 0.2
LIMIT_S = 600.0  # of one rollout
SETTLE_LIMIT_S = 60.0  # of all replicas after it
SLOW = Hold(stopped_s=0.06, running_s=0.02)  # a quarter of the CPU

Report = Callable[[str], None]


class Trial(NamedTuple):
    """A bad version, and whether its golden prompts are asked, which keep it from all traffic."""

    fault: Fault
    golden: bool

    @property
    def name(self) -> str:
        return self.fault if self.golden or self.fault in (Fault.CRASH_AT_LOAD, Fault.SLOW) else f"{self.fault}-unasked"


# Faults that golden prompts find are found before a client sees them; the traffic's gates have to find the others, and
# what has no golden prompts.
TRIALS = (
    Trial(Fault.SWAPPED_EXPERTS, golden=True),
    Trial(Fault.SHIFTED_SCALES, golden=True),
    Trial(Fault.ENDLESS, golden=True),
    Trial(Fault.ENDLESS, golden=False),
    Trial(Fault.SLOW, golden=True),
    Trial(Fault.CRASH_AT_LOAD, golden=True),
)


@dataclass(frozen=True)
class Options:
    concurrency: int
    share: float  # of new requests, in the one step of the canary
    min_samples: int
    step_s: float
    deadline_s: float
    faults: tuple[str, ...]  # names of the trials

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "steps": [self.share],
            "min_samples": self.min_samples,
            "step_s": self.step_s,
            "settle_s": 2.0,
            "deadline_s": self.deadline_s,
            "finish_s": 60.0,  # longer than the longest answer takes: what is cut then is a fault
        }


@dataclass
class Rolled:
    """One rollout as it was seen. Seconds of the load's clock."""

    began_s: float
    sights: list[Sight]
    ended: Ended
    over_s: float = 0.0  # when one version was served by all replicas again


def measure(options: Options, report: Report) -> dict[str, Any]:
    """Runs it; the figures are told in `moray bench rollout --help`. Raises BenchFailed, NoLoad, NotStarted."""
    store = Path(tempfile.mkdtemp(prefix="moray-bench-versions-"))
    try:
        report("making the versions")
        fill(store, chosen(options.faults), store_path())
        settings = {
            "model.store": str(store),
            "model.version": OLD,
            "model.dtype": "float32",  # as the golden prompts' log-probabilities are: bfloat16 is 0.08 off
            "replicas.count": str(REPLICAS),
            "experts.expert_parallel": "1",
            "router.ttft_slo_s": "60",  # nobody is shed: a slow version is to be judged by its latency
            "ray.dashboard": "false",
            "gateway.keys_file": "null",  # whatever the environment says: the load carries no key
        }
        served = load_settings(None, os.environ, settings).settings.model.served_name
        report("starting the session")
        with own_session(settings) as session:
            return asyncio.run(_measure(session, served, options, report))
    finally:
        shutil.rmtree(store, ignore_errors=True)


def chosen(names: Sequence[str]) -> list[Trial]:
    """The trials of these names, in their order; none: all. Raises BenchFailed."""
    by_name = {trial.name: trial for trial in TRIALS}
    if unknown := [name for name in names if name not in by_name]:
        raise BenchFailed(f"there is no bad version {unknown[0]}; take some of {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(TRIALS)


def fill(store: Path, trials: Sequence[Trial], embedded: Path) -> None:
    """A store of the two versions of that one, and of bad ones that are made of the newer. Raises BenchFailed."""
    golden: tuple[Golden, ...] = ()
    for name in (OLD, NEW):
        try:
            version = find(embedded, name)
        except BadVersion as why:
            raise BenchFailed(f"there are no two versions to roll: {why}") from None
        assert version.manifest is not None
        golden = version.manifest.golden
        shutil.copytree(version.directory, store / name)
    if not golden:
        raise BenchFailed(f"{NEW} has no golden prompts: bad versions could not be told from it")
    for trial in trials:
        with tempfile.TemporaryDirectory(prefix="moray-bench-bad-") as scratch:
            make(trial.fault, store / NEW, Path(scratch) / trial.fault)
            made = golden if trial.golden else ()
            add(Path(scratch) / trial.fault, store, trial.name, parent=NEW, notes="made bad on purpose", golden=made)


async def _measure(session: OwnSession, served: str, options: Options, report: Report) -> dict[str, Any]:
    async with Load(session.url, asks(served)) as load, Eye(session.url, session.id) as eye:
        await _settle(eye, OLD)
        report(f"asking {OLD} what is right")
        version, right = await load.references(PASSES)
        if version != OLD:
            raise BenchFailed(f"{version} answers, where {OLD} is served")
        references: dict[str, dict[str, Answer]] = {OLD: right}
        load.start(options.concurrency)
        await asyncio.sleep(options.step_s)  # a load that runs, not one that begins
        report(f"rolling {NEW} out under load")
        rolled = await _roll(session, eye, NEW, options)
        if rolled.ended.phase != "done":
            raise BenchFailed(f"{NEW} was not rolled out ({rolled.ended.phase}): {rolled.ended.why}")
        rolled.over_s = await _settle(eye, NEW)
        back: dict[str, dict[str, Any]] = {}
        for trial in chosen(options.faults):
            report(f"rolling {trial.name} out")
            back[trial.name] = await _try(session, eye, load, trial, options)
        await load.stop()
        report(f"asking {NEW} what is right")
        references[NEW] = (await load.references(PASSES))[1]
        return figures(load.exchanges, references, rolled, back)


async def _try(session: OwnSession, eye: Eye, load: Load, trial: Trial, options: Options) -> dict[str, Any]:
    brake = asyncio.ensure_future(_brake(eye, trial.name)) if trial.fault is Fault.SLOW else None
    try:
        rolled = await _roll(session, eye, trial.name, options)
    finally:
        if brake is not None:
            brake.cancel()
            await asyncio.gather(brake, return_exceptions=True)
    rolled.over_s = await _settle(eye, NEW)
    found = way_back(load.exchanges, trial.name, rolled.began_s, rolled.over_s)
    return {"outcome": rolled.ended.phase, "why": rolled.ended.why, **_figures_of(found, rolled, options)}


def _figures_of(found: WayBack, rolled: Rolled, options: Options) -> dict[str, Any]:
    return {
        "rollback_s": None if found.rollback_s is None else round(found.rollback_s, 2),
        "bad_share": round(found.bad_share, 4),
        "canary_share": options.share,
        "given_share": round(canary_share(rolled.sights), 4),
        "answered": found.answered,
        "requests": found.requests,
        "seconds": round(rolled.over_s - rolled.began_s, 2),
        "extra_replicas": extra_replicas(rolled.sights, REPLICAS),
    }


async def _roll(session: OwnSession, eye: Eye, version: str, options: Options) -> Rolled:
    """Starts it and looks until it has ended. Raises BenchFailed."""
    began_s = time.monotonic()
    try:
        report = await asyncio.to_thread(Client(session.url).start, {"version": version, **options.spec})
    except Refused as refused:
        raise BenchFailed(f"the rollout to {version} was not begun: {refused}") from None
    rollout = str(report["current"]["id"])
    sights: list[Sight] = []
    while (ended := eye.ended(rollout)) is None:
        if time.monotonic() - began_s > LIMIT_S:
            why = (eye.report.get("current") or {}).get("why")
            raise BenchFailed(f"the rollout to {version} did not end within {LIMIT_S:g} s: {why}")
        if (sight := await eye.look()) is not None:
            sights.append(sight)
        await asyncio.sleep(LOOK_EVERY_S)
    return Rolled(began_s, sights, ended)


async def _settle(eye: Eye, version: str) -> float:
    """Waits until all replicas serve that version; when that was. Raises BenchFailed."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while time.monotonic() < deadline:
        sight = await eye.look()
        if sight is not None and settled(sight, version, REPLICAS):
            return sight.at_s
        await asyncio.sleep(LOOK_EVERY_S)
    there = {replica["id"]: (replica.get("version"), replica["state"]) for replica in eye.status.get("replicas", ())}
    raise BenchFailed(f"not all of {REPLICAS} replicas served {version} within {SETTLE_LIMIT_S:g} s: {there}")


async def _brake(eye: Eye, version: str) -> None:
    """Slows each engine that serves that version, as long as it is on trial."""
    arms: dict[str, LocalArm] = {}
    try:
        while True:
            on_trial = (eye.report.get("current") or {}).get("phase") in ("canary", "promoting")
            for replica in eye.status.get("replicas", ()):
                serves = on_trial and replica.get("version") == version and replica["state"] == "ready"
                if serves and replica["id"] not in arms:
                    arms[replica["id"]] = arm = LocalArm(replica)
                    await asyncio.to_thread(arm.hold, SLOW)
                elif not serves and replica["id"] in arms:
                    arms.pop(replica["id"]).let_go()
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        for arm in arms.values():
            arm.let_go()


def figures(
    exchanges: Sequence[Exchange], references: References, rolled: Rolled, back: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Of the whole run, as `moray bench rollout --help` tells them. `back`: what `_try` says, by bad version."""
    everything = tally(exchanges, references)
    good = tally((one for one in exchanges if one.began_s < rolled.over_s), references)
    counts = everything.figures()
    timed = [entry["rollback_s"] for entry in back.values() if entry["rollback_s"] is not None]
    worst = max(back.values(), key=lambda entry: entry["bad_share"], default=None)
    return {
        "requests": counts.pop("requests"),
        **counts,
        "extra_replicas": max(
            [extra_replicas(rolled.sights, REPLICAS), *(entry["extra_replicas"] for entry in back.values())]
        ),
        "rollback_s": max(timed, default=None),
        "bad_share": worst["bad_share"] if worst else None,
        "canary_share": worst["canary_share"] if worst else None,
        "rolled_back": sum(entry["outcome"] == "rolled-back" for entry in back.values()),
        "bad_versions": len(back),
        "in_place": {
            "seconds": round(rolled.over_s - rolled.began_s, 2),
            "replica_s": [round(seconds, 2) for seconds in replica_seconds(rolled.sights)],
            "longest_token_gap_s": round(good.longest_gap_s, 3),
            **good.figures(),
            "answered": dict(sorted(good.by_version.items())),
        },
        "bad": back,
        "wrong": everything.wrong[:20],
    }


def table(found: dict[str, Any]) -> list[Table]:
    """The same for a reader."""
    whole = Table(title="moray bench rollout", show_header=False)
    for name, value in found.items():
        if not isinstance(value, dict | list):
            whole.add_row(name, str(value))
    for name, value in found["in_place"].items():
        whole.add_row(f"in place: {name}", str(value))
    bad = Table(title="bad versions")
    columns = ("rollback_s", "bad_share", "answered", "requests", "seconds")
    for column in ("version", *columns):
        bad.add_column(column)
    for name, entry in found["bad"].items():
        bad.add_row(name, *(str(entry[column]) for column in columns))
    why = Table(title="what became of them", show_header=False, show_lines=True)
    for name, entry in found["bad"].items():
        why.add_row(name, f"{entry['outcome']}: {entry['why']}")
    wrong = Table(title="wrong answers", show_header=False)
    for line in found["wrong"]:
        wrong.add_row(line)
    return [whole, bad, why, *([wrong] if found["wrong"] else [])]

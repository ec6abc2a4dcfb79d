"""The replica: a Ray Serve deployment that hosts one engine core and speaks for it to the router.

Serve starts, places, watches and stops it; requests do not come through Serve but from the gateways, straight to the
core (see `wire`). This file imports no vLLM: with the core in its own process, neither does this one.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray import serve

from experts.load import LoadWindow
from experts.model_spec import expert_share
from replicas import assignment
from replicas.assignment import Assignment
from replicas.core import CoreLoad
from replicas.core_host import IDLE_LOOK_S, Routed
from replicas.engine_host import EngineFailed, EngineHost
from replicas.engine_spec import EngineSpec
from replicas.expert_metrics import ExpertMetrics
from replicas.gpus import Gpus
from replicas.messages import ExpertLoad, LoadReport, ReplicaInfo, ReportAnswer, Swap, SwapReport
from replicas.replica_metrics import ReplicaMetrics
from replicas.router_handle import find_router
from replicas.swapping import Outcome, Swapping, Weights, placed

logger = logging.getLogger("ray.serve")

HEARTBEAT_S = 1.0  # an unchanged load is reported this often: silence means that the replica is gone
SETTLE_S = 0.02  # a change is told this much later: a call through Ray would take CPU from the first step of what came
LAST_WORDS_S = 2.0  # that a replica without usable weights has to tell why it ends
KEPT_EVENTS = 100_000  # of KV blocks, while the router is away: older ones are as good as forgotten


class Replica:
    """One engine core: one group of expert shards on one node."""

    async def __init__(self, spec_json: str) -> None:  # type: ignore[misc]  # Serve awaits it
        spec = msgspec.json.decode(spec_json, type=EngineSpec)
        self._spec = assigned(spec, await asyncio.to_thread(assignment.read, spec.model))
        listen = self._spec.listen or ray.util.get_node_ip_address()
        started = time.monotonic()
        try:
            self._host, ready = await EngineHost.start(self._spec, listen)
        except EngineFailed as error:
            logger.error("The engine core did not start: %s\n%s", error, error.detail)
            raise
        load_s = time.monotonic() - started
        logger.info("Engine core ready after %.1f s in process %d.", load_s, ready.pid)
        self._info = ReplicaInfo(
            replica_id=serve.get_replica_context().replica_id.unique_id,
            epoch=time.time_ns(),
            host=listen,
            port=ready.port,
            token=ready.token,
            model=self._spec.model,
            version=self._spec.version,
            directory=str(self._spec.engine_args["model"]),
            checksum=ready.checksum,
            pid=os.getpid(),
            engine_pid=ready.pid,
            engine_host=self._spec.host,
            device=self._spec.device,
            capacity=ready.capacity,
            shards=ready.shards,
            load_s=load_s,
            expert_share=_expert_share(Path(self._spec.engine_args["model"])),
            actor_name=ray.get_runtime_context().get_actor_name() or "",
        )
        self._load = CoreLoad(0, 0, 0.0)
        self._heard = time.monotonic()  # from the core
        self._stored: deque[int] = deque(maxlen=KEPT_EVENTS)
        self._removed: deque[int] = deque(maxlen=KEPT_EVENTS)
        self._routed = LoadWindow()
        self._experts: ExpertLoad | None = None  # not told to the router yet
        self._swap: SwapReport | None = None  # under way, or ended and not told to the router yet
        self._swapping: asyncio.Task[None] | None = None
        self._last_swap: SwapReport | None = None  # how it ended
        self._expert_metrics = ExpertMetrics()
        self._metrics = ReplicaMetrics(self._info, Gpus(self._spec.device == "cuda"))
        self._changed = asyncio.Event()  # there is something to tell the router
        self._step_ended = asyncio.Event()  # the core has told its load
        self._host.watch(self._on_load, self._on_failure, self._on_routed)
        self._reporting = asyncio.create_task(self._report())

    def _on_load(self, load: CoreLoad) -> None:
        self._load = load
        self._heard = time.monotonic()
        self._stored.extend(load.stored)
        self._removed.extend(load.removed)
        self._changed.set()
        self._step_ended.set()

    def _on_routed(self, routed: Routed) -> None:
        tokens, seconds = self._routed.add(time.monotonic(), routed.tokens)
        self._expert_metrics.set(tokens, routed.shards or self._info.shards)
        layers, experts = tokens.shape
        self._experts = ExpertLoad(
            seconds=seconds,
            layers=layers,
            experts=experts,
            tokens=tokens.astype("<i8").tobytes(),
            shards=routed.shards,
        )
        self._changed.set()

    def _silent_for_s(self) -> float:
        """How long the core has said nothing, beyond what is its way: it reports on each change, and a step is one;
        with nothing to do it looks up every IDLE_LOOK_S. While it is given other weights it says nothing.
        """
        if self._swap is not None and self._swap.phase in ("loading", "probing"):  # which have limits of their own
            return 0.0
        silent_s = time.monotonic() - self._heard
        return silent_s if self._load.running + self._load.waiting else max(0.0, silent_s - 2 * IDLE_LOOK_S)

    def _hangs(self) -> bool:
        return self._silent_for_s() > self._spec.hang_timeout_s

    def _is_quiet(self) -> bool:
        """For half the time of a hang: it is out of the router's sight before gateways give up their streams on it, and
        stays so. To join again while it hangs would hang them twice.
        """
        return self._silent_for_s() > self._spec.hang_timeout_s / 2

    def _on_failure(self, failure: EngineFailed) -> None:
        """The core is dead: so is this replica. Its process ends, which Serve's next health check sees and mends."""
        logger.error("The engine core died: %s\n%s", failure, failure.detail)
        logging.shutdown()
        os._exit(1)

    async def _report(self) -> None:
        """Keeps the router informed, for as long as this replica lives, through any restart of the router."""
        router: Any = None
        joined = False
        while True:
            try:
                if router is None:
                    router, joined = await find_router(self._spec.model), False
                if not joined and not self._is_quiet():
                    await router.join.remote(self._info)
                    joined = True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), HEARTBEAT_S)
                    await asyncio.sleep(SETTLE_S)
                self._changed.clear()
                self._metrics.tell(self._load)
                if self._is_quiet() or not joined:
                    continue
                report = self._load_report()
                answer: ReportAnswer | None = await router.report.remote(report)
                if answer is None:
                    joined = False
                    self._changed.set()  # what was in the report is still to be told
                else:
                    self._take(answer, report)
            except (ray.exceptions.RayError, TimeoutError) as error:
                logger.warning("The router does not answer (%s); trying again.", type(error).__name__)
                router = None
                await asyncio.sleep(0.2)

    def _take(self, answer: ReportAnswer, told: LoadReport) -> None:
        """What the router answered to a report."""
        draining = answer.state == "draining"
        if answer.state != "swapping" and self._info.draining != draining:  # told to a router that is started anew
            self._info = msgspec.structs.replace(self._info, draining=draining)
        if told.swap is not None and told.swap.ended and told.swap is self._swap:
            self._swap = None
        swap = answer.swap
        if swap is None or self._info.swapping:
            return
        if self._last_swap is not None and self._last_swap.id == swap.id:  # a router that is new has not heard of it
            self._tell_swap(self._last_swap)
        else:
            self._info = msgspec.structs.replace(self._info, swapping=True)
            self._swapping = asyncio.create_task(self._carry_out(swap))

    async def _carry_out(self, swap: Swap) -> None:
        info = self._info
        logger.info("Swapping version %r for %r from %s.", info.version, swap.version, swap.directory)
        has = Weights(info.version, info.directory, info.checksum)
        swapping = Swapping(swap, self._host, has, self._spec.start_timeout_s, self._tell_swap)
        try:
            await self._serve(await swapping.run(self._let_end_what_runs))
        except Exception as error:  # whatever it is: a replica must not stay out of rotation and say nothing
            self._on_failure(
                error if isinstance(error, EngineFailed) else EngineFailed(f"the swap broke off: {error!r}")
            )

    def _tell_swap(self, report: SwapReport) -> None:
        self._swap = report
        self._changed.set()

    async def _serve(self, outcome: Outcome) -> None:
        """Takes requests again, with what the core has now: another life, since nothing said to the last one counts."""
        report, serves, reloaded = outcome
        self._last_swap = report
        if report.phase == "failed":
            logger.error("The swap to version %r failed: %s.", report.version, report.detail)
        if report.broken:
            self._tell_swap(report)
            await asyncio.sleep(LAST_WORDS_S)
            self._on_failure(EngineFailed(report.detail))
        if reloaded is None:  # the core was not touched, nobody was cut off
            self._info = msgspec.structs.replace(self._info, swapping=False)
            self._tell_swap(report)
            return
        self._info = msgspec.structs.replace(
            self._info,
            epoch=time.time_ns(),
            token=reloaded.token,
            version=serves.version,
            directory=serves.directory,
            checksum=reloaded.checksum or serves.checksum,
            shards=placed(outcome, self._info.shards),
            swapping=False,
        )
        self._heard = time.monotonic()
        self._stored.clear()
        self._removed.clear()
        self._routed, self._experts = LoadWindow(), None  # what the old weights' experts were given
        self._metrics.serves(serves.version)
        self._tell_swap(report)  # with a report that the router does not know, so that it asks to join
        logger.info("Serving version %r.", serves.version)

    def _load_report(self) -> LoadReport:
        load, info = self._load, self._info
        experts, self._experts = self._experts, None
        return LoadReport(
            replica_id=info.replica_id,
            epoch=info.epoch,
            running=load.running,
            waiting=load.waiting,
            kv_used=load.kv_used,
            work=load.work,
            stored=_taken(self._stored),
            removed=_taken(self._removed),
            experts=experts,
            swap=self._swap,
        )

    def check_health(self) -> None:
        """Ray Serve asks this; an exception gets the replica restarted."""
        if self._host.failure is not None:
            raise self._host.failure
        if self._hangs():
            raise EngineFailed(f"the engine core has said nothing for {time.monotonic() - self._heard:.0f} s")

    async def __del__(self) -> None:
        """Serve's graceful shutdown: take no more, let what runs end, for drain_s at most; the rest resumes."""
        host = getattr(self, "_host", None)
        if host is None:  # it never started
            return
        self._reporting.cancel()
        if self._swapping is not None:
            self._swapping.cancel()
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            router = await find_router(self._spec.model, timeout_s=1.0)
            await router.leave.remote(self._info.replica_id, self._info.epoch)
        await self._let_end_what_runs(self._spec.drain_s)
        # A core that hangs does not hear that it is to stop.
        await asyncio.to_thread(host.kill if self._hangs() else host.stop)

    async def _let_end_what_runs(self, limit_s: float) -> None:
        """For so many seconds at most, and not if it hangs: its streams have gone on elsewhere, and its place is
        wanted.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._load.running + self._load.waiting > 0 and not self._hangs():
                    self._step_ended.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._step_ended.wait(), HEARTBEAT_S)


def assigned(spec: EngineSpec, assigned: Assignment | None) -> EngineSpec:
    """What a starting replica is to load. EngineFailed: an assignment that names no directory for its version."""
    if assigned is None:
        return spec
    version = assigned.new_replica
    if (directory := assigned.directories.get(version)) is None:
        if version == spec.version:
            return spec
        raise EngineFailed(f"version {version!r} is assigned to new replicas of {spec.model}, and no directory for it")
    return msgspec.structs.replace(spec, version=version, engine_args=spec.engine_args | {"model": directory})


def _expert_share(model: Path) -> float:
    """As in `ReplicaInfo`. What it is for does without: no config that cannot be read stops a replica."""
    try:
        return expert_share(json.loads((model / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _taken(events: deque[int]) -> tuple[int, ...]:
    taken = tuple(events)
    events.clear()
    return taken

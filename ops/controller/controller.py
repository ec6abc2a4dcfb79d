"""The controller: one Ray actor per model that watches it. I/O only; what it decides is decided in pure modules.

Gateways push a batch a second (`reporter`), the router is asked once a second. `Watch` makes observations of both,
`Monitor` alarms of these, `decide` steps to heal a replica. What there is to tell is stored first and told then: when
Ray restarts this actor, it goes on where it was, and tells nothing twice. Rollouts go on beside it (`ops.rollout`).
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import ray

from cluster.draining import DrainRequest
from cluster.vitals import Vitals
from ops.anomaly.alarms import Event, Latches
from ops.anomaly.monitor import Monitor
from ops.anomaly.observations import ExpertReport, Observation
from ops.controller import news as told
from ops.controller.healing import DRAIN, HealingState, ReplicaState, Step, decide
from ops.controller.metrics import Metrics
from ops.controller.news import Change, Healing, News
from ops.controller.recorder import Recorder
from ops.controller.reports import Batch
from ops.controller.sinks import Alertmanager, Log, Sink, Webhook, poster
from ops.controller.spec import ControllerSpec
from ops.controller.store import FileStore, GcsStore, Store
from ops.controller.watch import Known, Watch, named
from ops.rollout.commands import Refused
from ops.rollout.ledger import By
from ops.rollout.start import engine_of
from replicas.router_handle import find_router

logger = logging.getLogger("moray.controller")

LOOK_EVERY_S = 1.0
ANSWER_S = 2.0  # in which router and Ray answer, or count as away
EXPERTS_EVERY_S = 30.0  # they are told of the last minute
SAVE_EVERY_S = 10.0  # what is learned; alarms are stored as they come
KEPT_RECENT = 100
SERVE_NAMESPACE = "serve"  # of Ray Serve's actors
LEDGER, LEARNED = "ledger", "learned"


class Ledger(msgspec.Struct, kw_only=True):
    """What must be exact after a restart, stored with each change. Small; what is learned is stored apart, later."""

    latches: Latches
    known: dict[str, Known]
    healing: HealingState
    changes: list[Change] = []
    healings: list[Healing] = []
    undelivered: dict[str, list[News]] = {}  # by sink


class Controller:
    def __init__(self, spec: ControllerSpec) -> None:
        self._spec = spec
        self._store: Store = FileStore(Path(spec.state_path), spec.model) if spec.state_path else GcsStore(spec.model)
        self._recorder = Recorder(Path(spec.record_path), spec.model) if spec.record_path else None
        self._is_ready = asyncio.Event()
        self._running = asyncio.get_event_loop().create_task(self._run())
        self._running.add_done_callback(_die)

    # -- what gateways call -------------------------------------------------------------------------------------------

    async def observe(self, batch: Batch) -> None:
        """A gateway's last second."""
        await self._is_ready.wait()
        now_s, batch = time.time(), self._watch.unheard(batch)
        self._rollouts.take(now_s, batch)
        self._see(self._watch.take(now_s, batch))

    async def alarms(self) -> dict[str, Any]:
        """As /moray/alarms answers."""
        await self._is_ready.wait()
        lag_s = self._watch.lag_s(time.time())
        return {
            "alarms": [msgspec.to_builtins(alarm) for alarm in self._monitor.raised],
            "recent": [told.recent(change) for change in self._changes],
            "healing": [told.done(healing) for healing in self._healings],
            "watching": True,
            "lag_s": lag_s,
            "pid": os.getpid(),
        }

    async def history(self) -> dict[str, Any]:
        """As /moray/history answers."""
        await self._is_ready.wait()
        return self._watch.history.report(time.time())

    async def serves(self) -> str:
        """The version that is served, once replicas can read which one; "": the model is none."""
        await self._is_ready.wait()
        return self._rollouts.stable

    async def rollouts(self) -> dict[str, Any]:
        """As GET /moray/rollouts answers."""
        await self._is_ready.wait()
        return self._rollouts.report()

    async def rollout_start(self, asked: dict[str, Any], *by: str) -> dict[str, Any]:
        """`by`: who asks, and from where. Answers as `rollouts`, or {"refused": why}; so do the next two."""
        return await self._order(self._rollouts.orders.start(asked, By(*by)))

    async def rollout_command(self, command: str, *by: str) -> dict[str, Any]:
        return await self._order(self._rollouts.orders.command(command, By(*by)))

    async def rollout_undo(self, gated: bool, *by: str) -> dict[str, Any]:
        return await self._order(self._rollouts.orders.undo(gated, By(*by)))

    async def rollout_audit(self, count: int) -> dict[str, Any]:
        await self._is_ready.wait()
        return {"entries": await self._rollouts.ledger.entries(count)}

    async def _order(self, order: Coroutine[Any, Any, None]) -> dict[str, Any]:
        await self._is_ready.wait()
        try:
            await order
        except Refused as why:
            return {"refused": str(why)}
        return self._rollouts.report()

    # -- the watching -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        spec = self._spec
        self._rollouts = await engine_of(spec.model, spec.rollouts, self._store, lambda: self._healing.in_hand)
        ledger = await self._restore()
        self._metrics = Metrics(self._spec.model)
        for alarm in self._monitor.raised:  # gauges begin anew with the process
            self._metrics.stands(alarm, True)
        self._news: list[News] = []  # not told yet
        self._has_news, self._storing = asyncio.Event(), asyncio.Lock()
        self._vitals: Vitals | None = None
        async with httpx.AsyncClient() as client, asyncio.TaskGroup() as tasks:
            self._sinks = self._make_sinks(client, ledger)
            for sink in self._sinks:
                tasks.create_task(sink.run())
            tasks.create_task(self._tell())
            tasks.create_task(self._look_at_experts())
            tasks.create_task(self._save_what_is_learned())
            tasks.create_task(self._rollouts.run())
            self._is_ready.set()
            while True:
                began = time.monotonic()
                await self._look()
                await asyncio.sleep(max(LOOK_EVERY_S - (time.monotonic() - began), 0.0))

    async def _restore(self) -> Ledger | None:
        """Takes up what the controller before knew; None: there was none."""
        self._monitor, ledger = Monitor(self._spec.limits), None
        try:
            if learned := await asyncio.to_thread(self._store.get, LEARNED):
                self._monitor = Monitor.restored(learned, self._spec.limits)
                self._monitor.was_away()
            if stored := await asyncio.to_thread(self._store.get, LEDGER):
                ledger = msgspec.json.decode(stored, type=Ledger)
                self._monitor.state.latches = ledger.latches
        except (msgspec.DecodeError, OSError) as error:
            logger.warning("What the controller knew cannot be read (%s); it begins anew.", error)
        self._watch = Watch(self._spec.model, ledger.known if ledger else None)
        for alarm in self._monitor.raised:  # it ends with its replica, whatever became of the ledger
            if replica := alarm.labels.get("replica"):
                self._watch.state.known.setdefault(replica, Known(alarm.labels["model"], 0, last_s=time.time()))
        self._healing = ledger.healing if ledger else HealingState()
        self._changes = deque(ledger.changes if ledger else (), KEPT_RECENT)
        self._healings = deque(ledger.healings if ledger else (), KEPT_RECENT)
        return ledger

    def _make_sinks(self, client: httpx.AsyncClient, ledger: Ledger | None) -> list[Sink]:
        undelivered = ledger.undelivered if ledger else {}
        spec, post, log = self._spec, poster(client), Log()
        for news in undelivered.get(log.name, ()):
            log.tell(news)
        sinks: list[Sink] = [log]
        if spec.webhook is not None:
            left = undelivered.get(Webhook.name, ())
            sinks.append(Webhook(spec.webhook, post, spec.runbook_url, self._save_ledger, left))
        for number, url in enumerate(spec.alertmanagers):
            name = f"alertmanager {number}"
            left = undelivered.get(name, ())
            sinks.append(Alertmanager(name, url, post, spec.runbook_url, time.time, self._monitor.raised, left))
        return sinks

    def _see(self, observations: Iterable[Observation]) -> None:
        for seen in observations:
            if self._recorder is not None:
                self._recorder.told(seen.at_s, seen)
            self._note(self._monitor.observe(seen))

    def _note(self, events: Iterable[Event]) -> None:
        for event in events:
            change = Change(event.at_s, event.raised, event.alarm)
            self._changes.append(change)
            self._metrics.changed(change)
            self._publish(change)

    def _publish(self, news: News) -> None:
        self._news.append(news)
        self._has_news.set()

    async def _tell(self) -> None:
        """Stores what there is to tell, then tells it."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            news = list(self._news)
            await self._save_ledger()
            for piece in news:
                for sink in self._sinks:
                    sink.tell(piece)
            del self._news[: len(news)]
            await self._save_ledger()

    async def _look(self) -> None:
        vitals = self._vitals = await self._ask_router("vitals")
        alive = await self._alive(self._watch.doubtful(vitals))
        now_s = time.time()
        self._see(self._watch.look(now_s, vitals, alive))
        if self._recorder is not None:
            self._recorder.told(now_s, None)
        self._note(self._monitor.evaluate(now_s))
        self._metrics.looked(self._watch.lag_s(now_s))
        await self._heal(now_s)

    async def _ask_router(self, method: str) -> Any:
        """None: it is away."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                router = await find_router(self._spec.model, ANSWER_S)
                return await getattr(router, method).remote()
        return None

    async def _alive(self, actors: dict[str, str]) -> dict[str, bool]:
        """Of replicas, whether Ray has their process; those of which it does not say are left out."""

        def look() -> dict[str, bool]:
            found = {}
            for replica_id, actor_name in actors.items():
                try:
                    ray.get_actor(actor_name, namespace=SERVE_NAMESPACE)
                    found[replica_id] = True
                except ValueError:
                    found[replica_id] = False
                except ray.exceptions.RayError:
                    continue
            return found

        return await asyncio.to_thread(look) if actors else {}

    async def _look_at_experts(self) -> None:
        while True:
            await asyncio.sleep(EXPERTS_EVERY_S)
            report = await self._ask_router("experts") or {"replicas": ()}
            versions = {r.replica_id: r.version for r in self._vitals.replicas} if self._vitals else {}
            for replica in report["replicas"]:
                uneven = replica["shard_max_over_mean"]
                if uneven and (version := versions.get(replica["id"])) is not None:
                    model, even = named(self._spec.model, version), sum(uneven) / len(uneven)
                    self._see([ExpertReport(time.time(), model, replica["id"], even, replica["tokens"])])

    # -- healing ------------------------------------------------------------------------------------------------------

    async def _heal(self, now_s: float) -> None:
        known = self._watch.state.known
        judged = self._rollouts.judged
        replicas = [
            ReplicaState(
                replica_id,
                one.model,
                one.in_roster and not (one.draining or one.swapping),
                one.draining,
                one.running,
                one.swapping,
                bool(judged) and one.model == named(self._spec.model, judged),
            )
            for replica_id, one in known.items()
        ]
        case = self._healing.case
        steps = decide(now_s, self._healing, replicas, self._monitor.raised, self._spec.healing)
        if self._healing.case != case:
            await self._save_ledger()  # first: what is begun must be ended, by the next controller if need be
        for step in steps:
            if step.outcome:
                self._healed(Healing.of(now_s, step))
            else:
                await self._do(now_s, step)

    async def _do(self, now_s: float, step: Step) -> None:
        try:
            refused = await (self._drain(step) if step.action == DRAIN else self._restart(step))
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("%s %s: Ray does not answer (%s); trying again.", step.action, step.replica, error)
            return
        if refused:
            self._healing.failed(step, refused)
            self._healed(Healing.of(now_s, step, "refused", refused))
        else:
            self._healing.done(now_s, step)
            self._healed(Healing.of(now_s, step, "done"))

    def _healed(self, healing: Healing) -> None:
        self._healings.append(healing)
        self._metrics.healed(healing)
        self._publish(healing)

    async def _drain(self, step: Step) -> str:
        """Out of rotation; its streams are asked to move. Returns why not, or ""."""
        case = self._healing.case
        asked = DrainRequest(replica=step.replica, migrate=True, force=case is not None and not case.serves)
        async with asyncio.timeout(ANSWER_S):
            router = await find_router(self._spec.model, ANSWER_S)
            answer: dict[str, str] = await router.drain.remote(asked)
        return answer.get("refused", "")

    async def _restart(self, step: Step) -> str:
        """Its process ends, its core with it: gateways take its streams elsewhere at once, and Serve replaces it."""
        known = self._watch.state.known.get(step.replica)
        if known is None or not known.actor_name:
            return "its Ray actor is not known"

        def kill() -> None:
            with contextlib.suppress(ValueError):  # it is gone by itself
                ray.kill(ray.get_actor(known.actor_name, namespace=SERVE_NAMESPACE))

        await asyncio.to_thread(kill)
        return ""

    # -- what must survive --------------------------------------------------------------------------------------------

    async def _save_ledger(self) -> None:
        async with self._storing:  # or an older one could be stored last
            await self._put(LEDGER, msgspec.json.encode(self._ledger()))

    def _ledger(self) -> Ledger:
        return Ledger(
            latches=self._monitor.state.latches,
            known=self._watch.state.known,
            healing=self._healing,
            changes=list(self._changes),
            healings=list(self._healings),
            undelivered={sink.name: sink.undelivered() + self._news for sink in self._sinks},
        )

    async def _save_what_is_learned(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self._put(LEARNED, self._monitor.saved())
            await self._save_ledger()

    async def _put(self, name: str, value: bytes) -> None:
        try:
            await asyncio.to_thread(self._store.put, name, value)
        except (OSError, ray.exceptions.RayError, RuntimeError) as error:
            logger.error("What the controller knows cannot be stored: %s", error)


def _die(task: "asyncio.Task[None]") -> None:
    """The watching ends by no exception but for a mistake of ours: Ray starts this actor anew."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("The controller broke down; Ray restarts it.", exc_info=error)
        logging.shutdown()
        os._exit(1)

"""The rollout engine: observes, decides, stores, acts, once a second. Lives in the controller's actor.

What is decided is `ops.rollout.decide`'s. It is stored before it is acted upon, and every action may be done twice:
when Ray restarts the controller in the middle, it goes on from what is stored and what it sees. One loop acts; orders
only change what is stored, and wake it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.vitals import ReplicaVitals, Vitals
from experts.versions import BadVersion
from ops.controller.reports import Batch
from ops.rollout import assignments, report
from ops.rollout.actions import Action, Assign, Drain, Restart, Scale, SwapReplica, Verify
from ops.rollout.decide import decide
from ops.rollout.ledger import Ledger
from ops.rollout.metrics import Metrics
from ops.rollout.observed import Check, Observed
from ops.rollout.orders import Orders
from ops.rollout.samples import Window
from ops.rollout.seen import of_version, replica_seen
from ops.rollout.shelf import Shelf
from ops.rollout.spec import Strategy
from ops.rollout.state import Rollout
from ops.rollout.surroundings import NOT_SCALABLE, Away, Serving, Surroundings, deployment_of
from replicas.assignment import Assignment
from replicas.messages import Swap

logger = logging.getLogger("moray.rollout")

LOOK_EVERY_S = 1.0
SERVE_EVERY_S, SERVE_IDLE_EVERY_S = 3.0, 60.0  # while a rollout runs, and else; Serve's answer tells of all replicas


class Engine:
    """`orders` takes what is asked for; `restore` comes first, then `run`."""

    def __init__(
        self,
        version: str,
        shelf: Shelf,
        ledger: Ledger,
        around: Surroundings,
        metrics: Metrics,
        *,
        defaults: dict[str, Any],
        healing: Callable[[], str] = str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`version`: that a new Ray cluster serves; "": the model is none. `healing`: the replica that it has in hand.

        `defaults`: fields of a RolloutSpec, as the settings have them. `clock`: seconds since 1970.
        """
        self._version, self._shelf, self.ledger, self._around = version, shelf, ledger, around
        self._metrics, self._healing, self._clock = metrics, healing, clock
        self._woken = asyncio.Event()
        self.orders = Orders(ledger, shelf, defaults, lambda: self.stable, clock, self._woken.set)
        self._assignment: Assignment | None = None
        self._vitals: Vitals | None = None  # None: the router is away
        self._serving: tuple[float, Serving] | None = None  # when it was asked, what it said
        self._window: Window | None = None
        self._began_s = clock()
        self._check: Check | None = None
        self._checked_for = ""  # id of the rollout that it is, or will be, of
        self.checking: asyncio.Task[None] | None = None  # the files of a version are being read
        self._refused = self._why = ""
        self._told_swaps: set[str] = set()

    def take(self, now_s: float, batch: Batch) -> None:
        """A gateway's last second."""
        self.orders.wished(now_s, batch.gateway, batch.wanted)
        if self._window is not None:
            for ended in batch.requests:
                if (told := of_version(now_s, ended)) is not None:
                    self._window.add(told)

    def report(self) -> dict[str, Any]:
        """As GET /moray/rollouts answers."""
        shares = assignments.shares(self._assignment)
        return report.rollouts(self.ledger.kept, self.stable, shares, self._vitals, self._why, self.orders.held)

    @property
    def judged(self) -> str:
        """The version whose latency the gates of a running rollout judge, and nobody else; "": none is."""
        running = self.ledger.kept.running
        return running.to_version if running is not None else ""

    async def restore(self) -> None:
        """Writes the very first assignment, or keeps the one that is there. Replicas read it as they start."""
        there, kept = await self._around.assignment(), self.ledger.kept
        try:
            directories = await asyncio.to_thread(self._shelf.directories)
        except BadVersion as why:  # a file system that is away for a while must not undo what was rolled out
            logger.error("The versions cannot be read (%s); what was served before is served.", why)
            directories = there.directories if there is not None else {}
            if kept.rollout is not None:
                directories = {kept.rollout.stable: "", **directories}
        first = assignments.first(there, kept.rollout, self._version, directories)
        if kept.rollout is not None and kept.rollout.stable not in directories:
            await self.ledger.keep(kept.without_rollout(self._clock()))
        if first != there:
            await self._around.store(first)
        self._assignment = first

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            self._woken.clear()
            try:
                await self.look()
            except Away as why:
                self._why = f"{why}; Ray restarts it"
            except Exception:  # a mistake of ours in here must not end the watching, which lives in the same actor
                logger.exception("A look at the rollout failed; the next one comes in a second.")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), max(LOOK_EVERY_S - (time.monotonic() - began), 0.05))

    # -- one look -----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """One turn. Raises Away: the rest of it is done with the next one."""
        now_s = self._clock()
        try:
            self._vitals = await self._around.vitals()
        except Away:
            self._vitals = None
        if self._assignment is not None and self._vitals is not None and not self._in_effect:
            await self._around.assign(self._assignment)  # the router is new, or this controller
        await self._learn()
        if self._version:
            await self.orders.follow_wish(now_s)
        if self.ledger.kept.rollout is not None:
            await self._go_on(now_s)
        rollout = self.ledger.kept.rollout
        self._metrics.looked(None if rollout is None else str(rollout.phase), assignments.shares(self._assignment))

    async def _go_on(self, now_s: float) -> None:
        """Observe, decide, store, act."""
        ledger = self.ledger
        serving, turn_lives = await self._ask_serve(now_s), await self._turn_lives()
        async with ledger.changing:
            before = ledger.kept.rollout
            assert before is not None, "nothing takes a rollout away"
            decision = decide(before, self._observed(now_s, before, serving, turn_lives))
            await ledger.change(rollout=decision.rollout)
            await ledger.note_rest(decision.rollout)
        self._why, self._refused = decision.why, ""
        self._watch(decision.rollout)
        if decision.rollout.ended and not before.ended:
            self._metrics.ended(str(decision.rollout.phase))
        for action in decision.actions:
            if refused := await self._do(decision.rollout, action):
                self._refused = refused
                logger.warning("%s was refused: %s", type(action).__name__, refused)

    def _observed(self, now_s: float, rollout: Rollout, serving: Serving | None, turn_lives: bool | None) -> Observed:
        vitals, kept = self._vitals, self.ledger.kept
        if self._window is not None and vitals is not None:
            self._window.running(vitals.started_by_version)
        wanted = kept.base
        if wanted is None:
            wanted = max(serving.target - kept.extra, 0) if serving is not None else 0
        return Observed(
            now_s=now_s,
            replicas=None if vitals is None else tuple(map(replica_seen, vitals.replicas)),
            wanted=wanted,
            extra=kept.extra,
            assignment=self._assignment,
            in_effect=self._in_effect,
            check=self._check if self._checked_for == rollout.id else None,
            samples=self._window.samples() if self._window is not None else {},
            turn_lives=turn_lives,
            load_failure=serving.failure if serving is not None else "",
            healing=self._healing(),
            refused=self._refused,
        )

    def _watch(self, rollout: Rollout) -> None:
        """Collects from when the rollout says; nothing from before this controller, which did not hear all of it."""
        if rollout.watch_s is None:
            self._window = None
            return
        since_s = max(rollout.watch_s, self._began_s)
        if self._window is None or self._window.since_s != since_s:
            self._window = Window(since_s)

    async def _learn(self) -> None:
        """What the first replica of a version had loaded, the others have to have loaded, too."""
        if self._vitals is None:
            return
        kept = self.ledger.kept
        checksums, deployment = dict(kept.checksums), kept.deployment
        for replica in self._vitals.replicas:
            if replica.checksum and replica.version and not replica.swapping:
                checksums.setdefault(replica.version, replica.checksum)
            deployment = deployment_of(replica) or deployment
            swap = replica.swap
            if swap is not None and swap.phase == "done" and swap.id not in self._told_swaps:
                self._told_swaps.add(swap.id)
                self._metrics.swapped(swap.seconds)
        served = kept.served or self._vitals.granted > 0
        if (checksums, deployment, served) != (kept.checksums, kept.deployment, kept.served):
            async with self.ledger.changing:
                if self.ledger.kept.rollouts == kept.rollouts:  # else the checksums are another rollout's
                    await self.ledger.change(checksums=checksums, deployment=deployment, served=served)

    # -- actions: each may be done twice; the answer is why it was refused, "" if it was not --------------------------

    async def _do(self, rollout: Rollout, action: Action) -> str:
        match action:
            case Verify():
                return self._verify(rollout)
            case Assign():
                return await self._assign(rollout, action)
            case SwapReplica():
                return await self._swap(rollout, action)
            case Drain():
                return await self._around.drain(action.replica_id)
            case Restart():
                epoch = replica.epoch if (replica := self._replica(action.replica_id)) is not None else None
                return await self._around.restart(self.ledger.kept.deployment, action.replica_id, epoch)
            case Scale():
                return await self._scale(action.extra)

    def _verify(self, rollout: Rollout) -> str:
        """Begins to read the version's files; `Observed.check` tells what came of it."""
        if self._checked_for != rollout.id:
            self._check, self._checked_for = None, rollout.id
            self.checking = asyncio.get_running_loop().create_task(self._read(rollout))
        return ""

    async def _read(self, rollout: Rollout) -> None:
        try:
            found = await asyncio.to_thread(self._shelf.check, rollout.to_version, rollout.from_version)
        except OSError as error:
            found = Check(version=rollout.to_version, problems=(f"its files cannot be read: {error}",))
        except Exception as error:  # a mistake of ours: unsaid, the rollout would wait for its deadline
            logger.exception("Version %s could not be verified.", rollout.to_version)
            found = Check(version=rollout.to_version, problems=(f"it could not be verified: {error!r}",))
        if rollout.spec.strategy is Strategy.SURGE or not found.same_architecture:
            serving = await self._ask_serve(self._clock())
            if serving is not None and not (serving.autoscaled or serving.scalable):
                found = msgspec.structs.replace(found, problems=(*found.problems, NOT_SCALABLE))
        if self._checked_for == rollout.id:
            self._check = found
            self._woken.set()

    async def _assign(self, rollout: Rollout, action: Assign) -> str:
        names = {action.stable, action.new_replica, rollout.from_version, rollout.to_version}
        try:
            directories = await asyncio.to_thread(self._shelf.directories)
        except BadVersion as why:
            return str(why)
        extra = self._assignment.extra if self._assignment is not None else 0
        return await self._serve_by(assignments.following(self._assignment, action, names, directories, extra))

    async def _serve_by(self, made: Assignment) -> str:
        if made != self._assignment:
            await self._around.store(made)
            self._assignment = made
        await self._around.assign(made)
        return ""

    async def _swap(self, rollout: Rollout, action: SwapReplica) -> str:
        # The assignment may be from before this rollout: until shares change, nothing in it has to.
        known = self._assignment.directories if self._assignment is not None else {}
        checksum = self.ledger.kept.checksums.get(action.version, "")

        def command() -> Swap:
            directory = known.get(action.version) or self._shelf.directories()[action.version]
            return self._shelf.swap(action.id, action.version, directory, rollout.spec.finish_s, checksum)

        try:
            swap = await asyncio.to_thread(command)
        except BadVersion as why:
            return str(why)
        except KeyError:
            return f"the store has no version {action.version} any more: add it again, or abort the rollout"
        return await self._around.swap(action.replica_id, swap)

    async def _scale(self, extra: int) -> str:
        """That there are so many on top is stored when it has been done: what is stored is not asked for again."""
        serving = await self._ask_serve(self._clock(), anew=True)
        if serving is None:
            return "Ray Serve does not answer"
        self._serving = None
        if serving.autoscaled:  # its policy adds what the router tells it (cluster/serve_scaling.py)
            assert self._assignment is not None, "a rollout has one"
            refused = await self._serve_by(assignments.scaled(self._assignment, extra))
            await self._keep(extra=extra)
            return refused
        before = self.ledger.kept
        base = before.base if before.base is not None else serving.target
        await self._keep(base=base)  # first, or one that died in between would count the extra ones to it
        if serving.target != base + extra and (refused := await self._around.scale(before.deployment, base + extra)):
            await self._keep(base=base if before.extra else None)
            return refused
        await self._keep(extra=extra, base=base if extra else None)
        return ""

    async def _keep(self, **changes: Any) -> None:
        async with self.ledger.changing:
            await self.ledger.change(**changes)

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def stable(self) -> str:
        """The version that is served outside of rollouts; "": the model is none."""
        return self._assignment.stable if self._assignment is not None else ""

    @property
    def _in_effect(self) -> bool:
        """The router acts by the assignment."""
        return (
            self._assignment is not None
            and self._vitals is not None
            and self._vitals.assignment_revision == self._assignment.revision
        )

    def _replica(self, replica_id: str) -> ReplicaVitals | None:
        replicas = self._vitals.replicas if self._vitals is not None else ()
        return next((replica for replica in replicas if replica.replica_id == replica_id), None)

    async def _turn_lives(self) -> bool | None:
        """Whether Ray has the process of the replica whose turn it is. None: not known."""
        rollout = self.ledger.kept.rollout
        turn = rollout.turn if rollout is not None else None
        if turn is None or self._vitals is None or self._replica(turn.replica_id) is not None:
            return None  # in the router's roster it lives
        return await self._around.lives(self.ledger.kept.deployment, turn.replica_id)

    async def _ask_serve(self, now_s: float, anew: bool = False) -> Serving | None:
        """What it said some seconds ago, or says now. None: it does not answer."""
        every_s = SERVE_EVERY_S if self.ledger.kept.running is not None else SERVE_IDLE_EVERY_S
        if anew or self._serving is None or now_s - self._serving[0] > every_s:
            try:
                self._serving = (now_s, await self._around.serving(self.ledger.kept.deployment))
            except Away:
                self._serving = None
        return self._serving[1] if self._serving is not None else None

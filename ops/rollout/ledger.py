"""What the engine remembers, and the audit log beside it: stored first, done then."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

import msgspec

from ops.controller.store import Store
from ops.rollout.audit import AuditLog
from ops.rollout.kept import Kept
from ops.rollout.state import Rollout

logger = logging.getLogger("moray.rollout")

NAME = "rollouts"  # in the store
CONTROLLER = "controller"  # who did it, in the audit log, where nobody asked
ASKED_FOR = frozenset({"started", "abort", "paused", "resumed", "promote"})  # notes of orders, which `note` tells of
UNKNOWN = "not known: the controller died at it"  # from where an order came that only its own note tells of


class By(NamedTuple):
    """Who asks, and from where."""

    who: str  # the tenant of an operator's key; "": no keys are asked for
    where: str


class Ledger:
    """`changing` is held from the look at `kept` that a change follows from to the end of `keep`."""

    def __init__(self, store: Store, audit: AuditLog, where: str) -> None:
        """`where`: the controller's process, for what it does by itself. Blocking: the store is read."""
        self._store, self._audit, self._here = store, audit, By(CONTROLLER, where)
        self.kept, stored = Kept(), store.get(NAME)
        if stored is not None:
            try:
                self.kept = msgspec.json.decode(stored, type=Kept)
            except msgspec.MsgspecError as error:  # the assignment still says what is served
                logger.error("What is known of rollouts cannot be read (%s); it begins anew.", error)
        self.changing = asyncio.Lock()
        rollout = self.kept.rollout
        self._noted = {} if rollout is None else {rollout.id: audit.noted(rollout.id)}  # numbers of notes, by rollout

    async def keep(self, kept: Kept) -> None:
        """Raises what the store raises; then nothing has changed."""
        if kept != self.kept:
            await asyncio.to_thread(self._store.put, NAME, msgspec.json.encode(kept))
            self.kept = kept

    async def change(self, **changes: Any) -> None:
        """`keep` with other fields."""
        await self.keep(msgspec.structs.replace(self.kept, **changes))

    async def note(self, what: str, by: By, rollout: str = "", detail: str = "", number: int | None = None) -> None:
        """Into the audit log. `number`: of the rollout's last note that this tells of."""
        await asyncio.to_thread(
            self._audit.add, what, who=by.who, where=by.where, rollout=rollout, detail=detail, note=number
        )
        if number is not None:
            self._noted = {rollout: number}

    async def note_rest(self, rollout: Rollout) -> None:
        """What the log lacks of the rollout's own notes, each once, however often the controller dies at it."""
        done = self._noted.get(rollout.id, -1)
        for note in rollout.notes:
            if note.number > done:
                by = By(note.by, UNKNOWN) if note.what in ASKED_FOR else self._here
                await self.note(note.what, by, rollout.id, note.detail, note.number)

    async def entries(self, count: int) -> list[dict[str, Any]]:
        """The audit log's last ones, the oldest first."""
        found = await asyncio.to_thread(self._audit.newest, count)
        return [msgspec.to_builtins(entry) for entry in found]

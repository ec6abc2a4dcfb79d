"""What operators and a changed user_config ask for: checked, stored, written into the audit log. The engine does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from experts.versions import BadVersion
from ops.rollout.commands import Command, Refused, commanded
from ops.rollout.ledger import By, Ledger
from ops.rollout.shelf import Shelf
from ops.rollout.spec import RolloutSpec
from ops.rollout.state import started
from ops.rollout.wanted import Wishes, parse

logger = logging.getLogger("moray.rollout")

USER_CONFIG = By("user_config", "Ray Serve")


class Orders:
    def __init__(
        self,
        ledger: Ledger,
        shelf: Shelf,
        defaults: dict[str, Any],
        stable: Callable[[], str],
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        """`defaults`: fields of a RolloutSpec, as the settings have them. `stable`: the version that is served."""
        self._ledger, self._shelf, self._defaults = ledger, shelf, defaults
        self._stable, self._clock, self._wake = stable, clock, wake
        self._wishes = Wishes()
        self.held = ""  # a sentence: why a user_config is not followed, or not yet

    # -- operators ----------------------------------------------------------------------------------------------------

    async def start(self, asked: dict[str, Any], by: By) -> None:
        """`asked`: fields of a RolloutSpec. Raises Refused."""
        async with self._ledger.changing:
            await self._start(asked, by)

    async def command(self, name: str, by: By) -> None:
        """pause, resume, promote or abort. Raises Refused."""
        async with self._ledger.changing:
            await self._command(name, by)

    async def undo(self, gated: bool, by: By) -> None:
        """A rollout to the version before the last one that was done. Raises Refused.

        It was served here before: unless it shall be `gated`, its files and golden prompts are enough.
        """
        async with self._ledger.changing:
            last = self._ledger.kept.last_done
            if last is None:
                why = "No rollout was done here: there is nothing to undo."
                await self._ledger.note("refused", by, detail=f"undo: {why}")
                raise Refused(why)
            await self._start({"version": last.from_version}, by, at_once=not gated, what=f"undo of {last.id}")

    async def _start(self, asked: dict[str, Any], by: By, at_once: bool = False, what: str = "") -> None:
        ledger, now_s = self._ledger, self._clock()
        try:
            self._refuse_second()
            spec = self._completed(asked)
            await asyncio.to_thread(self._shelf.find, spec.version)
            rollout = started(f"r{ledger.kept.rollouts + 1}", spec, self._stable(), now_s, by.who)
            if at_once:
                rollout = commanded(rollout, Command.PROMOTE, now_s, by.who)
        except (Refused, BadVersion, ValueError) as error:
            why = str(error)
            await ledger.note("refused", by, detail=f"{what or 'start'} of {asked.get('version')!r}: {why}")
            raise Refused(why) from None
        if (last := ledger.kept.rollout) is not None:
            await ledger.note_rest(last)
        await ledger.keep(ledger.kept.begin(rollout))
        about = f"from {rollout.from_version} to {rollout.to_version}"
        await ledger.note("start", by, rollout.id, f"{about}, {what}" if what else about, rollout.noted - 1)
        self._wake()

    async def _command(self, name: str, by: By) -> None:
        ledger = self._ledger
        rollout = ledger.kept.rollout
        try:
            if name not in [str(command) for command in Command]:
                raise Refused(f"{name!r} is no command: write {', '.join(Command)}.")
            if rollout is None:
                raise Refused("No rollout runs: `moray rollout start VERSION` starts one.")
            changed = commanded(rollout, Command(name), self._clock(), by.who)
        except Refused as why:
            await ledger.note("refused", by, rollout.id if rollout else "", f"{name}: {why}")
            raise
        if changed == rollout:
            await ledger.note(name, by, rollout.id, "it was so already")
            return
        await ledger.note_rest(rollout)
        await ledger.change(rollout=changed)
        await ledger.note(name, by, changed.id, number=changed.noted - 1)
        self._wake()

    def _refuse_second(self) -> None:
        if (running := self._ledger.kept.running) is not None:
            raise Refused(
                f"Rollout {running.id} from {running.from_version} to {running.to_version} runs ({running.phase}): "
                "wait for its end (`moray rollout watch`), or end it (`moray rollout abort`)."
            )

    def _completed(self, asked: dict[str, Any]) -> RolloutSpec:
        """With the settings where it says nothing. ValueError, a sentence."""
        gates = asked.get("gates", {})
        if not isinstance(gates, dict):
            raise ValueError('gates: write an object, as {"ttft_ratio": 1.1}')
        whole = self._defaults | asked | {"gates": self._defaults.get("gates", {}) | gates}
        try:
            return msgspec.convert(whole, RolloutSpec)
        except msgspec.ValidationError as error:
            raise ValueError(f"The rollout is not understood: {error}") from None

    # -- user_config --------------------------------------------------------------------------------------------------

    def wished(self, now_s: float, gateway: str, text: str) -> None:
        """A gateway tells the user_config that it has been told; "": it has none."""
        self._wishes.told(now_s, gateway, text)

    async def follow_wish(self, now_s: float) -> None:
        """Starts what a changed user_config asks for, once all gateways have been told of it.

        What is served when the application starts is no wish: the first user_config that names another version before
        anybody was served is done at once, for nothing could be compared. One that names the version that a running
        rollout comes from ends it; one that names a third waits for its end.
        """
        text = self._wishes.agreed(now_s)
        if text is None or text == self._ledger.kept.wanted:
            return
        async with self._ledger.changing:
            try:
                await self._follow(text)
            except Refused as why:  # it stands in the audit log
                self.held = f"user_config is not followed: {why}"
                logger.warning("%s", self.held)

    async def _follow(self, text: str) -> None:
        ledger = self._ledger
        running, is_new_here = ledger.kept.running, not (ledger.kept.wanted or ledger.kept.served)
        try:
            wish = parse(text)
        except ValueError as why:
            await ledger.change(wanted=text)
            await ledger.note("refused", USER_CONFIG, detail=str(why))
            raise Refused(str(why)) from None
        if running is not None and wish.version not in (running.from_version, running.to_version):
            held = f"user_config asks for {wish.version}, which waits for the end of rollout {running.id}."
            if held != self.held:
                self.held = held
                await ledger.note("held", USER_CONFIG, running.id, held)
            return
        self.held = ""
        try:
            if running is not None:
                if wish.version == running.from_version:
                    await self._command(Command.ABORT, USER_CONFIG)
            elif wish.version != self._stable():
                await self._start({"version": wish.version, **wish.rollout}, USER_CONFIG, at_once=is_new_here)
        except Refused:
            await ledger.change(wanted=text)  # or it would be refused every second
            raise
        await ledger.change(wanted=text)  # last: a controller that dies before has not done it

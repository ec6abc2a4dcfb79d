"""Whole rollouts by the real decisions, over a cluster in memory; the controller is killed at any of its steps.

Killed means: at a call of store or cluster, before it has its effect or after, all that the engine holds is gone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from pretend_shell import Shell

from ops.controller.reports import Batch, EndedRequest
from ops.rollout.ledger import ASKED_FOR, By
from ops.rollout.state import Phase

ALICE = By("alice", "here")
QUICK = {"steps": (0.5,), "min_samples": 20, "step_s": 10.0, "settle_s": 1.0, "deadline_s": 200.0, "finish_s": 2.0}


class Killed(BaseException):
    """The controller's process ends here."""


class Killer:
    """Kills at each call with a chance; half of the time the call has its effect first."""

    def __init__(self, rng: random.Random, chance: float) -> None:
        self.rng, self.chance, self.kills = rng, chance, 0

    def at(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def killed(*arguments: Any) -> Any:
            dies = self.rng.random() < self.chance
            if dies and self.rng.random() < 0.5:
                self.kills += 1
                raise Killed
            answer = await call(*arguments)
            if dies:
                self.kills += 1
                raise Killed
            return answer

        return killed


def traffic(shell: Shell, rng: random.Random, slow: float) -> None:
    """A second of requests, by the shares and versions that serve; `slow`: how many times v2 takes."""
    shares = {name: one["share"] for name, one in shell.engine.report()["versions"].items() if one["replicas"]}
    for _ in range(12):
        by_share = [name for name, share in shares.items() if share is None or rng.random() < share]
        version = rng.choice(by_share or list(shares) or ["v1"])
        times = slow if version == "v2" else 1.0
        request = EndedRequest(
            age_s=rng.random(), version=version, replica="x", prompt_tokens=20,
            ttft_s=times * rng.lognormvariate(-2, 0.2),
            tpot_s=times * rng.lognormvariate(-4, 0.1), failed=False, shed=False, lasted_s=0.4,
            output_tokens=int(rng.lognormvariate(3, 0.1)), done=True,
        )  # fmt: skip
        batch = Batch(gateway="g", late=False, requests=(request,), first=0, replicas=(), hung=(), dropped=0)
        shell.engine.take(shell.clock.now_s, batch)


async def driven(shell: Shell, rng: random.Random, slow: float, seconds: int = 900) -> list[str]:
    """Looks, kills and restarts until the rollout has ended and all is quiet; the phases that were seen."""
    phases: list[str] = []
    quiet = 0
    for _ in range(seconds):
        try:
            await shell.look()
        except Killed:
            while True:
                try:
                    await shell.restarted()
                except Killed:
                    continue
                break
        traffic(shell, rng, slow)
        rollout = shell.engine.ledger.kept.rollout
        assert rollout is not None
        if not phases or phases[-1] != rollout.phase:
            phases.append(str(rollout.phase))
        quiet = quiet + 1 if rollout.ended and rollout.turn is None else 0
        if quiet > 20:
            return phases
    raise AssertionError(f"it did not end: {phases}, {shell.engine.report()}")


def kill_at_random(shell: Shell, rng: random.Random, chance: float) -> Killer:
    killer = Killer(rng, chance)
    for name in ("store", "assign", "swap", "drain", "restart", "scale", "vitals"):
        setattr(shell.cluster, name, killer.at(getattr(shell.cluster, name)))
    return killer


async def consistent(shell: Shell) -> None:
    """One version everywhere, that of the recorded decision; the audit log tells each decision once."""
    rollout, cluster = shell.engine.ledger.kept.rollout, shell.cluster
    assert rollout is not None and cluster.stored is not None
    assert set(cluster.versions()) == {rollout.stable} and len(cluster.replicas) == 2
    assert cluster.stored.stable == cluster.stored.new_replica == rollout.stable == shell.engine.stable
    assert not cluster.stored.traffic or set(cluster.stored.traffic) == {rollout.stable}
    assert cluster.router == cluster.stored and cluster.target == 2
    entries = await shell.engine.ledger.entries(1000)
    notes = [entry["note"] for entry in entries if entry["rollout"] == rollout.id and entry["note"] is not None]
    assert notes == sorted(set(notes)), "each once, in order"
    decided = {note.number for note in rollout.notes if note.what not in ASKED_FOR}
    assert decided <= set(notes) <= {note.number for note in rollout.notes}


@pytest.mark.parametrize("strategy", ["in-place", "surge"])
@pytest.mark.parametrize("seed", range(10))
async def test_a_good_version_is_rolled_out_however_often_the_controller_dies(store, strategy, seed) -> None:
    rng = random.Random(seed)
    shell = Shell(store, **QUICK, strategy=strategy)
    await shell.engine.restore()
    await shell.engine.orders.start({"version": "v2"}, ALICE)
    killer = kill_at_random(shell, rng, 0.04 if seed else 0.0)
    phases = await driven(shell, rng, slow=1.0)
    assert phases[-1] == "done", phases
    assert bool(killer.kills) == bool(seed)
    await consistent(shell)


@pytest.mark.parametrize("strategy", ["in-place", "surge"])
@pytest.mark.parametrize("seed", range(6))
async def test_a_slow_version_goes_back_by_itself_however_often_the_controller_dies(store, strategy, seed) -> None:
    rng = random.Random(seed)
    shell = Shell(store, **QUICK, strategy=strategy)
    await shell.engine.restore()
    await shell.engine.orders.start({"version": "v2"}, ALICE)
    kill_at_random(shell, rng, 0.03 if seed else 0.0)
    phases = await driven(shell, rng, slow=3.0)
    assert phases[-1] == "rolled-back", phases
    await consistent(shell)


@pytest.mark.parametrize("after", range(0, 31, 2))
async def test_it_can_be_aborted_at_any_moment(store, after) -> None:
    rng = random.Random(after)
    shell = Shell(store, **QUICK)
    await shell.engine.restore()
    await shell.engine.orders.start({"version": "v2"}, ALICE)
    for _ in range(after):
        await shell.look()
        traffic(shell, rng, 1.0)
    running = shell.engine.ledger.kept.running
    assert running is not None, "it was over before: an abort later tells nothing"
    await shell.engine.orders.command("abort", ALICE)
    phases = await driven(shell, rng, 1.0)
    assert phases[-1] == "rolled-back", phases
    await consistent(shell)


async def test_a_version_that_does_not_load_gets_no_traffic(store) -> None:
    shell, rng = Shell(store, **QUICK), random.Random(1)
    shell.cluster.bad["v2"] = "the checkpoint has no tensor x"
    await shell.engine.restore()
    await shell.engine.orders.start({"version": "v2"}, ALICE)
    given: list[float] = []
    store_ = shell.cluster.store

    async def noting(assignment: Any) -> None:
        given.append((assignment.traffic or {}).get("v2", 0.0) if assignment.traffic is not None else 0.0)
        await store_(assignment)

    shell.cluster.store = noting  # type: ignore[method-assign]
    phases = await driven(shell, rng, 1.0)
    assert phases[-1] == "rolled-back" and given and not any(given)
    assert "no tensor x" in shell.engine.report()["history"][-1]["why"]
    await consistent(shell)


async def test_undo_after_done_and_again(store) -> None:
    shell, rng = Shell(store, **QUICK), random.Random(2)
    await shell.engine.restore()
    await shell.engine.orders.start({"version": "v2"}, ALICE)
    assert (await driven(shell, rng, 1.0))[-1] == "done"
    for version in ("v1", "v2"):
        await shell.engine.orders.undo(False, ALICE)
        assert (await driven(shell, rng, 1.0))[-1] == "done"
        assert set(shell.cluster.versions()) == {version} and shell.engine.stable == version
        await consistent(shell)
    assert [one["to"] for one in shell.engine.report()["history"]] == ["v2", "v1", "v2"]


async def test_damaged_files_are_refused_before_a_replica_is_touched(store) -> None:
    (store / "v2" / "config.json").write_text("{}")
    shell = Shell(store, **QUICK)
    await shell.engine.restore()
    await shell.engine.orders.start({"version": "v2"}, ALICE)
    assert (await driven(shell, random.Random(3), 1.0))[-1] == Phase.FAILED
    assert {call[0] for call in shell.cluster.calls} <= {"store", "assign"}
    assert "truncated" in shell.engine.report()["history"][-1]["why"]

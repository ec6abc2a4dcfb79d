"""The shell: what it sees, stores and does, in which order; and what others ask of it. Decisions are the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from pretend_shell import Shell, add_version

from ops.controller.reports import Batch, EndedRequest
from ops.rollout import engine as module
from ops.rollout.actions import Assign, Drain, Restart, Scale, SwapReplica, Verify
from ops.rollout.commands import Refused
from ops.rollout.decide import Decision
from ops.rollout.kept import Kept
from ops.rollout.ledger import NAME, UNKNOWN, By
from ops.rollout.observed import Observed
from ops.rollout.shelf import Shelf
from ops.rollout.state import Phase, Rollout, Turn
from ops.rollout.surroundings import NOT_SCALABLE, Away
from replicas.assignment import Assignment

Make = Callable[..., Shell]
ALICE = By("alice", "10.0.0.7")


class Killed(Exception):
    """The controller's process ends here."""


class Decisions:
    """Instead of `decide`: the actions that the test wants, once each; and what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Observed] = []
        self.next: list[Any] = []
        self.change: Callable[[Rollout], Rollout] = lambda rollout: rollout

    def __call__(self, rollout: Rollout, observed: Observed) -> Decision:
        self.seen.append(observed)
        actions, self.next = tuple(self.next), []
        return Decision(self.change(rollout), actions, "because")


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> Decisions:
    made = Decisions()
    monkeypatch.setattr(module, "decide", made)
    return made


async def started(shell: Shell, version: str = "v2", **more: Any) -> Shell:
    await shell.engine.restore()
    await shell.engine.orders.start({"version": version, **more}, ALICE)
    return shell


# -- the very first assignment ----------------------------------------------------------------------------------------


async def test_a_new_cluster_is_told_to_serve_the_settings_version(shell: Make, store) -> None:
    one = shell()
    await one.engine.restore()
    assert one.cluster.stored == Assignment(
        revision=1, stable="v1", new_replica="v1", directories={"v1": str(store / "v1")}
    )
    await one.look()
    assert one.cluster.router == one.cluster.stored, "the router is told, and acts by it"
    calls = len(one.cluster.calls)
    await one.look(3)
    assert len(one.cluster.calls) == calls, "nothing is told twice"


async def test_a_redeployment_undoes_no_rollout(shell: Make) -> None:
    one = shell()
    one.cluster.stored = before = Assignment(
        revision=7, stable="v2", new_replica="v2", directories={"v2": "/old/v2"}, traffic={"v2": 1.0}
    )
    await one.engine.restore()
    kept = one.cluster.stored
    assert kept is not None and (kept.stable, kept.traffic, kept.revision) == ("v2", {"v2": 1.0}, 8)
    assert kept.directories["v2"] != "/old/v2", "the store has moved"
    one.cluster.stored = msgspec.structs.replace(before, stable="not in the store")
    await one.restarted()
    assert one.cluster.stored is not None and one.cluster.stored.stable == "v1"


async def test_a_model_without_versions_has_no_assignment_and_nothing_to_roll() -> None:
    one = Shell(None, version="")
    one.cluster.stored = Assignment(revision=7, stable="v2", new_replica="v2")
    await one.engine.restore()
    assert one.cluster.stored is None
    await one.look(2)
    with pytest.raises(Refused, match="moray model add"):
        await one.engine.orders.start({"version": "v2"}, ALICE)
    assert "moray model add" in one.engine.report()["note"] and one.engine.report()["stable"] == ""


async def test_one_that_died_between_the_decision_and_its_assignment_goes_on(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, phase=Phase.DONE, ended_s=1.0)
    await one.look()
    await one.restarted()
    decisions.next = [Assign(stable="v2", new_replica="v2", traffic=None)]
    await one.look()
    assert one.engine.stable == "v2" and one.engine.report()["history"][-1]["phase"] == "done"


async def test_a_store_that_is_away_undoes_nothing(shell: Make, decisions: Decisions, store, caplog) -> None:
    one = await started(shell())
    await one.look()
    before = one.cluster.stored
    store.rename(store.with_name("away"))
    await one.restarted()
    assert one.cluster.stored == before and one.engine.report()["current"]["id"] == "r1"
    assert "cannot be read" in caplog.text
    decisions.next = [Assign(stable="v1", new_replica="v2", traffic=None)]
    await one.look(2)
    assert "there is no store" in decisions.seen[-1].refused and one.cluster.stored == before


@pytest.mark.parametrize("ended", [False, True])
async def test_with_another_store_the_last_rollout_is_history(
    shell: Make, decisions: Decisions, tmp_path, ended
) -> None:
    one = await started(shell())
    if ended:
        decisions.change = lambda rollout: msgspec.structs.replace(rollout, phase=Phase.DONE, ended_s=1.0)
        decisions.next = [Assign(stable="v2", new_replica="v2", traffic=None)]
        await one.look()
    add_version(tmp_path / "other", "first")
    one.shelf, one.version = Shelf(tmp_path / "other"), "first"
    await one.restarted()
    looks = len(decisions.seen)
    await one.look(3)
    assert len(decisions.seen) == looks and one.engine.stable == "first", "nothing brings the old one back"
    [past] = one.engine.report()["history"]
    assert (past["to"], past["phase"]) == ("v2", "done" if ended else "failed")
    assert one.engine.report()["current"] is None


async def test_what_cannot_be_read_is_told_and_the_assignment_still_counts(shell: Make, caplog) -> None:
    one = shell()
    one.cluster.stored = Assignment(revision=3, stable="v2", new_replica="v2", directories={"v2": "/v2"})
    one.memory.values[NAME] = b"of another Moray"
    await one.restarted()
    assert one.engine.stable == "v2" and "begins anew" in caplog.text


# -- orders -----------------------------------------------------------------------------------------------------------


async def test_a_rollout_is_stored_before_anything_is_done_and_has_the_settings_where_nothing_was_asked(
    shell: Make, decisions: Decisions
) -> None:
    one = shell(min_samples=50, steps=[0.3], gates={"errors": 0.01})
    await started(one, gates={"ttft_ratio": 2.0})
    stored = msgspec.json.decode(one.memory.values[NAME], type=Kept)
    assert stored.rollout is not None and stored.rollout.phase is Phase.PENDING
    spec = stored.rollout.spec
    assert (spec.min_samples, spec.steps, spec.gates.errors, spec.gates.ttft_ratio) == (50, (0.3,), 0.01, 2.0)
    assert one.engine.report()["current"]["id"] == "r1"
    assert await one.audited() == [("alice", "start")]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"version": "v3"}, "has no version v3; it has: "),
        ({"version": "v1"}, "served already"),
        ({"version": "v2", "steps": [0.5, 0.1]}, "write shares"),
        ({"version": "v2", "stepz": [0.1]}, "stepz"),
        ({"version": "v2", "gates": {"tfft": 1.1}}, "tfft"),
        ({"version": "v2", "gates": 3}, "write an object"),
        ({}, "version"),
        ({"version": "../v2"}, "cannot be a version's name"),
    ],
)
async def test_what_cannot_be_rolled_out_is_refused_in_a_sentence_and_noted(shell: Make, asked, said) -> None:
    one = shell()
    await one.engine.restore()
    with pytest.raises(Refused, match=said):
        await one.engine.orders.start(asked, ALICE)
    assert one.engine.report()["current"] is None and await one.audited() == [("alice", "refused")]


async def test_two_at_once_are_refused_with_the_running_ones_name(shell: Make) -> None:
    one = await started(shell())
    with pytest.raises(Refused, match=r"Rollout r1 from v1 to v2 runs \(pending\).*moray rollout abort"):
        await one.engine.orders.start({"version": "larger"}, By("bob", "here"))
    with pytest.raises(Refused, match="nothing to undo"):
        await one.engine.orders.undo(False, ALICE)


async def test_commands_are_stored_and_noted_and_twice_is_as_once(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    for _ in range(2):
        await one.engine.orders.command("pause", ALICE)
    assert one.engine.report()["current"]["paused"]
    await one.restarted()
    assert one.engine.report()["current"]["paused"], "it outlives the controller"
    await one.engine.orders.command("resume", ALICE)
    await one.engine.orders.command("abort", ALICE)
    with pytest.raises(Refused, match="no command: write pause"):
        await one.engine.orders.command("destroy", ALICE)
    with pytest.raises(Refused, match="going back"):
        await one.engine.orders.command("promote", ALICE)
    assert [what for _, what in await one.audited()] == [
        "start", "pause", "pause", "resume", "abort", "refused", "refused",
    ]  # fmt: skip


async def test_without_a_rollout_a_command_says_how_to_start_one(shell: Make) -> None:
    one = shell()
    await one.engine.restore()
    with pytest.raises(Refused, match="moray rollout start VERSION"):
        await one.engine.orders.command("abort", ALICE)


async def test_undo_goes_to_the_version_before_the_last_one_that_was_done(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())

    def done(rollout: Rollout) -> Rollout:
        return msgspec.structs.replace(rollout, phase=Phase.DONE, ended_s=1.0)

    decisions.change, decisions.next = done, [Assign(stable="v2", new_replica="v2", traffic=None)]
    await one.look()
    assert one.engine.report()["history"][-1]["phase"] == "done" and one.engine.stable == "v2"
    assert one.metrics["moray_rollouts_total"].values == {("m", "done"): 1}
    decisions.change = lambda rollout: rollout
    await one.engine.orders.undo(False, ALICE)
    current = one.engine.report()["current"]
    assert (current["id"], current["from"], current["to"]) == ("r2", "v2", "v1")
    assert [event["what"] for event in current["events"]] == ["started", "promote"], "it was served here before"
    assert [entry["detail"] for entry in await one.engine.ledger.entries(9)][-1] == "from v2 to v1, undo of r1"


# -- what it does -----------------------------------------------------------------------------------------------------


async def test_what_is_decided_is_stored_before_it_is_done(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    await one.look()
    phases: list[str] = []

    def note(name: str) -> None:
        if name == NAME:
            phases.append(f"stored after {len(one.cluster.calls)} calls")

    one.memory.on_put = note
    calls = len(one.cluster.calls)
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, phase=Phase.CANARY)
    decisions.next = [Drain(replica_id="rep1")]
    await one.look()
    assert phases[-1] == f"stored after {calls} calls" and one.cluster.calls[calls] == ("drain", "rep1")


async def test_what_cannot_be_stored_is_not_done(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())

    def full(name: str) -> None:
        raise OSError("no space left on device")

    one.memory.on_put = full
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, phase=Phase.CANARY)
    decisions.next = [Drain(replica_id="rep1")]
    with pytest.raises(OSError, match="no space"):
        await one.look()
    assert ("drain", "rep1") not in one.cluster.calls
    assert one.engine.report()["current"]["phase"] == "pending"


async def test_verifying_reads_the_files_in_a_thread_and_tells_what_came_of_it(
    shell: Make, decisions: Decisions, store
) -> None:
    one = await started(shell())
    decisions.next = [Verify("v2"), Verify("v2")]
    await one.look()
    await until_checked(one)
    await one.look()
    check = decisions.seen[-1].check
    assert check is not None and (check.problems, check.same_architecture, check.golden) == ((), True, 3)
    (store / "v2" / "config.json").write_text("{}")
    await one.restarted()
    decisions.next = [Verify("v2")]
    await one.look()
    assert decisions.seen[-1].check is None, "what another controller read is not known"
    await until_checked(one)
    await one.look()
    check = decisions.seen[-1].check
    assert check is not None and "truncated" in check.problems[0]


async def test_a_mistake_of_ours_in_verifying_is_a_problem_of_the_version(
    shell: Make, decisions: Decisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    one = await started(shell())
    monkeypatch.setattr(one.shelf, "check", broken)
    decisions.next = [Verify("v2")]
    await one.look(2)
    check = decisions.seen[-1].check
    assert check is not None and "a mistake of ours" in check.problems[0]


async def until_checked(one: Shell) -> None:
    for _ in range(500):
        if one.engine._check is not None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not checked within 5 s")


@pytest.mark.parametrize(
    ("version", "more", "scalable", "problems", "same"),
    [
        ("talks", {}, True, 1, True),
        ("larger", {}, True, 0, False),
        ("larger", {}, False, 1, False),
        ("v2", {"strategy": "surge"}, False, 1, True),
        ("v2", {}, False, 0, True),
    ],
)
async def test_text_that_differs_and_a_surge_that_serve_refuses_are_problems(
    shell: Make, decisions: Decisions, version, more, scalable, problems, same
) -> None:
    one = shell()
    one.cluster.scalable = scalable
    await started(one, version, **more)
    decisions.next = [Verify(version)]
    await one.look()
    await until_checked(one)
    await one.look()
    check = decisions.seen[-1].check
    assert check is not None and (len(check.problems), check.same_architecture) == (problems, same)
    assert (NOT_SCALABLE in check.problems) == (problems == 1 and version != "talks")


async def test_an_assignment_is_stored_before_the_router_is_told(shell: Make, decisions: Decisions, store) -> None:
    one = await started(shell())
    await one.look()
    action = Assign(stable="v1", new_replica="v1", traffic={"v1": 0.9, "v2": 0.1})
    decisions.next = [action]
    await one.look()
    made = one.cluster.stored
    assert made is not None and made.revision == 2 and made.traffic == {"v1": 0.9, "v2": 0.1}
    assert made.directories == {name: str(store / name) for name in ("v1", "v2")}
    assert [call[0] for call in one.cluster.calls[-2:]] == ["store", "assign"] and one.cluster.router == made
    decisions.next = [action]
    await one.look()
    assert one.cluster.stored is made, "the same again is no other assignment"
    one.cluster.router = None  # it died, and Ray started another
    await one.look(2)
    assert one.cluster.router == made and decisions.seen[-1].in_effect
    assert one.engine.report()["versions"]["v2"] == {"replicas": 0, "share": 0.1}
    assert one.metrics["moray_rollout_share"].values == {("m", "v1"): 0.9, ("m", "v2"): 0.1}


async def test_a_swap_has_all_that_a_replica_needs(shell: Make, decisions: Decisions, store) -> None:
    one = shell(finish_s=12.0)
    one.cluster.checksums = {"v2": "c2"}
    await started(one)
    decisions.next = [Assign(stable="v1", new_replica="v1", traffic={"v1": 1.0, "v2": 0.0})]
    await one.look()
    command = SwapReplica(id="r1-1", replica_id="rep1", version="v2")
    decisions.next = [command]
    await one.look()
    [(_, replica, swap)] = [call for call in one.cluster.calls if call[0] == "swap"]
    assert (replica, swap.id, swap.version, swap.finish_s) == ("rep1", "r1-1", "v2", 12.0)
    assert swap.directory == str(store / "v2") and list(swap.sha256) == ["config.json"] and swap.checksum == ""
    assert len(swap.probes) == 3 and swap.probes[0].answer == (7,) and swap.probes[0].logprobs == (-0.5, -0.1)
    for _ in range(5):
        decisions.next = [command]
        await one.look()
    assert one.cluster.versions() == ["v1", "v2"], "the same command again is not another swap"
    assert one.metrics["moray_swap_seconds"].values == {("m",): 0.5}
    decisions.next = [SwapReplica(id="r1-2", replica_id="rep2", version="v2")]
    await one.look()
    assert one.cluster.calls[-1][2].checksum == "c2", "what the first one loaded, the second has to"
    await one.restarted()
    assert one.engine.ledger.kept.checksums == {"v2": "c2"}


async def test_a_swap_knows_the_directory_though_the_assignment_is_from_before_the_rollout(
    shell: Make, decisions: Decisions, store
) -> None:
    """A rollout that follows one that went back finds the very assignment that it would make first."""
    one = await started(shell())
    assert one.cluster.stored is not None and "v2" not in one.cluster.stored.directories
    await one.look()
    decisions.next = [SwapReplica(id="r1-1", replica_id="rep1", version="v2")]
    await one.look()
    [(_, _, swap)] = [call for call in one.cluster.calls if call[0] == "swap"]
    assert swap.directory == str(store / "v2")
    shutil.rmtree(store / "v2")
    decisions.next = [SwapReplica(id="r1-2", replica_id="rep2", version="v2")]
    await one.look(2)
    assert len([call for call in one.cluster.calls if call[0] == "swap"]) == 1 and "v2" in decisions.seen[-1].refused


async def test_a_refusal_is_shown_to_the_next_decision(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    one.cluster.refuse["drain"] = "it is not there"
    decisions.next = [Drain(replica_id="rep9")]
    await one.look(2)
    assert decisions.seen[-1].refused == "it is not there"
    await one.look()
    assert decisions.seen[-1].refused == ""


async def test_one_that_the_router_has_lost_is_restarted_too(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    await one.look()
    turn = Turn(id="r1-1", replica_id="rep1", version="v2", began_s=0.0, restart=True)
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, turn=turn)
    await one.look()
    del one.cluster.replicas["rep1"]
    one.cluster.silent.add("rep1")
    await one.restarted()
    decisions.next = [Restart(replica_id="rep1", why="x")]
    await one.look()
    assert decisions.seen[-1].turn_lives is True and one.cluster.calls[-1] == ("restart", "rep1")
    await one.look()
    assert decisions.seen[-1].turn_lives is False


async def test_scaling_survives_a_controller_that_dies_at_any_moment_of_it(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())

    def die(name: str) -> None:
        if name == NAME:
            raise Killed

    async def scale(extra: int) -> None:
        decisions.next = [Scale(extra=extra)]
        await one.look()

    await scale(1)
    assert (one.cluster.target, decisions.seen[-1].extra) == (3, 0)
    one.cluster.target = 2  # it died before Serve was asked
    await one.restarted()
    await scale(1)
    await scale(1)
    assert one.cluster.target == 3, "one more, not two"
    assert (decisions.seen[-1].wanted, decisions.seen[-1].extra) == (2, 1)
    one.memory.on_put = die
    with pytest.raises(Killed):
        await scale(0)
    one.memory.on_put = lambda name: None
    await one.restarted()
    await scale(0)
    assert one.cluster.target == 2 and one.engine.ledger.kept.base is None
    one.cluster.target = 5  # an operator
    await one.look()
    await one.look(5)
    assert (decisions.seen[-1].wanted, decisions.seen[-1].extra) == (5, 0)


@pytest.mark.parametrize("lost_by", [Killed, Away])
@pytest.mark.parametrize("autoscaled", [False, True])
@pytest.mark.parametrize("extra", [1, 0])
async def test_a_scaling_that_gets_lost_is_asked_for_again(shell: Make, extra, autoscaled, lost_by) -> None:
    """By the real decisions."""
    one = shell(strategy="surge")
    one.cluster.autoscaled = autoscaled
    await started(one)

    def on_top() -> int:
        assert one.cluster.stored is not None
        return one.cluster.stored.extra if autoscaled else one.cluster.target - 2

    if not extra:
        await one.look(5)
        assert on_top() == 1
        await one.engine.orders.command("abort", ALICE)
    lost: list[Any] = []
    name = "store" if autoscaled else "scale"
    call = getattr(one.cluster, name)

    async def loses(*arguments: Any) -> Any:
        if not lost and (not autoscaled or arguments[0].extra == extra):
            lost.append(arguments)
            raise lost_by
        return await call(*arguments)

    setattr(one.cluster, name, loses)
    for _ in range(60):
        with contextlib.suppress(Away):
            try:
                await one.look()
            except Killed:
                await one.restarted()
    assert lost and on_top() == extra == one.engine.ledger.kept.extra
    assert one.engine.ledger.kept.base == (2 if extra and not autoscaled else None)


async def test_a_scaling_that_serve_refuses_has_not_been(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    await one.look()
    one.cluster.refuse["scale"] = NOT_SCALABLE
    decisions.next = [Scale(extra=1)]
    await one.look(2)
    seen = decisions.seen[-1]
    assert (seen.extra, seen.wanted, seen.refused) == (0, 2, NOT_SCALABLE) and one.engine.ledger.kept.base is None


async def test_where_the_load_decides_how_many_there_are_its_policy_is_told(shell: Make, decisions: Decisions) -> None:
    one = shell()
    one.cluster.autoscaled, one.cluster.scalable = True, False
    await started(one)
    decisions.next = [Scale(extra=1)]
    await one.look()
    assert one.cluster.stored is not None and one.cluster.stored.extra == 1 and one.cluster.target == 2
    assert not [call for call in one.cluster.calls if call[0] == "scale"]
    decisions.next = [Assign(stable="v1", new_replica="v2", traffic=None), Scale(extra=0)]
    await one.look()
    assert one.cluster.router is not None and (one.cluster.router.extra, one.cluster.router.new_replica) == (0, "v2")


async def test_with_router_or_serve_away_nothing_is_known_and_nothing_breaks(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    await one.look()
    one.cluster.away = one.cluster.serve_away = True
    await one.look(5)
    seen = decisions.seen[-1]
    assert seen.replicas is None and seen.wanted == 0 and not seen.in_effect
    report = one.engine.report()
    assert report["watching"] is False and report["current"]["replicas"] == []
    one.cluster.away = one.cluster.serve_away = False
    await one.look(5)
    assert len(decisions.seen[-1].replicas or ()) == 2 and decisions.seen[-1].wanted == 2


async def test_a_mistake_in_a_decision_does_not_end_the_watching(shell: Make, monkeypatch, caplog) -> None:
    one = await started(shell())
    looks = []

    def broken(rollout: Rollout, observed: Observed) -> Decision:
        looks.append(1)
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(module, "decide", broken)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    running = asyncio.create_task(one.engine.run())
    for _ in range(500):
        if len(looks) >= 3:
            break
        await asyncio.sleep(0.01)
    assert len(looks) >= 3 and not running.done() and "a mistake of ours" in caplog.text
    running.cancel()


# -- samples ----------------------------------------------------------------------------------------------------------


def batch(*requests: EndedRequest, wanted: str = "", gateway: str = "g") -> Batch:
    return Batch(
        gateway=gateway, late=False, requests=requests, first=0, replicas=(), hung=(), dropped=0, wanted=wanted
    )


def ended(version: str = "v2", **more: Any) -> EndedRequest:
    fields = {
        "age_s": 0.5, "version": version, "replica": "rep1", "prompt_tokens": 10, "ttft_s": 0.2, "tpot_s": 0.01,
        "failed": False, "shed": False, "lasted_s": 2.0, "output_tokens": 30, "done": True,
    }  # fmt: skip
    return EndedRequest(**(fields | more))


async def test_samples_are_of_what_began_in_the_window_and_tells_of_its_version(
    shell: Make, decisions: Decisions
) -> None:
    one = await started(shell())
    one.engine.take(one.clock.now_s, batch(ended()))
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, watch_s=1002.0)
    one.cluster.running = {"v1": 4, "v2": 1}
    await one.look()
    one.engine.take(1003.0, batch(ended()))  # it began at 1000.5
    one.engine.take(
        1006.0,
        batch(
            ended(),
            ended("v1", resumed=True),
            ended("v1", done=False),  # its client left
            ended("", failed=True, done=False),  # it never got to a replica
            ended(failed=True, done=False),
            ended(shed=True, done=False),
            ended(mirror=True),
        ),
    )
    await one.look()
    samples = decisions.seen[-1].samples
    assert {name: (s.ended, s.failed, s.mirrored, s.running) for name, s in samples.items()} == {
        "v2": (3, 1, 1, 1), "v1": (1, 0, 0, 4),
    }  # fmt: skip
    assert not samples["v1"].tpot and samples["v1"].ttft["0"].seen == 1 and samples["v2"].length["0"].seen == 2


async def test_a_new_controller_takes_nothing_from_before_it_for_whole(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, watch_s=1001.5)
    await one.look(5)
    one.engine.take(1005.0, batch(ended()))
    await one.look()
    assert decisions.seen[-1].samples["v2"].since_s == 1001.5
    await one.restarted()
    await one.look()
    one.engine.take(1009.5, batch(ended(), ended(lasted_s=3.5)))
    await one.look()
    assert (decisions.seen[-1].samples["v2"].since_s, decisions.seen[-1].samples["v2"].ended) == (1006.0, 1)


# -- user_config ------------------------------------------------------------------------------------------------------

V1, V2, LARGER = (f'{{"version": "{name}"}}' for name in ("v1", "v2", "larger"))


async def tell(one: Shell, wanted: str, looks: int = 4) -> None:
    for _ in range(looks):
        one.engine.take(one.clock.now_s, batch(wanted=wanted))
        await one.look()


async def test_the_first_user_config_with_what_is_served_starts_nothing(shell: Make, decisions: Decisions) -> None:
    one = shell()
    await one.engine.restore()
    await tell(one, V1)
    assert one.engine.report()["current"] is None and one.engine.ledger.kept.wanted == V1
    assert await one.audited() == []


async def test_a_changed_user_config_starts_a_rollout_once(shell: Make, decisions: Decisions) -> None:
    one = shell()
    await one.engine.restore()
    one.cluster.served = 3
    await tell(one, V1)
    await tell(one, '{"rollout": {"steps": [0.2]}, "version": "v2"}')
    current = one.engine.report()["current"]
    assert (current["to"], current["steps"], current["started_by"]) == ("v2", [0.2], "user_config")
    assert [event["what"] for event in current["events"]] == ["started"], "by its gates: somebody is served"
    await one.restarted()
    await tell(one, '{"rollout": {"steps": [0.2]}, "version": "v2"}')
    assert one.engine.report()["current"]["id"] == "r1" and len(await one.audited()) == 1


@pytest.mark.parametrize("put", range(1, 4))
async def test_a_changed_user_config_is_followed_once_however_the_controller_dies_at_it(
    shell: Make, decisions: Decisions, put
) -> None:
    one = shell()
    await one.engine.restore()
    one.cluster.served = 3
    await tell(one, V1)
    puts: list[str] = []

    def die(name: str) -> None:
        puts.append(name)
        if len(puts) == put:
            raise Killed

    one.memory.on_put = die
    try:
        await tell(one, V2)
    except Killed:
        await one.restarted()
    await tell(one, V2)
    assert len(puts) >= put
    assert one.engine.report()["current"]["to"] == "v2" and one.engine.ledger.kept.rollouts == 1
    audited = await one.audited()
    assert audited in ([("user_config", "start")], [("user_config", "started")]), audited


async def test_another_version_before_anybody_is_served_is_done_at_once(shell: Make, decisions: Decisions) -> None:
    one = shell()
    await one.engine.restore()
    await tell(one, V2)
    assert [event["what"] for event in one.engine.report()["current"]["events"]] == ["started", "promote"]


async def test_what_was_rolled_out_since_wins_over_the_same_user_config(shell: Make, decisions: Decisions) -> None:
    one = shell()
    await one.engine.restore()
    one.cluster.served = 1
    await tell(one, V1)
    await started(one)
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, phase=Phase.DONE, ended_s=1.0)
    decisions.next = [Assign(stable="v2", new_replica="v2", traffic=None)]
    await one.look()
    await one.restarted()  # the application is deployed anew, with the user_config of its first day
    await tell(one, V1)
    assert one.engine.report()["current"] is None and one.engine.stable == "v2"


async def test_while_a_rollout_runs_its_origin_ends_it_and_a_third_waits(shell: Make, decisions: Decisions) -> None:
    one = shell()
    await one.engine.restore()
    one.cluster.served = 1
    await tell(one, V1)
    await tell(one, V2)
    await tell(one, LARGER, 6)
    assert "waits for the end of rollout r1" in one.engine.report()["note"]
    assert (await one.audited()).count(("user_config", "held")) == 1
    decisions.change = lambda rollout: msgspec.structs.replace(rollout, phase=Phase.ROLLED_BACK, ended_s=1.0)
    await tell(one, LARGER, 1)
    decisions.change = lambda rollout: rollout
    await tell(one, LARGER, 1)
    assert one.engine.report()["current"]["to"] == "larger" and one.engine.report()["note"] == ""
    await tell(one, V1)
    assert one.engine.report()["current"]["events"][-1]["what"] == "abort"


async def test_a_user_config_that_is_none_of_ours_is_noted_and_shown(shell: Make, decisions: Decisions) -> None:
    one = shell()
    await one.engine.restore()
    await tell(one, '{"verison": "v2"}', 6)
    assert "not understood" in one.engine.report()["note"] and one.engine.report()["current"] is None
    assert await one.audited() == [("user_config", "refused")]
    await tell(one, '{"version": "v9"}', 6)
    assert "has no version v9" in one.engine.report()["note"]
    await tell(one, V1)
    assert one.engine.report()["note"] == ""


# -- the audit log ----------------------------------------------------------------------------------------------------


async def test_an_order_is_noted_though_the_controller_died_between_it_and_its_entry(
    shell: Make, decisions: Decisions
) -> None:
    one = await started(shell())
    decisions.change = lambda rollout: rollout.with_note(5.0, "step", "on")
    await one.look()
    decisions.change = lambda rollout: rollout

    def die(name: str) -> None:
        if name != NAME:
            raise Killed

    one.memory.on_put = die
    with pytest.raises(Killed):
        await one.engine.orders.command("pause", ALICE)
    one.memory.on_put = lambda name: None
    await one.restarted()
    await one.engine.orders.command("resume", ALICE)
    await one.look(2)
    assert await one.audited() == [
        ("alice", "start"), ("controller", "step"), ("alice", "paused"), ("alice", "resume"),
    ]  # fmt: skip
    assert (await one.engine.ledger.entries(9))[2]["where"] == UNKNOWN


async def test_each_decision_is_noted_once_however_often_the_controller_dies(shell: Make, decisions: Decisions) -> None:
    one = await started(shell())
    decisions.change = lambda rollout: rollout.with_note(5.0, "step", f"note {rollout.noted}")
    for number in range(6):
        if number % 2:
            await one.restarted()
        await one.look()
    decisions.change = lambda rollout: rollout
    await one.restarted()
    await one.look()
    entries = await one.engine.ledger.entries(100)
    assert [entry["detail"] for entry in entries if entry["what"] == "step"] == [f"note {n}" for n in range(1, 7)]
    assert {entry["who"] for entry in entries[1:]} == {"controller"}

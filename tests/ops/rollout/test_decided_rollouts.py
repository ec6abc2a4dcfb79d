"""Whole rollouts on a simulated cluster: what they end with, and what they do on the way."""

import msgspec
import pytest
from killed_shell import Shell
from simulated_cluster import BAD, BROKEN, QUICK, Cluster, Version

from ops.rollout.actions import Restart, Scale, SwapReplica
from ops.rollout.commands import Command, commanded
from ops.rollout.decide import decide
from ops.rollout.spec import RolloutSpec, Strategy
from ops.rollout.state import Phase, Rollout, started


def rolled(replicas: int, version: Version | None = None, **spec: object) -> Shell:
    cluster = Cluster(replicas, Version("v1"), version or Version("v2"))
    return Shell(cluster, started("x", RolloutSpec(**{**QUICK, **spec}), "v1", cluster.now))  # type: ignore[arg-type]


def until(shell: Shell, phase: Phase, seconds: int = 1000) -> Rollout:
    for _ in range(seconds):
        if shell.rollout.phase is phase:
            return shell.rollout
        shell.tick()
    raise AssertionError(f"it is {shell.rollout.phase}, never {phase}: {shell.whys[-1]}")


def say(shell: Shell, command: Command) -> None:
    shell.stored = msgspec.json.encode(commanded(shell.rollout, command, shell.cluster.now, "ann"))
    shell._mine = shell.rollout


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_a_good_version_is_promoted_in_place(replicas: int) -> None:
    shell = rolled(replicas)
    assert shell.run().phase is Phase.DONE and shell.is_consistent()
    steps = ["started", "verified", "promoting", "done"]
    assert [note.what for note in shell.rollout.notes if note.what in steps] == steps
    cluster = shell.cluster
    assert cluster.made == replicas, "no replica beyond those that were there"
    assert cluster.most_out == 1
    if replicas > 1:
        assert cluster.unserved == 0, "somebody takes requests at all times"


@pytest.mark.parametrize("replicas", [1, 2, 5])
@pytest.mark.parametrize("how", BAD)
def test_a_bad_version_is_rolled_back_by_its_gates(how: str, replicas: int) -> None:
    shell = rolled(replicas, BAD[how])
    rollout = shell.run()
    assert rollout.phase is Phase.ROLLED_BACK and shell.is_consistent()
    assert any(gate.answer.value == "no" for gate in rollout.gates)
    assert shell.cluster.made == replicas
    if replicas > 1:
        assert rollout.step == 0 and shell.cluster.unserved == 0
        share = shell.cluster.served["v2"] / shell.cluster.served.total()
        assert share < 0.1, "it answered less than the canary's share, over the whole time"


@pytest.mark.parametrize("replicas", [1, 2, 5])
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_version_never_gets_traffic(how: str, replicas: int) -> None:
    shell = rolled(replicas, BROKEN[how])
    assert shell.run().phase is Phase.ROLLED_BACK and shell.is_consistent()
    assert shell.cluster.served["v2"] == 0
    lost = shell.cluster.made - replicas
    assert lost == {"crashes": 2, "hangs": 1}.get(how, 0), "what a version may cost is bounded"


def test_what_does_not_verify_touches_no_replica() -> None:
    shell = rolled(2)
    shell.cluster.problems = ("model.safetensors is not what the manifest says", "config.json is missing")
    rollout = shell.run()
    assert rollout.phase is Phase.FAILED and shell.is_consistent()
    assert "not what the manifest says; config.json" in rollout.notes[-1].detail
    assert all(replica.ended is None for replica in shell.cluster.replicas.values())


@pytest.mark.parametrize("same_architecture", [True, False])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_surge_brings_new_replicas_first(replicas: int, same_architecture: bool) -> None:
    shell = rolled(replicas, strategy=Strategy.SURGE if same_architecture else Strategy.AUTO)
    shell.cluster.same_architecture = same_architecture
    fewest = replicas

    def observe(before: object = shell.cluster._arrive) -> None:
        nonlocal fewest
        fewest = min(fewest, sum(shell.cluster._takes(replica) for replica in shell.cluster.replicas.values()))
        before()  # type: ignore[operator]

    shell.cluster._arrive = observe  # type: ignore[method-assign]
    rollout = shell.run()
    assert rollout.phase is Phase.DONE and shell.is_consistent()
    assert rollout.strategy is Strategy.SURGE and rollout.same_architecture is same_architecture
    assert fewest == replicas, "there are never fewer than before"
    if not same_architecture:
        assert any("architecture differs" in note.detail for note in rollout.notes)
        assert not any(note.what == "swap" and note.detail.startswith("r1 ") for note in rollout.notes)


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("version", [Version("v2", load="fails"), Version("v2", probes="fail"), BAD["errors"]])
def test_a_surge_of_a_bad_version_goes_back(version: Version, replicas: int) -> None:
    shell = rolled(replicas, version)
    shell.cluster.same_architecture = False
    assert shell.run().phase is Phase.ROLLED_BACK and shell.is_consistent()
    assert shell.cluster.unserved == 0


def test_mirrored_requests_alone_find_a_bad_version() -> None:
    shell = rolled(3, BAD["long answers"], steps=(0.0, 0.3), mirror=0.3)
    rollout = shell.run()
    assert rollout.phase is Phase.ROLLED_BACK and rollout.step == 0
    assert shell.cluster.served["v2"] == 0
    assert rolled(3, steps=(0.0, 0.3), mirror=0.3).run().phase is Phase.DONE


def test_without_requests_nothing_is_promoted_and_all_goes_back_at_the_deadline() -> None:
    for replicas in (1, 3):
        shell = rolled(replicas)
        shell.cluster.rate = 0
        rollout = shell.run()
        assert rollout.phase is Phase.ROLLED_BACK and shell.is_consistent()
        assert any("no answer within 400 s" in note.detail for note in rollout.notes)


def test_an_operator_may_promote_without_requests_but_not_past_probes() -> None:
    for version, phase in ((Version("v2"), Phase.DONE), (BROKEN["wrong answers"], Phase.ROLLED_BACK)):
        shell = rolled(3, version)
        shell.cluster.rate = 0
        until(shell, Phase.CANARY)
        say(shell, Command.PROMOTE)
        assert shell.run().phase is phase and shell.is_consistent()


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.VERIFYING, Phase.CANARY, Phase.PROMOTING])
@pytest.mark.parametrize("later", [0, 1, 4, 30])
def test_abort_in_each_phase_leads_back(phase: Phase, later: int, replicas: int) -> None:
    if phase is Phase.PROMOTING and replicas == 1:
        return  # its only replica has the version by then: it ends at once
    shell = rolled(replicas)
    until(shell, phase)
    for _ in range(later):
        shell.tick()
    if shell.rollout.phase is Phase.DONE:
        return  # it was quicker
    say(shell, Command.ABORT)
    assert shell.run().phase is Phase.ROLLED_BACK and shell.is_consistent()


@pytest.mark.parametrize("phase", [Phase.VERIFYING, Phase.CANARY, Phase.PROMOTING])
def test_a_pause_holds_it_where_it_is(phase: Phase) -> None:
    shell = rolled(4)
    until(shell, phase)
    say(shell, Command.PAUSE)
    for _ in range(15):
        shell.tick()  # a swap that is under way ends
    held = shell.rollout
    for _ in range(800):  # longer than the deadline, which stands still too
        shell.tick()
    assert (shell.rollout.phase, shell.rollout.step, shell.rollout.turns) == (held.phase, held.step, held.turns)
    say(shell, Command.RESUME)
    assert shell.run().phase is Phase.DONE and shell.is_consistent()


def test_a_pause_does_not_hold_a_rollback() -> None:
    shell = rolled(2, BAD["errors"])
    until(shell, Phase.CANARY)
    for _ in range(15):
        shell.tick()
    say(shell, Command.PAUSE)
    assert shell.run(300).phase is Phase.ROLLED_BACK


def test_replicas_that_are_scaled_in_and_out_meanwhile_end_with_the_version_too() -> None:
    shell = rolled(3)
    for wanted in (4, 6, 3, 1, 2, 5):
        shell.cluster.wanted = wanted
        for _ in range(30):
            shell.tick()
    assert shell.run().phase is Phase.DONE and shell.is_consistent() and len(shell.cluster.replicas) == 5


@pytest.mark.parametrize("phase", [Phase.CANARY, Phase.PROMOTING, Phase.ROLLING_BACK])
def test_replicas_that_die_are_waited_for(phase: Phase) -> None:
    for seed in range(5):
        shell = rolled(3, BAD["errors"] if phase is Phase.ROLLING_BACK else None)
        shell.cluster.rng.seed(seed)
        until(shell, phase)
        for _ in range(3):
            shell.cluster.kill_replica()
            for _ in range(12):
                shell.tick()
        ends = Phase.ROLLED_BACK if phase is Phase.ROLLING_BACK else Phase.DONE
        assert shell.run().phase is ends and shell.is_consistent()


def test_no_replica_is_taken_while_another_is_away() -> None:
    shell = rolled(3)
    until(shell, Phase.PROMOTING)
    shell.cluster.load_s = 30.0
    shell.cluster.kill_replica()
    turns = shell.rollout.turns
    for _ in range(20):
        shell.tick()
    assert shell.rollout.turns == turns and "1 of 3 replicas are not there" in shell.whys[-1]
    assert shell.run().phase is Phase.DONE and shell.is_consistent()


def test_a_node_that_is_gone_for_good_does_not_hold_up_what_is_decided() -> None:
    shell = rolled(4)
    until(shell, Phase.PROMOTING)
    shell.cluster.cannot_load = True
    shell.cluster.kill_replica()
    assert shell.run().phase is Phase.DONE
    assert {replica.version for replica in shell.cluster.replicas.values()} == {"v2"}


def test_a_drained_replica_is_swapped_too_and_last() -> None:
    shell = rolled(3)
    drained = next(iter(shell.cluster.replicas.values()))
    drained.draining = True
    rollout = shell.run()
    assert rollout.phase is Phase.DONE and drained.version == "v2" and drained.draining
    swaps = [note.detail for note in rollout.notes if note.what == "swap"]
    assert swaps[-1].startswith(drained.replica_id)


def test_a_straggler_of_an_ended_rollout_is_swapped_too() -> None:
    for version, stable in ((Version("v2"), "v2"), (BAD["errors"], "v1")):
        shell = rolled(2, version)
        rollout = shell.run()
        shell.cluster.proven.add("v1")
        shell.cluster.wanted = 3
        shell.cluster._start("v1" if stable == "v2" else "v2", shell.cluster.now)
        for _ in range(30):
            shell.tick()
        assert shell.rollout.phase is rollout.phase and shell.is_consistent()


def test_the_router_away_nothing_is_done() -> None:
    shell = rolled(2)
    until(shell, Phase.CANARY)
    shell.cluster.router_at = shell.cluster.now + 50.0
    rollout = shell.rollout
    for _ in range(40):
        shell.tick()
    assert shell.rollout == rollout and shell.whys[-1].startswith("the router does not answer")
    assert shell.run().phase is Phase.DONE


def test_a_replica_that_cannot_go_back_is_restarted() -> None:
    shell = rolled(2, BAD["errors"])
    until(shell, Phase.ROLLING_BACK)
    shell.cluster.versions["v1"].load = "hangs in place"
    done: list[object] = []
    do = shell.cluster.do
    shell.cluster.do = lambda action: (done.append(action), do(action))  # type: ignore[assignment, func-returns-value]
    for _ in range(1000):
        shell.tick()
        if any(isinstance(action, Restart) for action in done):
            break
    else:
        pytest.fail(shell.whys[-1])
    shell.cluster.versions["v1"].load = "loads"
    assert shell.run().phase is Phase.ROLLED_BACK and shell.is_consistent()
    assert any(isinstance(action, SwapReplica) for action in done) and not any(isinstance(a, Scale) for a in done)


def test_undo_is_a_rollout_to_the_version_before() -> None:
    shell = rolled(2)
    assert shell.run().phase is Phase.DONE
    back = started("y", RolloutSpec(**{**QUICK, "version": "v1"}), shell.rollout.stable, shell.cluster.now)  # type: ignore[arg-type]
    undone = Shell(shell.cluster, back)
    assert undone.run().phase is Phase.DONE and undone.is_consistent() and undone.rollout.stable == "v1"


@pytest.mark.parametrize("command", [Command.PROMOTE, Command.ABORT])
def test_files_are_read_while_the_router_is_away_and_nothing_more_is_done(command: Command) -> None:
    shell = rolled(2)
    shell.tick()
    shell.cluster.restart_router()
    shell.cluster.router_at = shell.cluster.now + 20.0
    say(shell, command)
    for _ in range(15):
        shell.tick()
    assert shell.rollout.phase is (Phase.ROLLED_BACK if command is Command.ABORT else Phase.CANARY)
    assert shell.cluster.assignment is None and shell.whys[-1].startswith("the router does not answer")
    assert shell.run().ended and shell.is_consistent()


def test_what_was_refused_is_said() -> None:
    shell = rolled(2)
    until(shell, Phase.CANARY)
    seen = shell.cluster.observed(shell.rollout, None)
    plain = decide(shell.rollout, seen).why
    refused = decide(shell.rollout, msgspec.structs.replace(seen, refused="The store is away."))
    assert refused.why == f"{plain}; refused: The store is away"

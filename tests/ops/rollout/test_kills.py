"""The controller is killed again and again, at any point: what it ends with is what it had decided, everywhere."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_shell import Shell
from simulated_cluster import BAD, BROKEN, QUICK, Cluster, Version

from ops.rollout.commands import Command, Refused, commanded
from ops.rollout.spec import RolloutSpec
from ops.rollout.state import Phase, Rollout, started

KILLED_IN = [Phase.PENDING, Phase.VERIFYING, Phase.CANARY, Phase.PROMOTING, Phase.ROLLING_BACK]
VERSIONS = [Version("v2"), *BAD.values(), *BROKEN.values()]


def shell_of(
    replicas: int, version: Version, seed: int, phase: Phase | None, chance: float, same: bool, stores_first: bool
) -> Shell:
    """Killed with that chance at each point of the phase (None: of all), 30 times at most."""
    rng, left = random.Random(seed), [30]

    def kill(point: str, rollout: Rollout) -> bool:
        if left[0] and (phase is None or rollout.phase is phase) and rng.random() < chance:
            left[0] -= 1
            return True
        return False

    cluster = Cluster(replicas, Version("v1"), version, seed)
    cluster.same_architecture = same
    spec = RolloutSpec(**QUICK)  # type: ignore[arg-type]
    return Shell(cluster, started("x", spec, "v1", cluster.now), kill, stores_first)


@pytest.mark.parametrize("stores_first", [True, False], ids=["stored first", "stored last"])
@pytest.mark.parametrize("phase", KILLED_IN)
def test_killed_at_random_moments_of_each_phase(phase: Phase, stores_first: bool) -> None:
    """The shell stores first; that it would do so last, or that a store is lost, must break nothing either."""
    kills: Counter[str] = Counter()
    ends: Counter[Phase] = Counter()
    for seed in range(10):
        version = VERSIONS[seed % len(VERSIONS)] if phase is not Phase.PROMOTING else Version("v2")
        if phase is Phase.ROLLING_BACK:
            version = BAD["errors"]
        replicas, same = 1 + seed % 4, seed % 3 != 0
        shell = shell_of(replicas, version, seed, phase, 0.5, same, stores_first)
        rollout = shell.run()
        assert rollout.ended, (seed, shell.whys[-1])
        assert shell.is_consistent(), (seed, rollout.phase)
        if not version.may_serve:
            assert rollout.phase is Phase.ROLLED_BACK
        kills.update({"kills": shell.kills[phase]})
        ends[rollout.phase] += 1
    assert kills["kills"] >= 20
    if phase in (Phase.PENDING, Phase.VERIFYING, Phase.CANARY):
        assert len(ends) == 2, "some were good and some were not"


events = st.lists(
    st.tuples(
        st.integers(0, 120),  # seconds since the one before
        st.sampled_from(["die", "router", "drain", "undrain", "scale", "pause", "resume", "promote", "abort"]),
        st.integers(1, 5),
    ),
    max_size=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    replicas=st.integers(1, 5),
    version=st.sampled_from(VERSIONS),
    seed=st.integers(0, 1 << 16),
    chance=st.sampled_from([0.0, 0.02, 0.2]),
    same=st.booleans(),
    stores_first=st.booleans(),
    happens=events,
)
def test_whatever_happens_it_ends_in_one_version_that_was_decided(
    replicas: int,
    version: Version,
    seed: int,
    chance: float,
    same: bool,
    stores_first: bool,
    happens: list[tuple[int, str, int]],
) -> None:
    shell = shell_of(replicas, version, seed, None, chance, same, stores_first)
    cluster = shell.cluster
    for seconds, what, number in happens:
        for _ in range(seconds):
            shell.tick()
        match what:
            case "die":
                cluster.kill_replica()
            case "router":
                cluster.restart_router()
            case "drain":
                cluster.drain()
            case "undrain":
                cluster.undrain()
            case "scale":
                cluster.wanted = number
            case _:
                _say(shell, Command(what))
    cluster.undrain()
    _say(shell, Command.RESUME)
    before = shell.rollout
    rollout = shell.run(6000)
    assert rollout.ended, shell.whys[-1]
    assert shell.is_consistent()
    if not version.may_serve:
        assert rollout.phase is Phase.ROLLED_BACK
    if before.phase is Phase.ROLLING_BACK:
        assert rollout.phase is Phase.ROLLED_BACK, "what was decided stays decided"


def _say(shell: Shell, command: Command) -> None:
    try:
        rollout = commanded(shell.rollout, command, shell.cluster.now)
    except Refused as why:
        assert str(why).endswith(".")
    else:
        shell.stored = msgspec.json.encode(rollout)
        shell._mine = rollout

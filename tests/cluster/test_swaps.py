"""What a router knows of swaps and of what is assigned; then a whole replica, its core, its router, its gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from scripted_core import Client, Hosted, continuation, spec, until
from test_router import Router, grant, info, outbox, report, ticket

from cluster.draining import DrainRefused, DrainRequest
from cluster.router_state import HEARTBEAT_TIMEOUT_S
from cluster.swaps import SwapRefused
from replicas import replica as module
from replicas.assignment import Assignment, Mirror
from replicas.engine_host import EngineFailed
from replicas.messages import LoadReport, Lost, Probe, ReplicaInfo, Resync, Swap, SwapReport
from replicas.replica import Replica, assigned

EVENT_LOOPS = ("asyncio",)
SWAP = Swap(id="s1", version="v2", directory="/models/v2", finish_s=5.0)


def told(phase: str, epoch: int = 1, replica_id: str = "a", **more: Any) -> LoadReport:
    return msgspec.structs.replace(
        report(replica_id, epoch), swap=SwapReport(id="s1", version="v2", phase=phase, **more)
    )


def state(router: Router, replica_id: str = "a") -> tuple[str, str | None]:
    """Of a replica: its state, and the phase of its last swap."""
    [vitals] = [r for r in router.state.vitals().replicas if r.replica_id == replica_id]
    return router.state.state_of(replica_id), vitals.swap.phase if vitals.swap else None


def test_nothing_is_granted_to_a_replica_that_is_to_swap_until_its_new_life():
    router = Router(info(), gateways="g")
    assert router.exchange("g", outbox("1")).grants == (grant("1"),)
    assert router.state.swap("a", SWAP) == "a" and state(router) == ("swapping", "finishing")
    router.exchange("g", outbox("2"))
    assert router.granted() == []
    assert router.state.report(report(), router.now) and router.state.answer(report()).swap == SWAP
    assert router.state.answer(report()) == router.state.answer(report()), "until a report tells of it"
    for phase in ("finishing", "verifying", "loading", "probing"):
        router.state.report(told(phase), router.now)
        assert router.state.answer(told(phase)).swap is None and state(router) == ("swapping", phase)
        assert router.state.vitals().replicas[0].swapping
    assert router.granted() == []
    swapped = msgspec.structs.replace(info(epoch=2), version="v2", directory="/models/v2", checksum="sum")
    router.state.join(swapped, router.now)
    assert router.granted() == ["2"] and state(router)[0] == "ready"
    router.state.report(told("done", 2, exact=3, asked=3), router.now)
    [vitals] = router.state.vitals().replicas
    assert (vitals.version, vitals.directory, vitals.checksum) == ("v2", "/models/v2", "sum")
    assert vitals.swap is not None and vitals.swap.exact == 3 and not vitals.swapping
    assert router.state.vitals().started_by_version == {"v2": 1}


def test_the_same_command_twice_is_one():
    router = Router(info(), gateways="g")
    for _ in range(3):
        assert router.state.swap("a", SWAP) == "a"
    with pytest.raises(SwapRefused, match="one swap after the other"):
        router.state.swap("a", msgspec.structs.replace(SWAP, id="s2"))
    router.state.join(info(epoch=2), router.now)
    router.state.report(told("done", 2), router.now)
    assert router.state.swap("a", SWAP) == "a" and state(router) == ("ready", "done")
    assert router.state.answer(told("done", 2)).swap is None
    router.state.swap("a", msgspec.structs.replace(SWAP, id="s2"))
    assert state(router) == ("swapping", "finishing")
    with pytest.raises(SwapRefused, match="no replica b"):
        router.state.swap("b", SWAP)


def test_a_replica_that_was_not_touched_is_granted_requests_again():
    router = Router(info(), gateways="g")
    router.state.swap("a", SWAP)
    router.exchange("g", outbox("1"))
    router.state.report(told("finishing"), router.now)
    assert router.granted() == []
    _, version = router.state.collect("g", -1)
    router.state.report(told("failed", detail="a file is corrupt"), router.now)
    inbox, _ = router.state.collect("g", version)
    assert inbox is not None and inbox.roster, "a gateway that lost its connection meanwhile has to meet it anew"
    assert router.granted() == ["1"] and state(router) == ("ready", "failed")


def test_an_operators_drain_outlives_a_swap():
    router = Router(info(), info("b"), gateways="g")
    router.state.drain(DrainRequest(replica="a"), router.now)
    router.state.swap("a", SWAP)
    for undo in (False, True):
        with pytest.raises(DrainRefused, match="another version's weights"):
            router.state.drain(DrainRequest(replica="a", undo=undo), router.now)
    router.state.report(told("failed"), router.now)
    assert state(router) == ("draining", "failed")


@pytest.mark.parametrize("drained", [True, False])
def test_a_wish_that_the_replica_had_not_heard_of_outlives_its_swap(drained: bool):
    """The drain, or its end, came right before the swap: the new life joins with what it knew."""
    router = Router(msgspec.structs.replace(info(), draining=not drained), info("b"), gateways="g")
    router.state.drain(DrainRequest(replica="a", undo=not drained), router.now)
    router.state.swap("a", SWAP)
    router.state.report(told("loading"), router.now)
    router.state.join(msgspec.structs.replace(info(epoch=2), draining=not drained), router.now)
    assert state(router)[0] == ("draining" if drained else "ready")


def test_a_broken_replica_is_not_granted_anything():
    router = Router(info(), gateways="g")
    router.state.swap("a", SWAP)
    router.state.report(told("loading"), router.now)
    router.state.report(told("failed", broken=True), router.now)
    router.exchange("g", outbox("1"))
    assert router.granted() == [] and state(router) == ("swapping", "failed")


def test_streams_move_only_to_replicas_of_the_same_version():
    other = msgspec.structs.replace(info("b"), version="v2")
    for replicas, moved in (((info(), other), ()), ((info(), info("b")), ("1",))):
        router = Router(*replicas, gateways="g")
        running = ((ticket("1"), grant("1")),)
        router.exchange("g", Resync(gateway="g", running=running))
        router.state.swap("a", SWAP)
        assert router.told().move == moved


def test_connections_that_a_swap_closes_are_no_loss():
    router = Router(info(), info("b"), gateways="g")
    router.state.swap("a", SWAP)
    router.state.report(told("loading"), router.now)
    router.exchange("g", outbox(lost=(Lost(replica_id="a", epoch=1),)))
    assert router.state.tally.lost == 0 and state(router) == ("swapping", "loading")
    assert [replica.replica_id for replica in router.told().roster or ()] == ["b"], "it would not let anybody in"
    router.state.join(info(epoch=2), router.now)
    assert [(r.replica_id, r.epoch) for r in router.told().roster or ()] == [("a", 2), ("b", 1)]
    router.exchange("g", outbox(lost=(Lost(replica_id="a", epoch=1),)))  # late
    assert state(router)[0] == "ready" and router.state.tally.lost == 0


def test_a_replica_that_dies_in_a_swap_is_gone():
    router = Router(info(), info("b"), gateways="g")
    router.state.swap("a", SWAP)
    router.later(HEARTBEAT_TIMEOUT_S + 2, "b")
    assert router.state.state_of("a") == "gone" and router.state.tally.lost == 1
    router.state.join(info(epoch=2), router.now)
    assert state(router) == ("ready", None)


def test_a_router_that_is_new_learns_of_a_swap_from_the_replica():
    router = Router(gateways="g")
    router.state.join(msgspec.structs.replace(info(), swapping=True), router.now)
    router.exchange("g", outbox("1"))
    assert router.granted() == [] and state(router) == ("swapping", None)
    router.state.report(told("probing"), router.now)
    assert state(router) == ("swapping", "probing") and router.state.answer(told("probing")).swap is None
    assert router.state.swap("a", SWAP) == "a", "it is that very swap"
    router.state.join(info(epoch=2), router.now)
    assert router.granted() == ["1"]
    router.state.report(told("done", 2), router.now)
    assert state(router) == ("ready", "done")


def test_a_router_that_is_new_hears_of_a_swap_that_is_over():
    router = Router(msgspec.structs.replace(info(epoch=2), draining=True), gateways="g")
    router.state.report(told("done", 2), router.now)
    assert state(router) == ("draining", "done"), "that is an operator's"
    router = Router(info(epoch=2), gateways="g")
    router.state.swap("a", SWAP)  # whoever has not heard of its end says it again
    router.state.report(told("failed", 2), router.now)
    assert state(router) == ("ready", "failed")


def test_gateways_are_told_what_is_assigned_and_a_late_one_is_ignored():
    v1, v2 = (msgspec.structs.replace(info(name), version=version) for name, version in (("a", "v1"), ("b", "v2")))
    router = Router(v1, v2, gateways="g")
    assert router.told().assignment is None and router.state.vitals().assignment_revision == 0
    now = Assignment(
        revision=4, stable="v1", new_replica="v1", traffic={"v1": 1.0}, mirror=Mirror(version="v2", share=0.5)
    )
    _, version = router.state.collect("g", -1)
    router.state.assign(now)
    inbox, version = router.state.collect("g", version)
    assert inbox is not None and inbox.assignment == now
    assert router.state.collect("g", version) == (None, version)
    router.state.assign(msgspec.structs.replace(now, revision=3, traffic={"v2": 1.0}, mirror=None))
    assert router.state.vitals().assignment_revision == 4
    assert {g.replica_id for g in router.exchange("g", outbox("1", "2", "3")).grants} == {"a"}
    router.state.assign(msgspec.structs.replace(now, revision=5, traffic={"v2": 1.0}))
    assert router.granted() == ["3"] and router.state.vitals().started_by_version == {"v1": 2, "v2": 1}
    waiting = msgspec.structs.replace(ticket("4", resumed=True), version="v1")
    router.exchange("g", msgspec.structs.replace(outbox(), tickets=(waiting,)))
    assert router.state.queued == 1 and router.granted() == []


# -- a starting replica ------------------------------------------------------------------------------------------------


def test_a_starting_replica_loads_what_is_assigned():
    own = spec(version="v1", model="/models/v1")
    assert assigned(own, None) is own
    directories = {"v1": "/models/v1", "v2": "/models/v2"}
    now = Assignment(revision=1, stable="v1", new_replica="v2", directories=directories)
    loads = assigned(own, now)
    assert (loads.version, loads.engine_args["model"]) == ("v2", "/models/v2")
    assert assigned(own, msgspec.structs.replace(now, new_replica="v1")) == own
    assert assigned(own, msgspec.structs.replace(now, new_replica="v1", directories={})) is own
    with pytest.raises(EngineFailed, match="'v3' is assigned to new replicas of scripted, and no directory"):
        assigned(own, msgspec.structs.replace(now, new_replica="v3"))


# -- a whole replica ---------------------------------------------------------------------------------------------------


class Asked:
    """An actor's method, by `remote`."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def remote(self, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return self._call(*arguments)


class Silent:
    """Metrics, told to nobody."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Stack:
    """A replica with its core, without Serve; and the state of its router, which notes what it hears."""

    def __init__(self) -> None:
        self.router = Router(gateways="g")
        self.phases: list[str] = []
        self.replica: Any = None

    def join(self, joining: ReplicaInfo) -> None:
        self.router.state.join(joining, time.monotonic())

    def report(self, load: LoadReport) -> Any:
        if load.swap is not None and load.swap.phase not in self.phases[-1:]:
            self.phases.append(load.swap.phase)
        if self.router.state.report(load, time.monotonic()):
            return self.router.state.answer(load)
        return None

    @property
    def actor(self) -> Any:
        return SimpleNamespace(join=Asked(self.join), report=Asked(self.report), leave=Asked(lambda *_: None))

    @property
    def vitals(self) -> Any:
        [one] = self.router.state.vitals().replicas
        return one

    async def client(self) -> Client:
        [told] = self.router.told().roster or ()
        hosted = Hosted.__new__(Hosted)
        hosted.ready = SimpleNamespace(port=told.port, token=told.token)
        return await Client.to(hosted)

    async def start(self, **script: Any) -> None:
        self.replica = await Bare.start(spec(step_s=0.002, version="v1", model="/models/v1", **script))
        await until(lambda: self.router.state.state_of("app#r") == "ready")


class Bare(Replica):
    @classmethod
    async def start(cls, started: Any) -> Any:
        made = cls.__new__(cls)
        await Replica.__init__(made, msgspec.json.encode(started).decode())
        return made

    def __del__(self) -> None:  # type: ignore[override]  # Python's collector does not await it
        pass


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    made = Stack()

    async def find_router(*_: Any, **__: Any) -> Any:
        return made.actor

    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="app#r"))
    runtime = SimpleNamespace(get_actor_name=lambda: "actor")
    monkeypatch.setattr(module, "find_router", find_router)
    monkeypatch.setattr(module.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: runtime)
    monkeypatch.setattr(module.assignment, "read", lambda _: None)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    for name in ("ReplicaMetrics", "ExpertMetrics"):
        monkeypatch.setattr(module, name, lambda *_: Silent())
    yield made
    if made.replica is not None:
        made.replica._reporting.cancel()
        await asyncio.to_thread(made.replica._host.kill)


async def test_a_replica_serves_another_version_when_it_is_told_to(stack: Stack):
    await stack.start(reload_s=0.1)
    client = await stack.client()
    client.add("old", [1, 2], max_tokens=30)
    await until(lambda: "old" in client.tokens)
    before = stack.vitals
    assert (before.version, before.directory, before.checksum) == ("v1", "/models/v1", "checksum of v1")
    probe = Probe(prompt=(5,), answer=tuple(continuation([5], 3, "v2")[1:]), max_tokens=3)
    stack.router.state.swap("app#r", msgspec.structs.replace(SWAP, probes=(probe,), min_exact=1))
    await until(lambda: stack.vitals.epoch != before.epoch and not stack.vitals.swapping)
    assert client.tokens["old"] == continuation([1, 2], 30, "v1"), "it had the time to end"
    told_phases = [phase for phase in stack.phases if phase not in ("verifying", "probing")]  # soon over
    assert told_phases == ["finishing", "loading", "done"]
    after = stack.vitals
    assert (after.version, after.directory, after.checksum) == ("v2", "/models/v2", "checksum of v2")
    assert (after.swap.exact, after.swap.asked, after.swap.detail) == (1, 1, "") and stack.replica._swap is None
    assert stack.router.state.state_of("app#r") == "ready"
    again = await stack.client()
    again.add("new", [1, 2], max_tokens=30)
    await until(lambda: "new" in again.finished)
    assert again.tokens["new"] == continuation([1, 2], 30, "v2")


@pytest.mark.parametrize(
    ("change", "why", "touched"),
    [
        ({"directory": "/models/missing"}, "no directory /models/missing", True),
        ({"directory": "/models/bad"}, "no such tensor", True),
        ({"checksum": "another"}, "not another", True),
        ({"probes": (Probe(prompt=(5,), answer=(-1,)),), "min_exact": 1}, "0 of 1 golden prompts", True),
        ({"sha256": {"model.safetensors": "0" * 64}}, "cannot be read", False),
    ],
)
async def test_a_swap_that_fails_leaves_the_old_version_serving(stack: Stack, change: Any, why: str, touched: bool):
    await stack.start(fail_to_reload={"/models/bad": "no such tensor"})
    epoch = stack.vitals.epoch
    stack.router.state.swap("app#r", msgspec.structs.replace(SWAP, **change))
    await until(lambda: stack.vitals.swap is not None and stack.vitals.swap.phase == "failed")
    await until(lambda: stack.router.state.state_of("app#r") == "ready")
    vitals = stack.vitals
    assert (vitals.version, vitals.directory, vitals.checksum) == ("v1", "/models/v1", "checksum of v1")
    assert why in vitals.swap.detail and (vitals.epoch != epoch) == touched
    client = await stack.client()
    client.add("r", [1], max_tokens=9)
    await until(lambda: "r" in client.finished)
    assert client.tokens["r"] == continuation([1], 9, "v1")
    stack.router.state.swap("app#r", msgspec.structs.replace(SWAP, id="s2"))
    await until(lambda: stack.vitals.version == "v2")


async def test_a_command_that_was_carried_out_is_answered_and_not_carried_out_again(stack: Stack):
    await stack.start()
    stack.router.state.swap("app#r", SWAP)
    await until(lambda: stack.vitals.version == "v2" and stack.vitals.swap.phase == "done")
    core_life = stack.vitals.epoch
    stack.router = Router(gateways="g")
    await until(lambda: stack.router.state.state_of("app#r") == "ready")
    assert stack.vitals.swap is None
    stack.router.state.swap("app#r", SWAP)
    await until(lambda: stack.router.state.state_of("app#r") == "ready")
    assert stack.vitals.swap.phase == "done" and stack.vitals.epoch == core_life


async def test_a_replica_without_any_weights_says_so_and_ends(stack: Stack, monkeypatch: pytest.MonkeyPatch):
    ended: list[str] = []
    monkeypatch.setattr(module, "LAST_WORDS_S", 0.2)
    monkeypatch.setattr(module.Replica, "_on_failure", lambda _, failure: ended.append(str(failure)))
    await stack.start(fail_to_reload={"/models/v2": "no such tensor", "/models/v1": "the disk is gone"})
    stack.router.state.swap("app#r", SWAP)
    await until(lambda: ended)
    assert "no such tensor" in ended[0] and "the disk is gone" in ended[0]
    assert stack.vitals.swap.broken and stack.router.state.state_of("app#r") == "swapping"


async def test_a_core_that_loads_for_long_does_not_count_as_hung(stack: Stack):
    await stack.start(reload_s=0.6)
    stack.replica._spec = msgspec.structs.replace(stack.replica._spec, hang_timeout_s=0.2)
    stack.router.state.swap("app#r", SWAP)
    for _ in range(20):
        await asyncio.sleep(0.05)
        stack.replica.check_health()
        assert stack.router.state.state_of("app#r") != "gone"
    await until(lambda: stack.vitals.version == "v2")

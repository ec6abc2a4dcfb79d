"""A cluster as the engine sees it, in memory: replicas that swap, restart, come; router and Serve may be away."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from cluster.vitals import ReplicaVitals, Vitals
from ops.rollout.surroundings import Away, Serving
from replicas.assignment import Assignment
from replicas.messages import Swap, SwapReport

DEPLOYMENT = "moray#Replica"


class Memory:
    """A `Store`."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.on_put: Any = lambda name: None

    def get(self, name: str) -> bytes | None:
        return self.values.get(name)

    def put(self, name: str, value: bytes) -> None:
        self.on_put(name)
        self.values[name] = value


class PretendCluster:
    def __init__(self, version: str, replicas: int, target: int | None = None) -> None:
        self.stored: Assignment | None = None
        self.router: Assignment | None = None
        self.away = self.serve_away = False
        self.target, self.autoscaled, self.scalable, self.failure = target or replicas, False, True, ""
        self.calls: list[tuple[Any, ...]] = []
        self.refuse: dict[str, str] = {}  # by call
        self.bad: dict[str, str] = {}  # version -> why a swap to it fails
        self.checksums: dict[str, str] = {}
        self.commands: dict[str, Swap] = {}  # by replica
        self.silent: set[str] = set()  # replicas whose process lives, but which the router has lost
        self.served = 0
        self.running: dict[str, int] = {}
        self._ids = itertools.count(1)
        self.replicas: dict[str, ReplicaVitals] = {}
        for _ in range(replicas):
            self.comes(version)

    def comes(self, version: str) -> str:
        number = next(self._ids)
        replica_id = f"rep{number}"
        self.replicas[replica_id] = ReplicaVitals(
            replica_id=replica_id,
            epoch=number,
            version=version,
            actor_name=f"SERVE_REPLICA::moray#Replica#{replica_id}",
            draining=False,
            granted=0,
            checksum=self.checksums.get(version, ""),
        )
        return replica_id

    def pass_time(self) -> None:
        """Serve keeps as many replicas as it is to; swaps get on by one phase."""
        while len(self.replicas) < self.target:
            self.comes(self.stored.new_replica if self.stored else "")
        while len(self.replicas) > self.target:
            del self.replicas[next(reversed(self.replicas))]
        order = ("finishing", "verifying", "loading", "probing", "done")
        for replica_id, swap in list(self.commands.items()):
            replica = self.replicas.get(replica_id)
            if replica is None or replica.swap is None or replica.swap.id != swap.id or replica.swap.ended:
                continue
            phase = order[order.index(replica.swap.phase) + 1]
            version, detail = replica.version, ""
            if phase == "probing" and swap.version in self.bad:
                phase, detail = "failed", self.bad[swap.version]
            if phase == "done":
                version = swap.version
            told = SwapReport(
                id=swap.id, version=swap.version, phase=phase, detail=detail, seconds=0.5,
                checksum=self.checksums.get(swap.version, ""), exact=len(swap.probes), asked=len(swap.probes),
            )  # fmt: skip
            checksum = self.checksums.get(version, "")
            epoch = replica.epoch + (100 if phase == "done" else 0)
            changes = {"swap": told, "version": version, "checksum": checksum, "epoch": epoch}
            self.replicas[replica_id] = msgspec.structs.replace(replica, **changes)

    def versions(self) -> list[str]:
        return sorted(replica.version for replica in self.replicas.values())

    # -- Surroundings -------------------------------------------------------------------------------------------------

    async def assignment(self) -> Assignment | None:
        return self.stored

    async def store(self, assignment: Assignment | None) -> None:
        self._called("store", assignment)
        self.stored = assignment

    async def vitals(self) -> Vitals:
        self._answers()
        return Vitals(
            waiting=0,
            granted=self.served,
            lost=0,
            replicas=tuple(self.replicas.values()),
            assignment_revision=self.router.revision if self.router else 0,
            started_by_version=self.running,
        )

    async def assign(self, assignment: Assignment) -> None:
        self._called("assign", assignment)
        self._answers()
        self.router = assignment

    async def swap(self, replica_id: str, swap: Swap) -> str:
        self._called("swap", replica_id, swap)
        self._answers()
        if why := self.refuse.get("swap"):
            return why
        replica = self.replicas.get(replica_id)
        if replica is None:
            return f"{replica_id} is no replica"
        if replica.swap is None or replica.swap.id != swap.id:
            self.commands[replica_id] = swap
            told = SwapReport(id=swap.id, version=swap.version, phase="finishing")
            self.replicas[replica_id] = msgspec.structs.replace(replica, swap=told)
        return ""

    async def drain(self, replica_id: str) -> str:
        self._called("drain", replica_id)
        self._answers()
        if replica := self.replicas.get(replica_id):
            self.replicas[replica_id] = msgspec.structs.replace(replica, draining=True)
        return self.refuse.get("drain", "")

    async def lives(self, deployment: str, replica_id: str) -> bool | None:
        assert deployment == DEPLOYMENT
        return replica_id in self.replicas or replica_id in self.silent

    async def restart(self, deployment: str, replica_id: str, epoch: int | None) -> str:
        assert deployment == DEPLOYMENT
        self._called("restart", replica_id)
        self._answers()
        self.replicas.pop(replica_id, None)
        self.silent.discard(replica_id)
        return self.refuse.get("restart", "")

    async def serving(self, deployment: str) -> Serving:
        if self.serve_away or not deployment:
            raise Away("Ray Serve does not answer")
        return Serving(self.target, self.autoscaled, self.scalable, self.failure)

    async def scale(self, deployment: str, replicas: int) -> str:
        assert deployment == DEPLOYMENT
        self._called("scale", replicas)
        if why := self.refuse.get("scale"):
            return why
        self.target = replicas
        return ""

    def _answers(self) -> None:
        if self.away:
            raise Away("the router does not answer")

    def _called(self, *call: Any) -> None:
        self.calls.append(call)

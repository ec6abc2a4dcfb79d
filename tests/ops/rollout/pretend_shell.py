"""An engine over a cluster in memory, and versions of one small file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from pretend_cluster import Memory, PretendCluster

from experts import versions
from experts.versions import FileDigest, Golden, Manifest
from ops.rollout.audit import AuditLog
from ops.rollout.engine import Engine
from ops.rollout.ledger import Ledger
from ops.rollout.metrics import Metrics
from ops.rollout.shelf import Shelf
from replicas.metrics import Metric


class Told:
    """A metric that remembers what it was told."""

    values: dict[tuple[str, ...], float]

    def __init__(self, metric: Metric) -> None:
        self.metric, self.values = metric, {}

    def tell(self, value: float, *labels: str) -> None:
        assert len(labels) == len(self.metric.labels)
        self.values[labels] = value


class Clock:
    """Seconds since 1970, as the test says."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Shell:
    """An engine that can be killed and put together anew, over a store and a cluster that stay."""

    def __init__(self, store: Path | None, replicas: int = 2, version: str = "v1", **defaults: Any) -> None:
        self.shelf, self.version, self.defaults = Shelf(store), version, defaults
        self.memory, self.cluster, self.clock = Memory(), PretendCluster(version, replicas), Clock()
        self.healing = ""
        self.metrics: dict[str, Told] = {}
        self.engine = self.made()

    def made(self) -> Engine:
        def make(metric: Metric) -> Any:
            return self.metrics.setdefault(metric.name, Told(metric))

        audit = AuditLog(self.memory, "m", None, self.clock)
        return Engine(
            self.version,
            self.shelf,
            Ledger(self.memory, audit, "here"),
            self.cluster,
            Metrics("m", make),
            defaults=self.defaults,
            healing=lambda: self.healing,
            clock=self.clock,
        )

    async def restarted(self) -> None:
        """The controller died; Ray starts another."""
        self.engine = self.made()
        await self.engine.restore()

    async def look(self, times: int = 1, seconds: float = 1.0) -> None:
        for _ in range(times):
            self.clock.now_s += seconds
            self.cluster.pass_time()
            await self.engine.look()
            if self.engine.checking is not None:  # time stands still while files are read
                await asyncio.wait({self.engine.checking})

    async def audited(self) -> list[tuple[str, str]]:
        """(who, what) of all entries."""
        return [(entry["who"], entry["what"]) for entry in await self.engine.ledger.entries(1000)]


def add_version(store: Path, name: str, *, architecture: str = "a", text: str = "t", golden: int = 1) -> Path:
    """A version of one small file."""
    directory = store / name
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"version": name}))
    prompts = tuple(
        Golden(prompt="1+1=", prompt_token_ids=(1, 2, number), answer="2", answer_token_ids=(7,), logprobs=(-0.5, -0.1))
        for number in range(golden)
    )
    file = directory / "config.json"
    digest = FileDigest(sha256=versions.sha256(file), bytes=file.stat().st_size)
    versions.write(
        directory,
        Manifest(
            name=name,
            created=f"2026-11-25T12:00:0{len(name)}Z",
            files={"config.json": digest},
            architecture=architecture,
            text=text,
            golden=prompts,
        ),
    )
    return directory

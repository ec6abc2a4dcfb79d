"""What the steps of one run on a GPU share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ops.bench.gpu.checkpoint import tier
from ops.bench.gpu.record import Notes
from ops.bench.gpu.scale import Scale
from ops.bench.gpu.sides import Bench


class GpuRun(NamedTuple):
    """How large all is, and where checkpoints go."""

    scale: Scale
    where: Path

    def bench(self, notes: Notes, **args: Any) -> Bench:
        """Of the 32B tier."""
        return Bench(notes, self.scale, self.scale.engine(self.where, "32b", tier("32b"), **args))

"""Puts the engine together, in the controller's actor."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ops.controller.store import Store
from ops.rollout.audit import AuditLog
from ops.rollout.engine import Engine
from ops.rollout.ledger import Ledger
from ops.rollout.metrics import Metrics
from ops.rollout.settings import RolloutsSpec
from ops.rollout.shelf import Shelf
from ops.rollout.surroundings import RayCluster


async def engine_of(model: str, spec: RolloutsSpec, store: Store, healing: Callable[[], str]) -> Engine:
    """Ready to run: replicas that start find what they are to serve. Raises what the store raises."""
    file = Path(spec.audit_path) if spec.audit_path is not None else None
    here = f"controller {socket.gethostname()}:{os.getpid()}"

    def read() -> Ledger:
        return Ledger(store, AuditLog(store, model, file, time.time), here)

    engine = Engine(
        spec.version,
        Shelf(Path(spec.store) if spec.store is not None else None),
        await asyncio.to_thread(read),
        RayCluster(model),
        Metrics(model),
        defaults=spec.defaults,
        healing=healing,
    )
    await engine.restore()
    return engine

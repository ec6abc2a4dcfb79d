"""The engine core as the rest of Moray sees it: eight verbs. `vllm_core.VllmCore` is the real one."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from experts.placement import ShardPlacement
from replicas.messages import Capacity, Work
from replicas.wire import Buffer


class StepOutput(NamedTuple):
    """What one engine step made for one client."""

    client: int
    frame: Sequence[Buffer]  # encoded; the gateway's half of the engine decodes it
    finished: Sequence[str]  # request ids that ended in this step


class CoreLoad(NamedTuple):
    """What the core holds now, and what it has done."""

    running: int
    waiting: int
    kv_used: float  # share of KV blocks in use, 0..1
    work: Work = Work()  # since its start
    # Prefix-cache blocks that appeared and went since the load before, as in `messages.LoadReport`.
    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


class RequestRejected(Exception):
    """The core cannot take this one request; the core itself is well."""

    def __init__(self, request_id: str, reason: str) -> None:
        super().__init__(reason)
        self.request_id = request_id


class EngineCore(Protocol):
    """One engine core. All calls come from the one thread that built it."""

    @property
    def capacity(self) -> Capacity: ...

    @property
    def moves_experts(self) -> bool:
        """Whether `placement` changes while it runs: vLLM's EPLB."""
        ...

    def add(self, client: int, request: Sequence[Buffer], delivered: Sequence[int] = ()) -> str:
        """Takes an encoded request whose outputs go to `client`; returns its id. Raises RequestRejected.

        `delivered` are output tokens that another core has made for it: it goes on after them, and nothing tells the
        rest of its stream from one that was never moved.
        """
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forgets requests; ids that it does not know are ignored. Nothing is output for them."""
        ...

    def has_work(self) -> bool: ...

    def step(self) -> Sequence[StepOutput]:
        """One iteration of the batch. An exception means that the core is dead."""
        ...

    def load(self) -> CoreLoad:
        """What it holds now; each block that appeared or went is told once."""
        ...

    def placement(self) -> tuple[ShardPlacement, ...]:
        """Which experts live on which shard."""
        ...

    def routed_tokens(self) -> NDArray[np.int64] | None:
        """[MoE layer, expert]: tokens given to each since the start, layers as in `placement`. None: not known."""
        ...

    def shutdown(self) -> None: ...

"""The engine core as the rest of Moray sees it: ten verbs. `vllm_core.VllmCore` is the real one."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from experts.placement import ShardPlacement
from replicas.messages import Capacity, Probe, Work
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


class ReloadFailed(Exception):
    """Other weights could not be loaded. The message is one sentence."""

    def __init__(self, reason: str, touched: bool) -> None:
        """`touched`: the core is of no use until a reload succeeds. Otherwise it goes on with the weights it had."""
        super().__init__(reason)
        self.touched = touched


class Probed(NamedTuple):
    """What a core made of a `messages.Probe`."""

    tokens: tuple[int, ...]  # output token ids, less the stop token that ended them
    logprobs: tuple[float, ...]  # of the prompt's tokens 1.. given those before; (): not asked for, or not known


class EngineCore(Protocol):
    """One engine core. All calls come from the one thread that built it."""

    @property
    def capacity(self) -> Capacity: ...

    @property
    def checksum(self) -> str:
        """Digest of the loaded weights over all shards: equal for the same weights in the same layout, however they
        came there. "": not known.
        """
        ...

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

    def reload(self, directory: str, expected: str = "") -> str:
        """Serves another checkpoint's weights from here on, and forgets what it cached of the old ones; the digest.

        To be called without work. The checkpoint must be of the same architecture and hold the same tensors as the one
        that it was started with, and have the digest `expected` once it is loaded, if one is given. Raises
        ReloadFailed.
        """
        ...

    def probe(self, probes: Sequence[Probe]) -> list[Probed]:
        """Greedy answers, all in one batch. To be called without work; leaves none. An exception: the core is dead."""
        ...

    def shutdown(self) -> None: ...

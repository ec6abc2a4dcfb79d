"""Every message that crosses a process on a request's way, frozen and typed.

A request's way, with the message of each hop (ARCHITECTURE.md tells it in full):

1. gateway -> router: `Outbox` with a `Ticket` (sizes only; the prompt stays in the gateway)
2. router -> gateway: `Inbox` with a `Grant` (which replica, in which epoch)
3. gateway -> replica: `wire.Kind.ADD` with the engine's own request, opaque here
4. replica -> gateway: `wire.Kind.FRAME`, one per engine step per gateway, with the engine's own outputs
5. gateway -> router: `Outbox.released`, when the request ended or moved

Tokens travel in 3 and 4 only, directly between the two; the router never sees one.
"""

import msgspec

from experts.placement import ShardPlacement


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine core can hold, as it measured itself at start."""

    kv_tokens: int  # KV cache size in tokens, over all its blocks
    block_tokens: int  # tokens in one KV block
    max_num_seqs: int  # sequences in one batch
    max_num_batched_tokens: int  # tokens in one engine step
    max_model_len: int  # prompt + output tokens of one request


class ReplicaInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is ready to be granted requests. Set by the replica when its core has loaded."""

    replica_id: str  # Ray Serve's unique replica id
    epoch: int  # nanoseconds since 1970 at which this core got ready; a later life of the same replica has a later one
    host: str  # where its gateways connect
    port: int
    token: str  # secret that opens the connection; known only through Ray
    model: str
    engine_pid: int
    engine_host: str  # "thread" or "process"
    device: str  # "cpu" or "cuda"
    capacity: Capacity
    shards: tuple[ShardPlacement, ...]


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine core holds now; sent on change, at most 20 times a second, and every second when idle."""

    replica_id: str
    epoch: int
    running: int  # requests in the batch
    waiting: int  # requests that the core has taken but cannot run yet
    kv_used: float  # share of KV blocks in use, 0..1


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request's claim to a replica: what the router needs to decide, and no more."""

    request_id: str
    prompt_tokens: int  # tokens to prefill; for a resumed request, those delivered too
    max_tokens: int  # output tokens still allowed
    resumed: bool = False  # was running when its replica was lost: goes ahead of the queue


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Permission to submit a request to a replica now."""

    request_id: str
    replica_id: str
    epoch: int


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's word that a replica's connection broke."""

    replica_id: str
    epoch: int


class Outbox(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a gateway tells the router at once."""

    tickets: tuple[Ticket, ...] = ()
    released: tuple[str, ...] = ()  # request ids that ended, were cancelled, or lost their replica
    lost: tuple[Lost, ...] = ()


class Resync(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All that a gateway has open: the first thing it says on each connection to a router, which may be a new one."""

    gateway: str
    waiting: tuple[Ticket, ...] = ()
    running: tuple[tuple[Ticket, Grant], ...] = ()


class RouterAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where gateways connect to the router."""

    host: str
    port: int
    token: str


class Inbox(msgspec.Struct, frozen=True, kw_only=True):
    """What the router tells a gateway."""

    grants: tuple[Grant, ...] = ()
    unplaced: tuple[str, ...] = ()  # request ids that waited in vain for any replica
    refused: tuple[str, ...] = ()  # request ids that found the queue full
    roster: tuple[ReplicaInfo, ...] | None = None  # all replicas, when they changed

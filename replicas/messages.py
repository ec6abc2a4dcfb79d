"""Every message that crosses a process on a request's way, frozen and typed.

A request's way, with the message of each hop (ARCHITECTURE.md tells it in full):

1. gateway -> router: `Outbox` with a `Ticket` (sizes and hashes; the prompt stays in the gateway)
2. router -> gateway: `Inbox` with a `Grant` (which replica, in which epoch), or a `Denial`
3. gateway -> replica: `wire.Kind.ADD` with the engine's own request, opaque here
4. replica -> gateway: `wire.Kind.FRAME`, one per engine step per gateway, with the engine's own outputs
5. gateway -> router: `Outbox.started` at its first token, `Outbox.released` when it ended or moved

Tokens travel in 3 and 4 only, directly between the two; the router never sees one.
"""

import msgspec

from experts.placement import ShardPlacement
from replicas.assignment import Assignment


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
    version: str = ""  # of the model's weights
    directory: str = ""  # that they were loaded from; "": not told
    checksum: str = ""  # digest of the loaded weights over all shards; "": not known
    pid: int = 0  # of the Serve replica's process, which need not be the engine's parent; 0: not told
    engine_pid: int
    engine_host: str  # "thread" or "process"
    device: str  # "cpu" or "cuda"
    capacity: Capacity
    shards: tuple[ShardPlacement, ...]
    draining: bool = False  # an operator's wish, which outlives the router that was told of it
    swapping: bool = False  # it is about to have other weights: it takes nothing in this epoch any more
    load_s: float = 0.0  # seconds that it took to load; 0: not told
    expert_share: float = 0.0  # of the experts of a layer, what one token uses: top-k / experts; 0: dense, or not told
    actor_name: str = ""  # of its Ray actor, in Serve's namespace


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine core has done since it started. Differences of two tell what a step costs."""

    steps: int = 0
    step_s: float = 0.0  # seconds spent in them
    prefill_tokens: int = 0  # prompt tokens computed (those found in the prefix cache are not)
    decode_tokens: int = 0  # tokens computed for requests past their prompt: one each in a step
    prefix_query_tokens: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hit_tokens: int = 0  # of these, what it had


class ExpertLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica's experts were given in its last minute. `tokens`: int64, little-endian, [layers, experts]."""

    seconds: float  # that the tokens came in
    layers: int  # MoE layers, in the order of the replica's `shards`
    experts: int
    tokens: bytes
    shards: tuple[ShardPlacement, ...] | None = None  # which hold them now; None: those of the replica's ReplicaInfo


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A golden prompt: greedy, straight in the engine core, before a swapped replica is granted anything."""

    prompt: tuple[int, ...]  # token ids
    answer: tuple[int, ...] = ()  # token ids that the output must end with, its stop token aside; (): whatever it is
    max_tokens: int = 256
    logprobs: tuple[float, ...] = ()  # log-probabilities of the prompt's tokens 1.., to compare with; (): none


class Swap(msgspec.Struct, frozen=True, kw_only=True):
    """The command to serve another version in place: the router's answer to a load report (`ReportAnswer`)."""

    id: str  # of this command; one that was carried out is not carried out again
    version: str
    directory: str  # of its checkpoint, on the replica's node
    sha256: dict[str, str] = {}  # file of the directory -> its digest, verified before anything is loaded; {}: none
    finish_s: float  # seconds that running requests have to end in
    checksum: str = ""  # of the loaded weights, as expected; "": not known yet
    probes: tuple[Probe, ...] = ()
    min_exact: int = 0  # probes that must give their answer, else the replica goes back to what it had
    max_logprob_distance: float | None = None  # and how far their log-probabilities may be; None: any distance


class SwapReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far a replica is with a swap, or how it ended."""

    id: str  # the command's
    version: str  # the command's
    phase: str  # "finishing", "verifying", "loading", "probing", "done" or "failed"
    detail: str = ""  # why it failed, a sentence
    seconds: float = 0.0  # that the loading took
    checksum: str = ""  # of the loaded weights, over all shards
    exact: int = 0  # probes that gave their answer
    asked: int = 0  # of those that have one
    logprob_distance: float | None = None  # mean |difference| over all tokens of probes with logprobs; None: none
    broken: bool = (
        False  # it failed, and the old weights cannot be had either: the replica ends, and Serve starts another
    )

    @property
    def ended(self) -> bool:
        return self.phase in ("done", "failed")


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine core holds now; sent on change, at most 20 times a second, and every second when idle."""

    replica_id: str
    epoch: int
    running: int  # requests in the batch
    waiting: int  # requests that the core has taken but cannot run yet
    kv_used: float  # share of KV blocks in use, 0..1
    work: Work = Work()
    # Prefix-cache blocks (as in `Ticket.blocks`) that appeared and went since the report before; the core's KV events.
    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    experts: ExpertLoad | None = None  # every few seconds, if there was something
    swap: SwapReport | None = None  # told from the command on until the router has heard of its end


class ReportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The router's answer to a load report. None in its place: the replica is not known, and is to join again."""

    state: str  # "ready", "draining" or "swapping"
    swap: Swap | None = None  # a command that the replica has not told of yet


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """Whose request it is, and what they may have. Set by the gateway from the API key; None: no limit."""

    name: str = ""  # "": no keys are configured
    weight: float = 1.0  # share of tokens among tenants of one priority
    requests_per_min: int | None = None
    tokens_per_min: int | None = None  # prompt and output
    concurrency: int | None = None  # requests waiting or running


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request's claim to a replica: what the router needs to decide, and no more."""

    request_id: str
    prompt_tokens: int  # tokens to prefill; for a resumed request, those delivered too
    max_tokens: int  # output tokens still allowed
    resumed: bool = False  # was running when its replica was lost: goes ahead of the queue
    tenant: Tenant = Tenant()
    priority: int = 0  # lower goes first, as vLLM's; set by the client, no lower than the tenant's ceiling
    ttft_s: float | None = None  # seconds from the ticket's submission in which its first token is wanted
    # The prompt's full KV blocks: each one's hash covers all before it too (vLLM's block hashes, low 63 bits).
    blocks: tuple[int, ...] = ()
    version: str = ""  # of the model; set once it started there, or if asked for there: it never moves to another
    session: int = 0  # stable 63-bit hash of tenant and session: which share of the traffic it belongs to
    first_of_request: bool = True  # False for n>1's further samples: requests per minute count HTTP requests
    mirror: bool = False  # a copy that nobody reads: it runs where there is room at once, and counts nowhere


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has left of one limit per minute."""

    limit: int
    remaining: int
    reset_s: float  # seconds until all of it is there again


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has left, for the rate-limit headers of its answers. None: no such limit."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Permission to submit a request to a replica now."""

    request_id: str
    replica_id: str
    epoch: int
    quota: Quota | None = None  # None: its tenant has no limits


class Denial(msgspec.Struct, frozen=True, kw_only=True):
    """The router's word that a request will not run."""

    request_id: str
    ending: str  # name of a `cluster.outcomes.Ending`
    retry_after_s: float = 0.0  # when another try may succeed; 0: not known
    detail: str = ""  # a sentence for the client; empty: the ending's own
    quota: Quota | None = None  # None: its tenant has no limits
    mirror: bool = False  # it was a copy that nobody reads


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's word that a request ended, was cancelled, or lost its replica."""

    request_id: str
    output_tokens: int = 0  # delivered since its ticket
    whole: bool = False  # the model ended it, not a client or a loss: its length tells of others'


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway's word that a replica's connection broke."""

    replica_id: str
    epoch: int


class Outbox(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a gateway tells the router at once."""

    tickets: tuple[Ticket, ...] = ()
    started: tuple[str, ...] = ()  # request ids whose first token has come: their prefill is over
    released: tuple[Released, ...] = ()
    lost: tuple[Lost, ...] = ()
    met: int = 0  # requests that ended within the SLO since the last Outbox
    missed: int = 0  # and those that did not


class Resync(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All that a gateway has open: the first thing it says on each connection to a router, which may be a new one."""

    gateway: str
    metrics: str = ""  # "host:port" where it serves its metrics; "": nowhere
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
    denials: tuple[Denial, ...] = ()
    move: tuple[str, ...] = ()  # running request ids to abort where they are and to ticket anew: their replica drains
    roster: tuple[ReplicaInfo, ...] | None = None  # all replicas, when they changed
    assignment: Assignment | None = None  # with the roster, and when it changed

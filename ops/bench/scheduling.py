"""`moray bench router`: what a scheduling decision costs, prefix scoring included.

Two measurements. *The core alone*: tickets through `ContinuousBatcher` on one CPU, at 10 and at 1,000 replicas. *The
router as deployed*: the Ray actor, gateways' connections over TCP, ten replicas that report through Ray at 20 Hz, 500
tickets a second with Poisson arrivals; from a ticket's sending to its grant's arrival in the gateway.
"""

import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.batching import ContinuousBatcher, Policy
from replicas.messages import (
    Capacity,
    Grant,
    Inbox,
    LoadReport,
    Outbox,
    Released,
    ReplicaInfo,
    Resync,
    Ticket,
    Work,
)

PROMPT_BLOCKS = 64  # about 1,000 tokens in blocks of 16, half of them shared with other prompts
SHARED_PREFIXES = 200
RUNNING_EACH = 100  # requests in each replica's batch
REPORTS_PER_S = 20
CORE_TICKETS = 20_000
OUTPUT_TOKENS = 200
CAPACITY = Capacity(
    kv_tokens=700_000, block_tokens=16, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=32_768
)


def replica(number: int) -> ReplicaInfo:
    return ReplicaInfo(
        replica_id=f"replica-{number}",
        epoch=1,
        host="127.0.0.1",
        port=1,  # nobody connects: grants are measured, not served
        token="",
        model="bench",
        engine_pid=0,
        engine_host="process",
        device="cuda",
        capacity=CAPACITY,
        shards=(),
    )


def tickets(seed: int) -> Iterator[Ticket]:
    """Prompts that share half of their blocks with others', without end."""
    rng = random.Random(seed)
    prefixes = [tuple(rng.getrandbits(62) for _ in range(PROMPT_BLOCKS // 2)) for _ in range(SHARED_PREFIXES)]
    number = 0
    while True:
        own = tuple(rng.getrandbits(62) for _ in range(PROMPT_BLOCKS - PROMPT_BLOCKS // 2))
        yield Ticket(
            request_id=f"{seed}-{number}",
            prompt_tokens=PROMPT_BLOCKS * CAPACITY.block_tokens,
            max_tokens=1024,
            blocks=rng.choice(prefixes) + own,
            ttft_s=10.0,
        )
        number += 1


def report_of(number: int, work: Work) -> LoadReport:
    return LoadReport(replica_id=f"replica-{number}", epoch=1, running=RUNNING_EACH, waiting=0, kv_used=0.2, work=work)


def after_steps(work: Work) -> Work:
    """A report's worth of steps: two, 25 ms each."""
    return Work(
        steps=work.steps + 2,
        step_s=work.step_s + 0.05,
        prefill_tokens=work.prefill_tokens + 2 * 800,
        decode_tokens=work.decode_tokens + 2 * RUNNING_EACH,
    )


def core_ticket_s(replicas: int, count: int) -> float:
    """Seconds of one CPU for a ticket's whole way: submitted, granted, started, released, and its share of reports.

    Arrivals come at 20 a second and replica, as long as they would run; each replica reports 20 times a second.
    """
    batcher = ContinuousBatcher(Policy(tpot_s=0.05))
    for number in range(replicas):
        batcher.join(replica(number))
    work = [Work()] * replicas
    running: deque[str] = deque()
    stream = tickets(replicas)
    made = [next(stream) for _ in range(RUNNING_EACH * replicas // 2 + count)]
    now, began = 0.0, 0.0
    for number, ticket in enumerate(made):
        if number == len(made) - count:  # batches are filled: from here on it counts
            began = time.process_time()
        now += 1 / (20 * replicas)
        batcher.submit("gateway", ticket, now)
        for _, grant in batcher.decide(now).grants:
            batcher.started(grant.request_id, now)
            running.append(grant.request_id)
        if len(running) > RUNNING_EACH * replicas // 2:
            batcher.release(Released(request_id=running.popleft(), output_tokens=OUTPUT_TOKENS, whole=True))
        which = number % replicas
        work[which] = after_steps(work[which])
        batcher.report(report_of(which, work[which]))
    seconds = time.process_time() - began
    if batcher.placed + batcher.queued > RUNNING_EACH * replicas:
        raise RuntimeError("the batcher fell behind: tickets wait where there is room")
    return seconds / count


@dataclass
class _Gateway:
    """One gateway's half of the exchange: notes when each ticket went and its grant came."""

    tell: Callable[[Outbox], None]
    sent: dict[str, float] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    running: deque[str] = field(default_factory=deque)
    denied: int = 0

    def ask(self, ticket: Ticket) -> None:
        self.sent[ticket.request_id] = time.perf_counter()
        self.tell(Outbox(tickets=(ticket,)))

    def take(self, inbox: Inbox) -> None:
        now = time.perf_counter()
        self.denied += len(inbox.denials)
        grants: tuple[Grant, ...] = inbox.grants
        ended = []
        for grant in grants:
            self.latencies.append(now - self.sent.pop(grant.request_id))
            self.running.append(grant.request_id)
            if len(self.running) > 500:
                ended.append(Released(request_id=self.running.popleft(), output_tokens=OUTPUT_TOKENS, whole=True))
        if grants:
            self.tell(Outbox(started=tuple(g.request_id for g in grants), released=tuple(ended)))


async def deployed_latencies(seconds: float, tickets_per_s: float, replicas: int) -> tuple[list[float], int]:
    """(seconds from ticket to grant, denied) with the router in its actor."""
    from cluster.router import RouterSpec, start_router
    from cluster.router_link import RayRouterLink

    model = "bench-router"
    router = start_router(RouterSpec(model=model, listen="127.0.0.1", tpot_s=0.05))
    for number in range(replicas):
        await router.join.remote(replica(number))
    links = [RayRouterLink(model) for _ in range(2)]
    gateways = []
    for number, link in enumerate(links):
        gateway = _Gateway(link.tell)
        await link.connect(gateway.take, lambda: None)
        link.tell(Resync(gateway=f"gateway-{number}"))
        gateways.append(gateway)

    async def report_all() -> None:
        work = [Work()] * replicas
        while True:
            for number in range(replicas):
                work[number] = after_steps(work[number])
                router.report.remote(report_of(number, work[number]))
                await asyncio.sleep(1 / REPORTS_PER_S / replicas)

    reporting = asyncio.ensure_future(report_all())
    rng = random.Random(1)
    stream = tickets(1)
    loop = asyncio.get_running_loop()
    due, end = loop.time(), loop.time() + seconds
    while due < end:
        due += rng.expovariate(tickets_per_s)
        await asyncio.sleep(max(due - loop.time(), 0))
        rng.choice(gateways).ask(next(stream))
    await asyncio.sleep(1.0)
    reporting.cancel()
    unanswered = sum(len(g.sent) - g.denied for g in gateways)
    if unanswered:
        raise RuntimeError(f"{unanswered} tickets were neither granted nor denied")
    warm_up = int(tickets_per_s)  # the first second: connections, imports, caches
    return [latency for g in gateways for latency in g.latencies[warm_up // 2 :]], sum(g.denied for g in gateways)


def measure(seconds: float, rounds: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Both measurements; see `moray bench router --help`."""
    import ray

    few: list[float] = []
    many: list[float] = []
    for number in range(rounds):
        few.append(core_ticket_s(10, CORE_TICKETS))
        many.append(core_ticket_s(1000, CORE_TICKETS))
        report(
            f"core, round {number + 1}/{rounds}: {1 / few[-1]:,.0f} tickets/s, {1 / many[-1]:,.0f} at 1,000 replicas"
        )
    report("starting Ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        latencies, denied = asyncio.run(deployed_latencies(seconds, 500.0, 10))
    finally:
        ray.shutdown()
    cuts = statistics.quantiles(latencies, n=100)
    ratios = [b / a for a, b in zip(few, many, strict=True)]
    return {
        "p50_ms": round(1e3 * cuts[49], 2),
        "p95_ms": round(1e3 * cuts[94], 2),
        "p99_ms": round(1e3 * cuts[98], 2),
        "grants": len(latencies),
        "denied": denied,
        "tickets_per_s": 500,
        "replicas": 10,
        "core_tickets_per_s": round(1 / statistics.median(few)),
        "core_tickets_per_s_spread": [round(1 / max(few)), round(1 / min(few))],
        "cost_ratio_1000_vs_10": round(statistics.median(ratios), 2),
        "cost_ratio_1000_vs_10_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "rounds": rounds,
    }

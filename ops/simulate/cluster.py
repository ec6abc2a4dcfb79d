"""A cluster in virtual time: any `Batcher`, driven as the router's actor drives it, over simulated engines.

One gateway, one router, N replicas. A message takes `NETWORK_S` a hop: a ticket goes gateway -> router, its grant back,
the request gateway -> replica, tokens replica -> gateway, and what the router needs to know of them on to it. The
batcher decides on each message and every `TICK_S`; each replica reports its load every 50 ms, if it has changed.
The simulation is a pure function of its arguments.
"""

import gc
import heapq
import math
from collections.abc import Callable, Sequence
from typing import Any

from cluster.batcher import Batcher, Decision
from ops.simulate.results import Record, Slo
from ops.simulate.workloads import MAX_TOKENS, Workload
from replicas.messages import LoadReport, Released, ReplicaInfo, Tenant, Ticket
from replicas.simulated_engine import SimulatedEngine
from replicas.simulated_request import SimulatedRequest
from replicas.step_time import Machine

NETWORK_S = 0.0005  # one hop; measured on one machine: 0.2 ms (ops/bench/RESULTS.md)
TICK_S = 0.25  # cluster.router.TICK_S, which imports Ray
REPORT_S = 0.05  # replicas.core_host.LOAD_INTERVAL_S
DRAIN_S = 60.0  # after the last arrival; what has not ended by then never does
GATEWAY = "gateway"

# Kinds of events. Their order decides between two of one moment: engines first, then messages, then clocks.
_STEP, _ADD, _NEWS, _REPORT, _TICK = range(5)


class Cluster:
    """One run."""

    def __init__(
        self, batcher: Batcher, machine: Machine, speeds: Sequence[float], slo: Slo, network_s: float = NETWORK_S
    ) -> None:
        """`speeds`: one for each replica; 0.5 takes twice as long for every step."""
        self._batcher = batcher
        self._slo = slo
        self._hop_s = network_s
        self._engines = [SimulatedEngine(machine.step, machine.capacity, speed) for speed in speeds]
        self._index = {f"replica-{i}": i for i in range(len(speeds))}
        self._reported: list[tuple[int, int, int] | None] = [None] * len(speeds)
        self._events: list[tuple[float, int, int, int, Any]] = []  # heap of (time, kind, number, replica, payload)
        self._pushed = 0
        self._records: dict[str, Record] = {}
        self._tenants: dict[str, Tenant] = {}
        self._open = 0  # submitted, neither shed nor released
        self.now = 0.0
        for name in self._index:
            batcher.join(_info(name, machine))

    def run(self, workload: Workload, progress: Callable[[float], None] | None = None) -> list[Record]:
        """Records of all requests, in the order of their arrival. `progress` is told the virtual time now and then."""
        collecting = gc.isenabled()
        gc.disable()  # hundreds of thousands of live objects and no cycles: the collector only takes time
        try:
            return self._run(workload, progress)
        finally:
            if collecting:
                gc.enable()

    def _run(self, workload: Workload, progress: Callable[[float], None] | None) -> list[Record]:
        arrivals, events, hop_s = workload.arrivals, self._events, self._hop_s
        records = [Record(arrival) for arrival in arrivals]
        end = (arrivals[-1].at_s if arrivals else 0.0) + DRAIN_S
        for i in range(len(self._engines)):  # spread, as replicas that started at different times
            self._push(REPORT_S * (i + 1) / len(self._engines), _REPORT, i, None)
        self._push(TICK_S, _TICK, 0, None)
        taken, next_progress = 0, 0.0
        while taken < len(arrivals) or self._open:
            if taken < len(arrivals) and arrivals[taken].at_s + hop_s <= events[0][0]:
                self.now = arrivals[taken].at_s + hop_s
                self._submit(records[taken], f"r{taken}")
                taken += 1
                continue
            self.now, kind, _, replica, payload = heapq.heappop(events)
            if self.now > end:
                break
            if kind == _STEP:
                self._step(replica)
            elif kind == _ADD:
                self._add(replica, payload)
            elif kind == _NEWS:
                self._news(*payload)
            elif kind == _REPORT:
                self._report(replica)
            else:
                self._decide()
                self._push(self.now + TICK_S, _TICK, 0, None)
                if progress is not None and self.now >= next_progress:
                    progress(self.now)
                    next_progress = self.now + 5.0
        return records

    def _push(self, at: float, kind: int, replica: int, payload: Any) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at, kind, self._pushed, replica, payload))

    # -- the router ---------------------------------------------------------------------------------------------------

    def _submit(self, record: Record, request_id: str) -> None:
        arrival = record.arrival
        tenant = self._tenants.get(arrival.tenant)
        if tenant is None:
            tenant = self._tenants[arrival.tenant] = Tenant(name=arrival.tenant)
        ticket = Ticket(
            request_id=request_id,
            prompt_tokens=arrival.prompt_tokens,
            max_tokens=max(MAX_TOKENS, arrival.output_tokens),
            tenant=tenant,
            ttft_s=self._slo.ttft_s,
            blocks=arrival.prompt_blocks if arrival.chain else (),
        )
        self._records[request_id] = record
        self._open += 1
        self._batcher.submit(GATEWAY, ticket, self.now)
        self._decide()

    def _decide(self) -> None:
        decision: Decision = self._batcher.decide(self.now)
        for _, grant in decision.grants:
            self._push(self.now + 2 * self._hop_s, _ADD, self._index[grant.replica_id], grant.request_id)
        for _, denial in decision.denials:
            self._records.pop(denial.request_id).shed = True
            self._open -= 1

    def _news(self, started: list[str], released: list[Released]) -> None:
        for request_id in started:
            self._batcher.started(request_id, self.now)
        for ended in released:
            self._batcher.release(ended)
        self._open -= len(released)
        self._decide()

    # -- the replicas -------------------------------------------------------------------------------------------------

    def _add(self, replica: int, request_id: str) -> None:
        engine, record = self._engines[replica], self._records[request_id]
        record.replica = replica
        arrival = record.arrival
        due = engine.due
        engine.add(SimulatedRequest(request_id, arrival.prompt_tokens, arrival.output_tokens, arrival.chain), self.now)
        if due == math.inf:
            engine.begin(self.now)
        if engine.due != due:
            self._push(engine.due, _STEP, replica, None)

    def _step(self, replica: int) -> None:
        engine = self._engines[replica]
        if engine.due != self.now:  # the stretch was cut: its end has come already
            return
        _, prefilled, finished = engine.end()
        engine.begin(self.now)
        if engine.due < math.inf:
            self._push(engine.due, _STEP, replica, None)
        if not prefilled and not finished:
            return
        at = self.now + self._hop_s
        started, released = [], []
        for request in prefilled:
            record = self._records[request.request_id]
            if record.first_s is None:
                record.first_s = at
                record.cached_tokens = request.cached
                started.append(request.request_id)
        for request in finished:
            self._records.pop(request.request_id).last_s = at
            released.append(Released(request_id=request.request_id, output_tokens=request.output_tokens, whole=True))
        if started or released:
            self._push(at + self._hop_s, _NEWS, replica, (started, released))

    def _report(self, replica: int) -> None:
        self._push(self.now + REPORT_S, _REPORT, replica, None)
        engine = self._engines[replica]
        running, waiting, kv_used, work = engine.load(self.now)
        state = (running, waiting, work.steps)
        if state == self._reported[replica]:
            return
        self._reported[replica] = state
        stored, removed = engine.kv.take_events()
        report = LoadReport(
            replica_id=f"replica-{replica}",
            epoch=1,
            running=running,
            waiting=waiting,
            kv_used=kv_used,
            work=work,
            stored=stored,
            removed=removed,
        )
        self._batcher.report(report)
        if self._batcher.queued:
            self._decide()

    @property
    def preemptions(self) -> int:
        return sum(engine.preemptions for engine in self._engines)


def _info(name: str, machine: Machine) -> ReplicaInfo:
    return ReplicaInfo(
        replica_id=name,
        epoch=1,
        host="",  # nobody connects
        port=0,
        token="",
        model="simulated",
        engine_pid=0,
        engine_host="process",
        device="cuda",
        capacity=machine.capacity,
        shards=(),
    )

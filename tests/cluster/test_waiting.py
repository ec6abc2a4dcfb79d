"""WaitingQueue: the order of any tickets; and what the order promises under load: starvation and fairness bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from infos import replica_info

from cluster.batching import ContinuousBatcher, Policy
from cluster.waiting import TokenCounters, Waiting, WaitingQueue
from replicas.messages import LoadReport, Released, ReplicaInfo, Tenant, Ticket, Work

STARVATION_S = 10.0
WEIGHT = {"t": 1.0, "u": 2.0, "v": 0.5}


class Order(RuleBasedStateMachine):
    """Any order of events, against all that waits in a plain list in order of arrival."""

    @initialize()
    def begin(self) -> None:
        self.counters = TokenCounters()
        self.queue = WaitingQueue(self.counters, STARVATION_S)
        self.now = 0.0
        self.waiting: list[Waiting] = []
        self.told_late: set[str] = set()
        self.made = 0

    @rule(
        tenant=st.sampled_from(sorted(WEIGHT)),
        priority=st.integers(-1, 1),
        prefill=st.integers(1, 5),
        resumed=st.booleans(),
        patience=st.sampled_from([math.inf, 1.0, 5.0]),
    )
    def add(self, tenant: str, priority: int, prefill: int, resumed: bool, patience: float) -> None:
        self.made += 1
        made = Ticket(
            request_id=str(self.made),
            prompt_tokens=prefill,
            max_tokens=1,
            resumed=resumed and self.made % 4 == 0,
            tenant=Tenant(name=tenant, weight=WEIGHT[tenant]),
            priority=priority,
        )
        had = self.counters.had(tenant)
        of_class = [w for w in self._fresh() if w.ticket.priority == priority]
        present = {w.ticket.tenant.name for w in of_class if not w.parked_until}
        parked = {w.ticket.tenant.name for w in of_class if w.parked_until}  # still, or they have been
        waiting = Waiting("g", made, self.now, prefill)
        if not made.resumed:
            waiting.latest_start = self.now + patience
        self.queue.add(waiting)
        self.waiting.append(waiting)
        now_had = self.counters.had(tenant)
        if made.resumed or tenant in present:
            assert now_had == had
        elif tenant in parked:  # it may count as away: then it is the next one all the same
            assert had <= now_had <= max([had, *map(self.counters.had, present | parked)])
        elif present:  # it was away: it has saved nothing up
            assert now_had >= min(map(self.counters.had, present | parked))

    def _fresh(self) -> list[Waiting]:
        return [w for w in self.waiting if not w.ticket.resumed]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self._remove(data.draw(st.sampled_from(self.waiting)))

    def _remove(self, waiting: Waiting) -> None:
        assert self.queue.remove(waiting.request_id) is waiting
        assert self.queue.remove(waiting.request_id) is None
        self.waiting.remove(waiting)

    @precondition(lambda self: self._fresh())
    @rule(data=st.data(), seconds=st.sampled_from([0.1, 2.0]))
    def park(self, data: st.DataObject, seconds: float) -> None:
        waiting = data.draw(st.sampled_from(self._fresh()))
        if waiting.parked_until <= self.now:
            self.queue.park(waiting, self.now + seconds)

    @rule(data=st.data())
    def unpark(self, data: st.DataObject) -> None:
        if parked := [w for w in self.waiting if w.parked_until > self.now]:
            self.queue.unpark(data.draw(st.sampled_from(parked)))

    @rule(seconds=st.sampled_from([0.05, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(tokens=st.integers(0, 100), tenant=st.sampled_from(sorted(WEIGHT)))
    def an_answer_ends(self, tokens: int, tenant: str) -> None:
        self.counters.charge(tenant, WEIGHT[tenant], tokens)

    @rule(times=st.integers(1, 3), tokens=st.integers(1, 20))
    def serve(self, times: int, tokens: int) -> None:
        for _ in range(times):
            head = self.queue.head(self.now)
            assert head is self.queue.head(self.now)
            self._check(head)
            if head is None:
                return
            self._remove(head)
            self.counters.charge(head.ticket.tenant.name, head.ticket.tenant.weight, tokens)

    def _check(self, head: Waiting | None) -> None:
        if resumed := [w for w in self.waiting if w.ticket.resumed]:
            assert head is resumed[0]
            return
        if self.waiting and self.now - self.waiting[0].since >= STARVATION_S:
            assert head is self.waiting[0]
            return
        offered = [w for w in self.waiting if w.parked_until <= self.now]
        if head is None:
            assert not offered
            return
        offered = [w for w in offered if w.ticket.priority == min(w.ticket.priority for w in offered)]
        least = min(self.counters.had(w.ticket.tenant.name) for w in offered)
        assert head in offered and self.counters.had(head.ticket.tenant.name) == least
        of_tenant = [w for w in offered if w.ticket.tenant.name == head.ticket.tenant.name]
        assert head.prefill == min(w.prefill for w in of_tenant)

    @rule()
    def late(self) -> None:
        late = self.queue.late(self.now)
        assert {w.request_id for w in late} == {w.request_id for w in self.waiting if w.latest_start < self.now}
        for waiting in late:
            self._remove(waiting)

    @invariant()
    def it_holds_what_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert {w.request_id for w in self.queue} == {w.request_id for w in self.waiting}
        assert self.queue.prefill_tokens == sum(w.prefill for w in self.waiting)


Order.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestOrder = Order.TestCase


def waiting(request_id: str, prefill: int = 1, since: float = 0.0) -> Waiting:
    return Waiting("g", Ticket(request_id=request_id, prompt_tokens=prefill, max_tokens=1), since, prefill)


def test_of_equally_long_ones_the_first_come_is_the_first_served():
    queue = WaitingQueue(TokenCounters(), STARVATION_S)
    order = ["3", "1", "2"]
    for request_id in order:
        queue.add(waiting(request_id))
    assert [served for _ in order if (served := queue.head(0.0).request_id) and queue.remove(served)] == order


def test_a_withdrawn_ticket_that_comes_again_is_another_one():
    queue = WaitingQueue(TokenCounters(), STARVATION_S)
    queue.add(waiting("1", prefill=1))
    queue.add(waiting("2", prefill=5))
    queue.remove("1")
    queue.add(again := waiting("1", prefill=9))
    assert queue.head(0.0).request_id == "2"
    queue.remove("2")
    assert queue.head(0.0) is again


# -- under load: one replica, time in whole seconds, a decision in each ------------------------------------------------


def replica(seqs: int, kv_tokens: int = 100_000) -> ReplicaInfo:
    return replica_info(max_num_seqs=seqs, kv_tokens=kv_tokens)


class Load:
    """A replica that ends each request `service` seconds after its grant, with so many output tokens."""

    def __init__(self, policy: Policy, seqs: int, kv_tokens: int = 100_000) -> None:
        self.b = ContinuousBatcher(policy)
        self.b.join(replica(seqs, kv_tokens))
        self.now = 0
        self.tickets: dict[str, Ticket] = {}
        self.running: list[tuple[int, str, int]] = []  # (ends at, request id, output tokens)
        self.granted_at: dict[str, int] = {}
        self.denied: set[str] = set()
        self.served: dict[str, float] = {}  # tokens over weight, by tenant
        self.work = Work()

    def submit(self, ticket: Ticket) -> None:
        self.tickets[ticket.request_id] = ticket
        self.b.submit("g", ticket, self.now)

    def waiting_of(self, tenant: str) -> int:
        over = self.granted_at.keys() | self.denied
        return sum(t.tenant.name == tenant for r, t in self.tickets.items() if r not in over)

    def _serve(self, tenant: Tenant, tokens: int) -> None:
        self.served[tenant.name] = self.served.get(tenant.name, 0.0) + tokens / tenant.weight

    def end_what_is_over(self) -> None:
        for ends, request_id, output_tokens in [r for r in self.running if r[0] <= self.now]:
            self.running.remove((ends, request_id, output_tokens))
            self.b.release(Released(request_id=request_id, output_tokens=output_tokens, whole=True))
            self._serve(self.tickets[request_id].tenant, output_tokens)

    def decide(self, service: int, output_tokens: int) -> None:
        was, prompts = self.work, 0
        decision = self.b.decide(self.now)
        for _, grant in decision.grants:
            asked = self.tickets[grant.request_id]
            self.granted_at[grant.request_id] = self.now
            self.running.append((self.now + service, grant.request_id, output_tokens))
            self._serve(asked.tenant, asked.prompt_tokens)
            prompts += asked.prompt_tokens
        self.denied.update(denial.request_id for _, denial in decision.denials)
        running = len(self.running)
        self.work = Work(
            steps=was.steps + 10,
            step_s=was.step_s + 0.1 + 1e-3 * prompts + 0.01 * running,
            prefill_tokens=was.prefill_tokens + prompts,
            decode_tokens=was.decode_tokens + 10 * running,
        )
        load = LoadReport(replica_id="a", epoch=1, running=running, waiting=0, kv_used=0.0, work=self.work)
        self.b.report(load)


arrivals = st.lists(
    st.builds(
        dict,
        prompt_tokens=st.integers(1, 600),
        max_tokens=st.integers(1, 600),
        priority=st.integers(-1, 1),
        tenant=st.builds(Tenant, name=st.sampled_from("tuv"), weight=st.sampled_from([0.5, 1.0, 4.0])),
        ttft_s=st.sampled_from([None, None, 2.0, 20.0]),
    ),
    max_size=3,
)


@settings(max_examples=60)
@given(
    seqs=st.integers(1, 3),
    service=st.integers(1, 4),
    starvation_s=st.integers(3, 12),
    tpot_s=st.sampled_from([None, 0.05, 1.0]),
    stream=st.lists(arrivals, min_size=5, max_size=20),
)
def test_nobody_starves_whatever_else_comes(seqs, service, starvation_s, tpot_s, stream):
    """The bound: let T be the first decision at which a ticket has waited the starvation time, and k how many that
    came before it wait then. It is granted by T - 1 + (k + 1) * service, decisions being a second apart.

    For at T and after nothing but those k goes before it; while the first of them has no room nobody is granted
    anything; and what was granted by T - 1 has ended by T - 1 + service, when an idle replica takes any one request.
    """
    load = Load(Policy(starvation_s=starvation_s, tpot_s=tpot_s), seqs, kv_tokens=512)
    due: dict[str, int] = {}
    since: dict[str, int] = {}
    # After the drawn stream, one that fills the replica by itself: shorter, of a better class, of a tenant with more.
    flood = {
        "prompt_tokens": 1,
        "max_tokens": 1,
        "priority": -2,
        "tenant": Tenant(name="w", weight=100.0),
        "ttft_s": 1.0,
    }
    for now in range(len(stream) + 3 * starvation_s):
        load.now = now
        load.end_what_is_over()
        for asked in stream[now] if now < len(stream) else [flood] * (seqs + 1):
            request_id = str(len(load.tickets))
            load.submit(Ticket(request_id=request_id, **asked))
            since[request_id] = now
        over = load.granted_at.keys() | load.denied
        before = 0
        for request_id, came in since.items():  # in order of arrival
            if request_id not in over:
                if now - came >= starvation_s:
                    due.setdefault(request_id, now - 1 + (before + 1) * service)
                before += 1
        load.decide(service, output_tokens=1)
        for request_id in since.keys() - load.denied:
            assert load.granted_at.get(request_id, now) <= due.get(request_id, math.inf)
    assert all(load.tickets[request_id].ttft_s is not None for request_id in load.denied)


LONGEST_PROMPT, LONGEST_ANSWER = 200, 300
sizes = st.tuples(st.integers(1, LONGEST_PROMPT), st.integers(0, LONGEST_ANSWER), st.integers(1, 3))
weights = st.sampled_from([0.25, 1.0, 1.5, 4.0])


def backlog(load: Load, tenant: Tenant, prompt_tokens: int, at_least: int) -> None:
    while load.waiting_of(tenant.name) < at_least:
        load.submit(
            Ticket(
                request_id=str(len(load.tickets)),
                prompt_tokens=prompt_tokens,
                max_tokens=LONGEST_ANSWER,
                tenant=tenant,
                priority=int(tenant.name == "worse"),
            )
        )


def unfairness_bound(seqs: int, *tenants: Tenant) -> float:
    """How far one always-waiting tenant's tokens over weight get ahead of another's.

    The virtual token counter picks the one that has had less, so it was not ahead when it was last granted something:
    that prompt, and the answers that it had under way then, not counted before their ends, are all it can be ahead by.
    Over any interval the difference changes by at most twice that (Theorem 4.4 of the paper: 2 max(wp L, wq M)).
    """
    return max((LONGEST_PROMPT + seqs * LONGEST_ANSWER) / tenant.weight for tenant in tenants)


@settings(max_examples=60)
@given(
    seqs=st.integers(1, 3), w1=weights, w2=weights, steps=st.lists(st.tuples(sizes, sizes), min_size=10, max_size=60)
)
def test_tenants_that_always_wait_get_tokens_by_their_weights(seqs, w1, w2, steps):
    load = Load(Policy(starvation_s=math.inf), seqs)
    one, two = Tenant(name="one", weight=w1), Tenant(name="two", weight=w2)
    bound = unfairness_bound(seqs, one, two)
    for load.now, ((prompt_1, output, service), (prompt_2, _, _)) in enumerate(steps):
        load.end_what_is_over()
        # More than can be granted at once: both wait at any time.
        backlog(load, one, prompt_1, seqs + 1)
        backlog(load, two, prompt_2, seqs + 1)
        load.decide(service, output)
        assert abs(load.served.get("one", 0.0) - load.served.get("two", 0.0)) <= bound


@settings(max_examples=60)
@given(
    seqs=st.integers(1, 3),
    w1=weights,
    w2=weights,
    alone=st.lists(st.tuples(sizes, st.integers(0, 5)), min_size=10, max_size=40),
    together=st.lists(st.tuples(sizes, sizes), min_size=5, max_size=20),
    idle_between=st.booleans(),
    worse_class_waits=st.booleans(),
    returns_first=st.booleans(),
)
def test_a_tenant_that_returns_does_not_claim_what_it_left_unused(
    seqs, w1, w2, alone, together, idle_between, worse_class_waits, returns_first
):
    load = Load(Policy(starvation_s=math.inf), seqs)
    there, away, worse = Tenant(name="there", weight=w1), Tenant(name="away", weight=w2), Tenant(name="worse")
    backlog(load, away, 1, 1)  # it has been here before
    for load.now, ((prompt, output, service), waiting) in enumerate(alone):
        load.end_what_is_over()
        backlog(load, there, prompt, waiting)
        backlog(load, worse, prompt, seqs + 1 if worse_class_waits else 0)
        load.decide(service, output)
    for _ in range(50 if idle_between else 0):  # until neither waits
        load.now += 1
        load.end_what_is_over()
        backlog(load, worse, 1, seqs + 1 if worse_class_waits else 0)
        load.decide(1, LONGEST_ANSWER)
    at_return = dict(load.served)
    bound = 2 * unfairness_bound(seqs, there, away)
    for (prompt_1, output, service), (prompt_2, _, _) in together:
        load.now += 1
        order = [(away, prompt_2), (there, prompt_1)]
        for tenant, prompt in order if returns_first else order[::-1]:
            backlog(load, tenant, prompt, seqs + 1)
        load.end_what_is_over()
        load.decide(service, output)
        gained = {name: load.served.get(name, 0.0) - at_return.get(name, 0.0) for name in ("there", "away")}
        assert abs(gained["away"] - gained["there"]) <= bound


def test_one_that_came_late_is_no_further_behind_than_the_least_served():
    counters = TokenCounters()
    queue = WaitingQueue(counters, STARVATION_S)

    def add(request_id: str, tenant: str) -> None:
        asked = Ticket(request_id=request_id, prompt_tokens=1, max_tokens=1, tenant=Tenant(name=tenant))
        queue.add(Waiting("g", asked, 0.0, 1))

    add("1", "t")
    counters.charge("t", 1.0, 1000)  # while it waits
    add("2", "u")
    assert counters.had("u") == pytest.approx(1000)

"""ContinuousBatcher: nothing lost, nothing twice, never more than fits, and in order."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from infos import replica_info

from cluster.batching import LOOK_AT, ContinuousBatcher, Policy
from cluster.outcomes import Ending
from cluster.output_length import PRIOR_TOKENS
from cluster.prefix_index import Anchors
from cluster.replica_room import LAG_HALF_LIFE_S, ReplicaRoom
from replicas.messages import Grant, LoadReport, Released, ReplicaInfo, Ticket, Work

WAIT_S = 10.0


def info(replica_id: str = "a", epoch: int = 1, max_num_seqs: int = 4, kv_tokens: int = 4096) -> ReplicaInfo:
    return replica_info(replica_id, epoch, max_num_seqs=max_num_seqs, kv_tokens=kv_tokens)


def ticket(request_id: str, prompt: int = 1, max_tokens: int = 15, resumed: bool = False) -> Ticket:
    return Ticket(request_id=request_id, prompt_tokens=prompt, max_tokens=max_tokens, resumed=resumed)


def grant(request_id: str, replica_id: str = "a", epoch: int = 1) -> Grant:
    return Grant(request_id=request_id, replica_id=replica_id, epoch=epoch)


def report(replica_id: str = "a", epoch: int = 1) -> LoadReport:
    return LoadReport(replica_id=replica_id, epoch=epoch, running=0, waiting=0, kv_used=0.0)


def batcher(*infos: ReplicaInfo) -> ContinuousBatcher:
    made = ContinuousBatcher(Policy(no_replica_wait_s=WAIT_S))
    for each in infos:
        made.join(each)
    return made


def submit(to: ContinuousBatcher, *tickets: Ticket, now: float = 0.0) -> None:
    for each in tickets:
        to.submit("g", each, now)


def granted(by: ContinuousBatcher, now: float = 0.0) -> list[str]:
    return [given.request_id for _, given in by.decide(now).grants]


def in_flight(of: ContinuousBatcher) -> dict[str, tuple[int, int]]:
    return {v.info.replica_id: (v.in_flight, v.kv_in_flight) for v in of.replicas()}


def test_first_come_first_served_and_resumed_ones_ahead():
    b = batcher(info(max_num_seqs=1))
    submit(b, ticket("1"), ticket("2"), ticket("3", resumed=True), ticket("4"), ticket("5", resumed=True))
    order = []
    for _ in range(5):
        (request_id,) = granted(b)
        assert granted(b) == []
        order.append(request_id)
        b.release(Released(request_id=request_id))
    assert order == ["3", "5", "1", "2", "4"] and granted(b) == []


@pytest.mark.parametrize("cold_start", [True, False])
def test_who_waits_for_the_first_replica_to_load_is_not_too_late_for_it(cold_start):
    b = ContinuousBatcher(Policy(no_replica_wait_s=300.0, cold_start=cold_start))
    submit(b, msgspec.structs.replace(ticket("1"), ttft_s=1.0))
    assert b.decide(100.0) == ([], [])
    b.join(info())
    decision = b.decide(150.0)
    assert ([g.request_id for _, g in decision.grants], len(decision.denials)) == (["1"], 0) if cold_start else ([], 1)


def test_submitting_tells_what_is_to_be_computed_and_expected():
    b = batcher(info())
    assert b.submit("g", ticket("1", 300), 0.0) == 300
    assert b.submit("g", ticket("1", 300), 0.0) == 0 and b.queued_tokens == 300
    assert b.expected_output(ticket("2", 5, max_tokens=7)) == 7
    granted(b)
    assert b.queued_tokens == 0


def test_the_shortest_prefill_goes_first():
    b = batcher(info(max_num_seqs=1))
    submit(b, ticket("long", 300), ticket("short", 5), ticket("middle", 20))
    order = []
    while grants := granted(b):
        order += grants
        b.release(Released(request_id=order[-1]))
    assert order == ["short", "middle", "long"]


def test_a_head_that_waits_for_room_is_not_overtaken():
    b = batcher(info(kv_tokens=512))
    submit(b, ticket("first", 1, max_tokens=400), ticket("head", 2, max_tokens=400), ticket("fits", 3))
    assert granted(b) == ["first"]
    b.release(Released(request_id="first"))
    assert granted(b) == ["head", "fits"]


def test_whole_blocks_of_prompt_and_expected_growth_are_reserved():
    def reserved(prompt: int, max_tokens: int) -> int:
        b = batcher(info())
        submit(b, ticket("r", prompt, max_tokens))
        b.decide(0.0)
        return in_flight(b)["a"][1]

    assert reserved(1, 15) == 16 and reserved(1, 16) == 32
    assert reserved(16, 10_000) == 16 + PRIOR_TOKENS
    assert reserved(100_000, 1) == 2048  # no request outgrows max_model_len


def test_a_request_larger_than_every_estimate_runs_alone():
    b = batcher(info(kv_tokens=32))
    submit(b, ticket("huge", 1000))
    assert granted(b) == ["huge"]
    submit(b, ticket("next"))
    assert granted(b) == []
    b.release(Released(request_id="huge"))
    assert granted(b) == ["next"]


def test_the_emptier_replica_gets_the_next_one():
    b = batcher(info("a"), info("b"))
    submit(b, ticket("1", 500))
    first = b.decide(0.0).grants
    submit(b, *(ticket(str(n), 100) for n in range(2, 6)))
    assert [(g.request_id, g.replica_id) for _, g in first + b.decide(0.0).grants] == [
        ("1", "a"),
        ("2", "b"),
        ("3", "b"),
        ("4", "b"),
        ("5", "b"),
    ]


def test_a_ticket_is_queued_once():
    b = batcher()
    submit(b, ticket("r"), ticket("r", resumed=True))
    assert b.queued == 1
    b.join(info())
    assert granted(b) == ["r"]
    submit(b, ticket("r"))
    assert (b.queued, b.placed, granted(b)) == (0, 1, [])


def test_a_ticket_that_was_withdrawn_and_comes_again_goes_to_the_end():
    b = batcher()
    submit(b, ticket("1"), ticket("2"))
    b.release(Released(request_id="1"))
    submit(b, ticket("1"))
    b.join(info())
    assert granted(b) == ["2", "1"]


def test_a_withdrawn_resumed_ticket_leaves_no_place_ahead_of_others():
    b = batcher()
    submit(b, ticket("1", resumed=True), ticket("2"))
    b.release(Released(request_id="1"))
    submit(b, ticket("1"))
    b.join(info(max_num_seqs=1))
    assert granted(b) == ["2"]


def test_a_replica_that_left_gets_nothing_and_its_requests_stay_their_owners_affair():
    b = batcher(info())
    submit(b, ticket("1"), ticket("2"))
    b.decide(0.0)
    assert not b.leave("a", 2, 1.0)  # another life of it
    assert b.leave("a", 1, 1.0) and not b.leave("a", 1, 1.0)
    submit(b, ticket("3"))
    assert (granted(b), b.placed, b.queued) == ([], 2, 1)
    b.release(Released(request_id="1"))
    submit(b, ticket("1", resumed=True))
    b.join(info("b"))
    assert granted(b) == ["1", "3"]
    b.release(Released(request_id="2"))
    assert in_flight(b)["b"][0] == b.placed == 2


def test_a_replica_that_was_only_silent_comes_back_with_what_it_runs():
    b = batcher(info(max_num_seqs=3))
    submit(b, *(ticket(str(n)) for n in range(5)))
    assert granted(b) == ["0", "1", "2"]
    b.leave("a", 1, 1.0)
    b.release(Released(request_id="0"))
    b.join(info(max_num_seqs=3))
    assert in_flight(b) == {"a": (2, 32)}
    assert granted(b) == ["3"]


def test_a_later_life_is_empty_and_an_earlier_one_is_ignored():
    b = batcher(info(max_num_seqs=1))
    submit(b, ticket("1"))
    assert granted(b) == ["1"]
    b.join(info(epoch=2, max_num_seqs=1))
    b.join(info(epoch=1, max_num_seqs=4))
    assert in_flight(b) == {"a": (0, 0)}
    submit(b, ticket("2"))
    ((_, given),) = b.decide(0.0).grants
    assert (given.request_id, given.epoch) == ("2", 2)
    b.release(Released(request_id="1"))  # ran in the earlier life: frees nothing of this one
    assert in_flight(b)["a"][0] == 1


def test_joining_twice_changes_nothing():
    b = batcher(info())
    submit(b, ticket("1"))
    b.decide(0.0)
    b.report(report())
    b.join(info())
    assert in_flight(b) == {"a": (1, 16)}
    assert [view.load for view in b.replicas()] == [report()]


def test_reports_of_the_known_life_only():
    b = batcher(info(epoch=2))
    assert b.report(report(epoch=2))
    assert not b.report(report(epoch=1)) and not b.report(report("b"))


@pytest.mark.parametrize("joined_before", [True, False])
def test_adopted_requests_take_their_room_whenever_their_replica_joins(joined_before):
    b = batcher()
    for step in ("join", "adopt") if joined_before else ("adopt", "join"):
        if step == "join":
            b.join(info(max_num_seqs=2))
        else:
            b.adopt("g", ticket("1", 20), grant("1"))
    submit(b, ticket("1"), ticket("2"), ticket("3"))
    assert granted(b) == ["2"]
    assert in_flight(b) == {"a": (2, 48 + 16)}
    b.release(Released(request_id="1"))
    assert granted(b) == ["3"]


def test_adopting_what_waits_takes_it_off_the_queue():
    b = batcher(info())
    submit(b, ticket("1"))
    b.adopt("g", ticket("1"), grant("1"))
    b.adopt("g", ticket("1"), grant("1"))
    assert (b.queued, b.placed, granted(b), in_flight(b)) == (0, 1, [], {"a": (1, 16)})


def test_a_gateway_that_is_gone_frees_all_it_had_and_nothing_else():
    b = batcher(info(max_num_seqs=2))
    for owner, request_id in [("g1", "1"), ("g2", "2"), ("g1", "3"), ("g2", "4")]:
        b.submit(owner, ticket(request_id), 0.0)
    b.submit("g1", ticket("5", resumed=True), 0.0)
    assert granted(b) == ["5", "1"]
    b.forget_owner("g1")
    assert (b.queued, b.placed) == (2, 0)
    assert [(owner, g.request_id) for owner, g in b.decide(0.0).grants] == [("g2", "2"), ("g2", "4")]


def unplaced(b: ContinuousBatcher, now: float) -> list[str]:
    return [denial.request_id for _, denial in b.decide(now).denials]


def test_without_replicas_a_request_waits_its_time_and_no_longer():
    b = batcher()
    submit(b, ticket("1"), now=100.0)
    submit(b, ticket("2"), now=105.0)
    assert unplaced(b, 109.9) == []
    assert unplaced(b, 110.0) == ["1"]
    assert unplaced(b, 114.9) == [] and unplaced(b, 115.0) == ["2"]
    assert b.queued == 0


def test_the_wait_counts_from_the_last_replicas_end():
    b = batcher(info(max_num_seqs=1))
    submit(b, ticket("0"), ticket("1"))
    assert granted(b) == ["0"]
    assert unplaced(b, 100.0) == []  # a full replica is a replica
    b.leave("a", 1, 105.0)
    assert unplaced(b, 114.9) == []
    b.join(info("b", max_num_seqs=1))
    b.leave("b", 1, 114.95)  # it came and went between two decisions
    assert unplaced(b, 124.9) == [] and unplaced(b, 124.96) == ["1"]


def test_a_resumed_request_that_came_late_does_not_keep_others_waiting():
    b = batcher()
    submit(b, ticket("old"), now=100.0)
    submit(b, ticket("late", resumed=True), now=109.0)
    assert unplaced(b, 110.0) == ["old"]
    assert unplaced(b, 119.0) == ["late"]


def test_of_many_replicas_that_hold_a_beginning_the_least_loaded_one_gets_it():
    *busy, idle = [f"r{i:02}" for i in range(LOOK_AT + 4)]
    b = batcher(*(info(replica) for replica in (*busy, idle)))
    blocks = (4, 8, 12, 16)
    for replica in (*busy, idle):
        b.report(msgspec.structs.replace(report(replica), stored=blocks))
    for replica in busy:
        b.adopt("g", ticket(f"on {replica}"), grant(f"on {replica}", replica))
    submit(b, msgspec.structs.replace(ticket("new", prompt=64), blocks=blocks))
    ((_, given),) = b.decide(0.0).grants
    assert given.replica_id == idle


def test_first_tokens_that_come_late_are_reckoned_with_and_forgotten():
    b = batcher(info())
    for i in range(100):
        submit(b, ticket(f"{i}"))
        assert granted(b) == [f"{i}"]
        b.started(f"{i}", 0.4)  # of a step time that nobody knows yet: all of it is lag
        b.release(Released(request_id=f"{i}"))
    hurried = msgspec.structs.replace(ticket("hurried"), ttft_s=0.3)
    submit(b, hurried, now=0.5)
    ((_, denial),) = b.decide(0.5).denials
    assert (denial.request_id, denial.ending) == ("hurried", Ending.TOO_LATE.name)
    submit(b, hurried, now=0.5 + LAG_HALF_LIFE_S)
    assert granted(b, 0.5 + LAG_HALF_LIFE_S) == ["hurried"]


def test_a_beginning_that_running_requests_share_takes_its_kv_once():
    b = batcher(info(max_num_seqs=8, kv_tokens=256))
    system = (4, 8, 12, 16, 20, 24, 28, 32)  # 128 tokens; every fourth hash is an anchor, so all are
    asks = [
        msgspec.structs.replace(ticket(name, prompt=128 + 16), blocks=(*system, 4 * n))
        for n, name in [(9, "a"), (10, "b")]
    ]
    submit(b, asks[0])
    assert granted(b) == ["a"] and in_flight(b) == {"a": (1, 160)}
    submit(b, asks[1], msgspec.structs.replace(ticket("c", prompt=144), blocks=tuple(range(400, 436, 4))))
    assert granted(b) == ["b"]  # its 32 further tokens fit; 160 of "c", which shares nothing, do not
    assert in_flight(b) == {"a": (2, 192)}
    b.release(Released(request_id="a"))  # what "b" holds too stays
    assert in_flight(b) == {"a": (1, 160)} and granted(b) == []
    b.release(Released(request_id="b"))
    assert granted(b) == ["c"] and in_flight(b) == {"a": (1, 160)}


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 4), st.integers(0, 100), st.integers(0, 6)), max_size=20)
)
def test_kv_that_requests_share_is_reserved_as_long_as_one_of_them_runs(takes):
    room = ReplicaRoom(info(kv_tokens=1000))
    running: dict[str, tuple[Anchors, int]] = {}

    def reserved() -> int:
        shared = {block: end for anchors, _ in running.values() for block, end in zip(*anchors, strict=True)}
        return 64 * len(shared) + sum(rest for _, rest in running.values())

    for number, (chain, blocks, rest, released) in enumerate(takes):
        anchors = Anchors(tuple(hash((chain, i)) for i in range(blocks)), tuple(64 * (i + 1) for i in range(blocks)))
        before = reserved()
        running[str(number)] = anchors, rest
        new = reserved() - before
        fits = not room.in_flight or room.kv_tokens + new <= 1000
        assert room.has_kv(64 * blocks + rest, 1.0, anchors) == fits
        room.take(str(number), 64 * blocks + rest, 0, anchors)
        assert room.kv_tokens == reserved()
        if running.pop(str(number - released), None) is not None:
            room.release(str(number - released))
        assert room.kv_tokens == reserved()
    for request_id in running:
        room.release(request_id)
    assert room.kv_tokens == 0 and not room.held


class Batching(RuleBasedStateMachine):
    """Any order of events, against a plain list of what each id must be."""

    tickets = Bundle("tickets")

    @initialize(seqs=st.integers(1, 3), kv=st.sampled_from([32, 128, 100_000]))
    def begin(self, seqs: int, kv: int) -> None:
        self.b = ContinuousBatcher(Policy(no_replica_wait_s=WAIT_S, starvation_s=math.inf))  # that: test_waiting
        self.seqs, self.kv = seqs, kv
        self.now = 1000.0
        self.without_replica_since = self.now
        self.next_id = 0
        self.replicas: dict[str, int] = {}  # id -> epoch
        self.resumed: list[str] = []  # waiting, in order of arrival
        self.fresh: list[str] = []
        self.placed: dict[str, tuple[str, int]] = {}
        self.by_id: dict[str, Ticket] = {}
        self.owner: dict[str, str] = {}
        self.since: dict[str, float] = {}

    @rule(target=tickets, prompt=st.integers(0, 100), resumed=st.booleans(), owner=st.sampled_from("gh"))
    def submit(self, prompt: int, resumed: bool, owner: str) -> str:
        self.next_id += 1
        return self._submit(str(self.next_id), prompt, resumed, owner)

    @rule(request_id=tickets, resumed=st.booleans())
    def submit_again(self, request_id: str, resumed: bool) -> None:
        self._submit(request_id, 5, resumed, "g")

    def _submit(self, request_id: str, prompt: int, resumed: bool, owner: str) -> str:
        made = ticket(request_id, prompt, resumed=resumed)
        self.b.submit(owner, made, self.now)
        if request_id not in {*self.resumed, *self.fresh, *self.placed}:
            (self.resumed if resumed else self.fresh).append(request_id)
            self.by_id[request_id], self.owner[request_id], self.since[request_id] = made, owner, self.now
        return request_id

    @rule(request_id=tickets)
    def release(self, request_id: str) -> None:
        self.b.release(Released(request_id=request_id))
        self._gone(request_id)

    def _gone(self, request_id: str) -> None:
        for queue in (self.resumed, self.fresh):
            if request_id in queue:
                queue.remove(request_id)
        self.placed.pop(request_id, None)

    @rule(owner=st.sampled_from("gh"))
    def forget_owner(self, owner: str) -> None:
        self.b.forget_owner(owner)
        for request_id in [*self.resumed, *self.fresh, *self.placed]:
            if self.owner[request_id] == owner:
                self._gone(request_id)

    @rule(request_id=consumes(tickets), replica=st.sampled_from("ab"), epoch=st.integers(1, 3))
    def adopt(self, request_id: str, replica: str, epoch: int) -> None:
        if request_id in self.placed:
            return
        self.b.adopt(self.owner[request_id], self.by_id[request_id], grant(request_id, replica, epoch))
        self._gone(request_id)
        room = [r for r, at in self.placed.items() if at == (replica, epoch)]
        # An engine has only what the router once granted it: overfull is as unreal as granting what is not there.
        self.placed[request_id] = (replica, epoch)
        if len(room) >= self.seqs or self._reserved(replica, epoch) > self.kv:
            self.release(request_id)

    @rule(replica=st.sampled_from("ab"), epoch=st.integers(1, 3))
    def join(self, replica: str, epoch: int) -> None:
        self.b.join(info(replica, epoch, self.seqs, self.kv))
        self.replicas[replica] = max(epoch, self.replicas.get(replica, 0))

    @rule(replica=st.sampled_from("ab"), epoch=st.integers(1, 3))
    def leave(self, replica: str, epoch: int) -> None:
        left = self.b.leave(replica, epoch, self.now)
        assert left == (self.replicas.get(replica) == epoch)
        if left:
            del self.replicas[replica]
            self.without_replica_since = self.now

    @rule(target=tickets, seconds=st.sampled_from([0.0, 3.0, 12.0]))
    def decide(self, seconds: float):
        self.now += seconds
        grants, given_up = self.b.decide(self.now)
        order = [*self.resumed, *self._shortest_first()]
        assert [g.request_id for _, g in grants] == order[: len(grants)]
        if self.replicas:
            self.without_replica_since = self.now
            assert given_up == []
        else:
            assert grants == []
            waited = {r: self.now - max(self.since[r], self.without_replica_since) for r in order}
            assert {d.request_id for _, d in given_up} == {r for r in order if waited[r] >= WAIT_S}
        for owner, made in grants:
            assert self.replicas[made.replica_id] == made.epoch and self.owner[made.request_id] == owner
            self._gone(made.request_id)
            self.placed[made.request_id] = (made.replica_id, made.epoch)
        for owner, denial in given_up:
            assert self.owner[denial.request_id] == owner
            self._gone(denial.request_id)
        if self.replicas and (waiting := [*self.resumed, *self._shortest_first()]):  # the head has room nowhere
            need = self._kv(waiting[0])
            for replica, epoch in self.replicas.items():
                held = [r for r, at in self.placed.items() if at == (replica, epoch)]
                assert held
                assert len(held) >= self.seqs or self._reserved(replica, epoch) + need > self.kv
        return multiple()

    def _shortest_first(self) -> list[str]:
        return sorted(self.fresh, key=lambda r: self.by_id[r].prompt_tokens)

    def _kv(self, request_id: str) -> int:
        t = self.by_id[request_id]
        return -(-(t.prompt_tokens + t.max_tokens) // 16) * 16

    def _reserved(self, replica: str, epoch: int) -> int:
        return sum(self._kv(r) for r, at in self.placed.items() if at == (replica, epoch))

    @invariant()
    def each_is_in_exactly_one_place(self) -> None:
        assert self.b.queued == len(self.resumed) + len(self.fresh)
        assert self.b.placed == len(self.placed)

    @invariant()
    def each_replica_holds_exactly_what_was_taken_and_not_released(self) -> None:
        held = in_flight(self.b)
        assert held.keys() == self.replicas.keys()
        for replica, (count, kv) in held.items():
            at = (replica, self.replicas[replica])
            assert count == len([r for r, where in self.placed.items() if where == at])
            assert kv == self._reserved(*at)
            assert count <= 1 or (count <= self.seqs and kv <= self.kv)


Batching.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestBatching = Batching.TestCase


def test_an_idle_replica_gets_the_next_request_whatever_its_last_steps_took():
    """A stale fit must not keep it idle for ever."""
    rooms = [ReplicaRoom(info(name)) for name in ("slow once", "fast")]
    for room, step_s in zip(rooms, (0.5, 0.001), strict=True):
        for steps in range(1, 40):
            room.fit.learn(Work(steps=steps, step_s=steps * step_s, decode_tokens=steps))
    assert rooms[0].load_score > rooms[1].load_score  # both idle: the faster one first
    rooms[1].take("r", 100, 10)
    assert rooms[0].load_score < rooms[1].load_score

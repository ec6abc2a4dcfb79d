"""ContinuousBatcher with several model versions: sessions keep theirs, what has started stays, nothing is lost."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from infos import replica_info

from cluster.batching import MIRROR_WAIT_S, MIRRORS, ContinuousBatcher, Policy
from cluster.outcomes import Ending
from cluster.traffic import POINTS
from replicas.messages import Grant, LoadReport, Released, ReplicaInfo, Tenant, Ticket

WAIT_S = 10.0
SPLIT = {"v2": 0.25, "v1": 0.75}


def info(
    replica_id: str, version: str, epoch: int = 1, max_num_seqs: int = 100, kv_tokens: int = 1 << 20
) -> ReplicaInfo:
    return replica_info(
        replica_id,
        epoch,
        version=version,
        max_num_seqs=max_num_seqs,
        kv_tokens=kv_tokens,
        max_num_batched_tokens=1 << 20,
    )


def ticket(request_id: str, at: float = 0.0, prompt: int = 1, **more: object) -> Ticket:
    """`at`: its session's place, 0..1."""
    return Ticket(request_id=request_id, prompt_tokens=prompt, max_tokens=15, session=int(at * POINTS), **more)


def batcher(*infos: ReplicaInfo, shares: dict[str, float] | None = None, stable: str = "v1") -> ContinuousBatcher:
    made = ContinuousBatcher(Policy(no_replica_wait_s=WAIT_S))
    for each in infos:
        made.join(each)
    made.set_traffic(shares, stable)
    return made


def submit(to: ContinuousBatcher, *tickets: Ticket, now: float = 0.0) -> None:
    for each in tickets:
        to.submit("g", each, now)


def placed(by: ContinuousBatcher, now: float = 0.0) -> dict[str, str]:
    """Request -> replica, of what is granted now."""
    return {given.request_id: given.replica_id for _, given in by.decide(now).grants}


def denied(by: ContinuousBatcher, now: float) -> dict[str, str]:
    return {denial.request_id: denial.ending for _, denial in by.decide(now).denials}


def released(by: ContinuousBatcher, *request_ids: str) -> None:
    for request_id in request_ids:
        by.release(Released(request_id=request_id))


SPOTS = [ticket(f"at {at}", at) for at in (0.0, 0.2, 0.3, 0.7, 0.99)]
CANARY_GETS_TWO = {"at 0.0": "b", "at 0.2": "b", "at 0.3": "a", "at 0.7": "a", "at 0.99": "a"}


def test_sessions_go_by_their_place_whatever_came_before():
    b = batcher(info("a", "v1"), info("b", "v2"), shares=SPLIT)
    for order in (SPOTS, SPOTS[::-1], SPOTS):
        submit(b, *order)
        assert placed(b) == CANARY_GETS_TWO
        released(b, *CANARY_GETS_TWO)


@pytest.mark.parametrize("shares", [{"v1": 1.0}, {"v1": 1.0, "v2": 0.0}])
def test_a_version_without_a_share_gets_nothing_not_even_if_it_alone_is_there(shares):
    b = batcher(info("a", "v1"), info("b", "v2"), shares=shares)
    submit(b, ticket("1"), ticket("2", 0.99))
    assert placed(b) == {"1": "a", "2": "a"}
    b.leave("a", 1, 0.0)
    submit(b, ticket("3"))
    assert placed(b) == {} and denied(b, WAIT_S) == {"3": "NO_REPLICA"}


def test_without_shares_the_replicas_are_counted_that_take_requests():
    b = batcher(info("a", "v1"), info("b", "v1"), info("c", "v2"), info("d", "v2"), stable="v1")
    submit(b, ticket("1", 0.4), ticket("2", 0.6))
    assert placed(b)["1"] in "cd"
    b.drain("d", 1)
    submit(b, ticket("3", 0.32), ticket("4", 0.34))
    assert placed(b).keys() == {"3", "4"}
    where = {
        r: next(v.info.version for v in b.replicas() if ("g", r) in b.running_on(v.info.replica_id)) for r in "1234"
    }
    assert where == {"1": "v2", "2": "v1", "3": "v2", "4": "v1"}


def test_what_waits_follows_the_traffic_until_it_has_started():
    b = batcher(info("a", "v1", max_num_seqs=1), info("b", "v2", max_num_seqs=1), shares={"v1": 1.0})
    submit(b, ticket("runs", 0.1), ticket("waits", 0.1), ticket("stays", 0.9))
    assert placed(b) == {"runs": "a"}
    b.set_traffic({"v2": 0.5, "v1": 0.5}, "v1")
    assert placed(b) == {"waits": "b"}
    released(b, "runs")
    assert placed(b) == {"stays": "a"}


@pytest.mark.parametrize("how", ["leaves", "drains"])
def test_sessions_of_a_version_that_takes_none_go_elsewhere_and_come_back(how):
    b = batcher(info("a", "v1"), info("b", "v2"), shares=SPLIT)
    assert b.leave("b", 1, 0.0) if how == "leaves" else b.drain("b", 1)
    submit(b, *SPOTS)
    assert placed(b) == dict.fromkeys(CANARY_GETS_TWO, "a")
    released(b, *CANARY_GETS_TWO)
    if how == "drains":
        b.leave("b", 1, 0.0)
    b.join(info("b", "v2"))
    submit(b, *SPOTS)
    assert placed(b) == CANARY_GETS_TWO


def test_of_three_versions_the_loss_of_one_moves_nobody_elses_session():
    b = batcher(info("a", "v1"), info("b", "v2"), info("c", "v3"), shares={"v3": 0.25, "v2": 0.5, "v1": 0.25})
    b.leave("c", 1, 0.0)
    submit(b, *SPOTS)  # those of v3 go to the stable version, though another has more of the traffic
    assert placed(b) == {"at 0.0": "a", "at 0.2": "a", "at 0.3": "b", "at 0.7": "b", "at 0.99": "a"}


def test_what_has_started_waits_for_its_version_and_for_no_other():
    b = batcher(info("a", "v1"), info("b", "v2"), shares={"v2": 1.0})
    submit(b, ticket("1", resumed=True, version="v1"), ticket("2", version="v2"), ticket("3", 0.99))
    assert placed(b) == {"1": "a", "2": "b", "3": "b"}
    b.leave("a", 1, 5.0)
    submit(b, ticket("4", resumed=True, version="v1"), now=5.0)
    assert placed(b, 5.0) == {} and denied(b, 14.9) == {}
    b.join(info("c", "v1"))
    assert placed(b, 14.9) == {"4": "c"}


def test_a_version_that_is_gone_for_good_says_so_and_no_version_at_all_is_no_replica():
    b = batcher(info("a", "v1"), info("b", "v2"), shares={"v2": 1.0})
    submit(b, ticket("1", resumed=True, version="v0"))
    assert denied(b, WAIT_S - 0.1) == {} and denied(b, WAIT_S) == {"1": Ending.VERSION_GONE.name}
    b.leave("a", 1, 20.0)
    b.leave("b", 1, 20.0)
    submit(b, ticket("2", resumed=True, version="v1"), now=20.0)
    assert denied(b, 30.0) == {"2": Ending.NO_REPLICA.name}


def test_what_has_started_does_not_wait_for_ever_for_a_replica_that_is_drained():
    b = batcher(info("a", "v1"), info("b", "v2"), shares={"v2": 1.0})
    b.drain("a", 1)
    submit(b, ticket("1", resumed=True, version="v1"), now=100.0)
    assert denied(b, 100.0) == {} == denied(b, 109.9) and denied(b, 110.0) == {"1": "VERSION_GONE"}
    b.leave("a", 1, 110.0)
    b.join(info("a", "v1"))
    submit(b, ticket("2", resumed=True, version="v1"), now=110.0)
    b.release(Released(request_id="2"))
    b.submit("g", ticket("3", resumed=True, version="v1"), 110.0)
    b.drain("a", 1)  # the wait is from here, not from when another replica left
    assert denied(b, 125.0) == {} and denied(b, 134.9) == {} and denied(b, 135.0) == {"3": "VERSION_GONE"}


def test_what_has_not_started_waits_for_the_only_replica_while_that_is_drained():
    b = batcher(info("a", "v1"), shares={"v1": 1.0})
    b.drain("a", 1)
    submit(b, ticket("1"))
    assert denied(b, 900.0) == {} == denied(b, 1000.0)
    b.join(info("a", "v2", epoch=2))  # it was swapped
    assert placed(b, 1000.0) == {}
    b.set_traffic({"v2": 1.0}, "v1")
    assert placed(b, 1000.0) == {"1": "a"}


def test_whoever_waits_longest_is_the_first_wherever_it_has_to_go():
    b = ContinuousBatcher(Policy(no_replica_wait_s=WAIT_S, starvation_s=3.0))
    b.join(info("a", "v1", max_num_seqs=1))
    b.join(info("b", "v2", max_num_seqs=1))
    b.set_traffic({"v2": 0.5, "v1": 0.5}, "v1")
    submit(b, ticket("runs on b", 0.1), ticket("runs on a", 0.9))
    assert placed(b) == {"runs on a": "a", "runs on b": "b"}
    submit(b, ticket("late", 0.9, prompt=5), now=2.0)
    submit(b, ticket("early", 0.1, prompt=50), now=1.0)
    b.leave("b", 1, 2.0)
    for first, after in (("early", "runs on a"), ("late", "early")):
        released(b, after)
        assert placed(b, 10.0) == {first: "a"}


def test_what_another_version_has_cached_is_nothing_here():
    b = batcher(info("a", "v1"), info("b", "v1"), info("c", "v2"), shares={"v1": 1.0})
    blocks = tuple(range(4, 4 * 65, 4))
    b.report(LoadReport(replica_id="c", epoch=1, running=0, waiting=0, kv_used=0.0, stored=blocks))
    b.report(LoadReport(replica_id="b", epoch=1, running=0, waiting=0, kv_used=0.0, stored=blocks[:40]))
    submit(b, ticket("busy", version="v1"))  # at a or b, it does not matter which: the prefix does
    placed(b)
    half_cached = ticket("r", prompt=1024, blocks=blocks)
    assert b.submit("g", half_cached, 0.0) == 1024 - 640
    assert placed(b) == {"r": "b"}
    released(b, "r")
    b.set_traffic({"v2": 1.0}, "v1")
    assert b.submit("g", half_cached, 0.0) == 1
    assert placed(b) == {"r": "c"}


def test_a_ticket_that_goes_elsewhere_is_seen_with_that_versions_cache():
    b = batcher(info("a", "v1"), info("c", "v2"), shares={"v2": 1.0})
    blocks = tuple(range(4, 4 * 65, 4))
    b.report(LoadReport(replica_id="a", epoch=1, running=0, waiting=0, kv_used=0.0, stored=blocks[:40]))
    b.submit("g", ticket("r", prompt=1024, blocks=blocks), 0.0)
    assert b.queued_tokens == 1024
    b.leave("c", 1, 0.0)
    assert b.queued_tokens == 1024  # only the shares move it
    b.set_traffic({"v1": 1.0}, "v1")
    assert b.queued_tokens == 1024 - 640


# -- copies ------------------------------------------------------------------------------------------------------------


def copy(request_id: str, version: str = "v2") -> Ticket:
    return ticket(request_id, version=version, mirror=True)


def test_a_copy_runs_on_its_version_and_is_counted_in_no_queue():
    b = batcher(info("a", "v1"), info("b", "v2"), shares={"v1": 1.0})
    assert b.submit("g", copy("m"), 0.0) == 0
    submit(b, ticket("r"))
    assert (b.queued, b.queued_tokens, len(list(b.waiting()))) == (1, 1, 1)
    assert placed(b) == {"r": "a", "m": "b"}
    released(b, "m")
    assert placed(b) == {} and [v.in_flight for v in b.replicas()] == [1, 0]


def test_a_copy_takes_no_room_that_a_request_waits_for_and_leaves_some():
    b = batcher(info("b", "v2", max_num_seqs=5), shares={"v2": 1.0})
    submit(b, *(ticket(str(n)) for n in range(3)), *(copy(f"m{n}") for n in range(3)))
    assert placed(b) == dict.fromkeys(["0", "1", "2", "m0"], "b")  # a fifth of the batch is left
    submit(b, *(ticket(str(n)) for n in range(3, 6)))
    assert placed(b) == {"3": "b"}
    released(b, "0")
    assert placed(b) == {"4": "b"}


def test_a_copy_that_would_fit_does_not_overtake_a_request_that_does_not():
    b = batcher(info("b", "v2", kv_tokens=512), shares={"v2": 1.0})
    submit(b, ticket("1", prompt=300), ticket("2", prompt=300), copy("m"))
    assert placed(b) == {"1": "b"}
    released(b, "1")
    assert placed(b) == {"2": "b", "m": "b"}


def test_copies_that_find_no_room_are_dropped_soon_and_tell_nobody():
    b = batcher(info("b", "v2", max_num_seqs=1), shares={"v2": 1.0})
    submit(b, ticket("r"), copy("m"), copy("lost", "v9"))
    assert placed(b) == {"r": "b"}
    assert [d for _, d in b.decide(MIRROR_WAIT_S - 0.01).denials] == []
    dropped = [d for _, d in b.decide(MIRROR_WAIT_S).denials]
    assert [d.request_id for d in dropped] == ["m", "lost"] and all(d.mirror for d in dropped)
    submit(b, *(copy(f"m{n}") for n in range(MIRRORS + 3)), now=5.0)
    assert denied(b, 5.0).keys() == {"m0", "m1", "m2"}


def test_copies_go_with_their_gateway_and_can_be_withdrawn():
    b = batcher(shares={"v2": 1.0})
    b.submit("g", copy("m1"), 0.0)
    b.submit("h", copy("m2"), 0.0)
    b.submit("h", copy("m3"), 0.0)
    b.forget_owner("g")
    released(b, "m3")
    b.join(info("b", "v2"))
    assert placed(b) == {"m2": "b"}


def test_copies_teach_nothing_and_cost_no_tenant_its_turn():
    b = batcher(info("b", "v2", max_num_seqs=100), shares={"v2": 1.0})
    before = b.expected_output(Ticket(request_id="x", prompt_tokens=1, max_tokens=1000))
    for n in range(50):
        submit(b, msgspec.structs.replace(copy(f"m{n}"), tenant=Tenant(name="")))
        assert placed(b)
        b.release(Released(request_id=f"m{n}", output_tokens=1000, whole=True))
    assert b.expected_output(Ticket(request_id="x", prompt_tokens=1, max_tokens=1000)) == before


# -- any order of events -----------------------------------------------------------------------------------------------

TRAFFIC: list[dict[str, float] | None] = [
    None,
    {"v1": 1.0},
    {"v2": 1.0},
    {"v1": 0.75, "v2": 0.25},
    {"v2": 2.0, "v1": 2.0},
    {"v3": 0.1, "v2": 0.2, "v1": 0.7},
    {"v1": 1.0, "v2": 0.0},
]


class Versions(RuleBasedStateMachine):
    """Against a plain account of which version each ticket belongs to."""

    tickets = Bundle("tickets")

    @initialize(seqs=st.integers(1, 3))
    def begin(self, seqs: int) -> None:
        self.b = ContinuousBatcher(Policy(no_replica_wait_s=WAIT_S, starvation_s=math.inf))
        self.seqs = seqs
        self.now = 1000.0
        self.next_id = 0
        self.shares: dict[str, float] | None = None
        self.stable = ""
        self.replicas: dict[str, tuple[int, str]] = {}  # id -> epoch, version
        self.draining: set[str] = set()
        self.waiting: dict[str, Ticket] = {}
        self.placed: dict[str, tuple[str, int]] = {}
        self.started: dict[str, str] = {}  # request -> the version that it was granted to
        self.owner: dict[str, str] = {}
        self.since: dict[str, float] = {}
        self.last_left: float | None = self.now  # when some replica left; None: since the last decision
        for replica, version in (("a", "v1"), ("b", "v1"), ("c", "v2")):
            self.join(replica, 1, version)

    @rule(shares=st.sampled_from(TRAFFIC), stable=st.sampled_from(["v1", "v2", ""]))
    def set_traffic(self, shares: dict[str, float] | None, stable: str) -> None:
        self.shares, self.stable = shares, stable
        self.b.set_traffic(shares, stable)

    @rule(target=tickets, prompt=st.integers(1, 100), at=st.sampled_from([0.0, 0.05, 0.2, 0.3, 0.6, 0.999]))
    def submit(self, prompt: int, at: float) -> str:
        self.next_id += 1
        return self._submit(ticket(str(self.next_id), at, prompt), "gh"[self.next_id % 2])

    def _submit(self, made: Ticket, owner: str) -> str:
        self.b.submit(owner, made, self.now)
        request_id = made.request_id
        if request_id not in self.waiting and request_id not in self.placed:
            self.waiting[request_id], self.owner[request_id], self.since[request_id] = made, owner, self.now
        return request_id

    @rule(request_id=tickets)
    def resume(self, request_id: str) -> None:
        """As a gateway does whose replica was lost."""
        if request_id in self.placed:
            self.release(request_id)
            version = self.started[request_id]
            self._submit(ticket(request_id, 0.5, 7, resumed=True, version=version), self.owner[request_id])

    @rule(request_id=tickets)
    def release(self, request_id: str) -> None:
        released(self.b, request_id)
        self.waiting.pop(request_id, None)
        self.placed.pop(request_id, None)

    @rule(owner=st.sampled_from("gh"))
    def forget_owner(self, owner: str) -> None:
        self.b.forget_owner(owner)
        for request_id in [*self.waiting, *self.placed]:
            if self.owner[request_id] == owner:
                self.waiting.pop(request_id, None)
                self.placed.pop(request_id, None)

    @rule(replica=st.sampled_from("abcd"), epoch=st.integers(1, 3), version=st.sampled_from(["v1", "v2", "v3"]))
    def join(self, replica: str, epoch: int, version: str) -> None:
        """A later epoch may bring another version: it was swapped."""
        self.b.join(info(replica, version, epoch, self.seqs))
        if epoch > self.replicas.get(replica, (0, ""))[0]:
            self.last_left = None if replica in self.replicas else self.last_left
            self.replicas[replica] = epoch, version
            self.draining.discard(replica)

    @rule(replica=st.sampled_from("abcd"))
    def leave(self, replica: str) -> None:
        if replica in self.replicas:
            assert self.b.leave(replica, self.replicas.pop(replica)[0], self.now)
            self.draining.discard(replica)
            self.last_left = self.now

    @rule(replica=st.sampled_from("abcd"))
    def drain(self, replica: str) -> None:
        if replica in self.replicas:
            assert self.b.drain(replica, self.replicas[replica][0])
            self.draining.add(replica)

    def _belongs(self, made: Ticket) -> str | None:
        """The version that it waits for; None: to nobody who is there."""
        if made.version:
            return made.version
        there = {version for _, version in self.replicas.values()}
        taking = [version for replica, (_, version) in self.replicas.items() if replica not in self.draining]
        shares = self.shares
        if shares is None:
            shares = {v: taking.count(v) for v in sorted(set(taking))} or dict.fromkeys(sorted(there), 1)
        named = [v for v in shares if shares[v]]
        order = [v for v in named if v != self.stable] + [v for v in named if v == self.stable]
        able = [v for v in order if v in taking] or [v for v in order if v in there]
        if not able:
            return None
        left = made.session / POINTS * sum(shares.values())
        for version in order:
            left -= shares[version]
            if left < 0:
                break
        if version in able:
            return version
        return self.stable if self.stable in able else max(able, key=lambda v: shares[v])

    @rule(at=st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.3, 0.6, 0.999]), max_size=6))
    def submit_some_and_decide(self, at: list[float]) -> None:
        for each in at:
            self.submit(1 + self.next_id % 7, each)
        self.decide(0.0)

    @rule()
    def drain_one_and_decide(self) -> None:
        if left := sorted(self.replicas.keys() - self.draining):
            self.drain(left[0])
        self.decide(0.0)

    @rule(seconds=st.sampled_from([0.0, 3.0, 12.0]))
    def decide(self, seconds: float) -> None:
        self.now += seconds
        grants, denials = self.b.decide(self.now)
        last_left = self.last_left = self.now if self.last_left is None else self.last_left
        queues: dict[str | None, list[Ticket]] = {}
        for made in self.waiting.values():
            queues.setdefault(self._belongs(made), []).append(made)
        got: dict[str, list[Ticket]] = {}
        for owner, given in grants:
            epoch, version = self.replicas[given.replica_id]
            made = self.waiting[given.request_id]
            assert given.epoch == epoch and self.owner[given.request_id] == owner
            assert given.replica_id not in self.draining and self._belongs(made) == version
            got.setdefault(version, []).append(made)
            del self.waiting[given.request_id]
            self.placed[given.request_id] = given.replica_id, epoch
            self.started[given.request_id] = version
        for version, queue in queues.items():  # resumed ones first, then the shortest
            queue.sort(key=self._turn)
            had = [self._turn(made) for made in got.get(str(version), [])]
            assert had == [self._turn(made) for made in queue[: len(had)]]
            left = queue[len(had) :]
            takers = [r for r, (_, v) in self.replicas.items() if v == version and r not in self.draining]
            assert not left or all(len(self._held(replica)) >= self.seqs for replica in takers)
        serving = any(replica not in self.draining for replica in self.replicas)
        for owner, denial in denials:
            made = self.waiting.pop(denial.request_id)
            assert self.owner[denial.request_id] == owner
            assert self.now - self.since[denial.request_id] >= WAIT_S
            version = self._belongs(made)
            assert all(r in self.draining for r, (_, v) in self.replicas.items() if v == version)
            assert denial.ending == ("VERSION_GONE" if made.version and serving else "NO_REPLICA")
            assert made.version or (version is None and self.now - last_left >= WAIT_S)
        for made in self.waiting.values():  # nobody waits for ever for nobody
            waited = self.now - max(self.since[made.request_id], last_left)
            assert self._belongs(made) is not None or waited < WAIT_S

    def _turn(self, made: Ticket) -> tuple[bool, float]:
        return (not made.resumed, self.since[made.request_id] if made.resumed else made.prompt_tokens)

    def _held(self, replica: str) -> list[str]:
        at = (replica, self.replicas[replica][0])
        return [r for r, where in self.placed.items() if where == at]

    @invariant()
    def nothing_is_forgotten(self) -> None:
        assert self.b.queued == len(self.waiting) and self.b.placed == len(self.placed)
        assert {view.ticket.request_id for view in self.b.waiting()} == self.waiting.keys()

    @invariant()
    def what_has_started_is_where_it_was(self) -> None:
        for view in self.b.replicas():
            replica = view.info.replica_id
            assert (view.info.epoch, view.info.version) == self.replicas[replica]
            assert view.draining == (replica in self.draining)
            assert view.in_flight == len(self._held(replica)) <= self.seqs

    @invariant()
    def no_version_is_kept_that_nobody_serves_or_waits_for(self) -> None:
        self.b.set_traffic(self.shares, self.stable)
        wanted = {made.version for made in self.waiting.values() if made.version}
        assert set(self.b._pools._by_version) <= wanted | {version for _, version in self.replicas.values()}


Versions.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestVersions = Versions.TestCase


def test_a_restarted_router_puts_each_session_where_it_was():
    running = [
        (made, Grant(request_id=made.request_id, replica_id=at, epoch=1))
        for made, at in zip(SPOTS, CANARY_GETS_TWO.values(), strict=True)
    ]
    for order in (["v1", "v2"], ["v2", "v1"]):
        b = batcher(stable="v1")
        for made, given in running:
            b.adopt("g", made, given)
        for version in order:
            b.join(info("a" if version == "v1" else "b", version))
            b.join(info("c" + version, version))
        submit(b, ticket("1", 0.49), ticket("2", 0.51))
        where = placed(b)
        assert where["1"] in ("b", "cv2") and where["2"] in ("a", "cv1")

"""The rule of each policy that others use, and what all of them share: they bind a request when it arrives."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from infos import replica_info

from cluster.batcher import Batcher
from cluster.peers import PEERS, SentPrefixes
from replicas.messages import Grant, LoadReport, Released, ReplicaInfo, Ticket

BLOCK = 16
SYSTEM = tuple(range(1000, 1010))


def replica(name: str, epoch: int = 1) -> ReplicaInfo:
    return replica_info(name, epoch, kv_tokens=40 * BLOCK, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=640)


def ticket(name: str, prompt: int = 32, blocks: tuple[int, ...] = (), max_tokens: int = 100) -> Ticket:
    return Ticket(request_id=name, prompt_tokens=prompt, max_tokens=max_tokens, blocks=blocks)


def load(name: str, waiting: int = 0, kv_used: float = 0.0) -> LoadReport:
    return LoadReport(replica_id=name, epoch=1, running=0, waiting=waiting, kv_used=kv_used)


def cluster(policy: str, *names: str, seed: int = 0) -> Batcher:
    batcher = PEERS[policy](30.0, seed)
    for name in names:
        batcher.join(replica(name))
    return batcher


def send(batcher: Batcher, *tickets: Ticket) -> list[str]:
    """Where they go, each as it arrives."""
    went = []
    for one in tickets:
        batcher.submit("g", one, 0.0)
        (grant,) = [grant for _, grant in batcher.decide(0.0).grants]
        went.append(grant.replica_id)
    return went


def end(batcher: Batcher, name: str, output: int = 10) -> None:
    batcher.release(Released(request_id=name, output_tokens=output, whole=True))


@pytest.mark.parametrize("policy", PEERS)
def test_all_keep_what_has_started_on_its_version(policy):
    batcher = cluster(policy, "a", "b")
    for name in ("c", "d"):
        batcher.join(msgspec.structs.replace(replica(name), version="v2"))
    started = [msgspec.structs.replace(ticket(str(i)), resumed=True, version="v2") for i in range(20)]
    assert set(send(batcher, *started)) <= {"c", "d"}
    gone = msgspec.structs.replace(ticket("gone"), resumed=True, version="v3")
    batcher.submit("g", gone, 0.0)
    assert batcher.decide(29.0) == ([], []) and send(batcher, ticket("fresh"))
    assert [denial.request_id for _, denial in batcher.decide(30.0).denials] == ["gone"]


@pytest.mark.parametrize("policy", PEERS)
def test_all_bind_on_arrival_and_forget_what_ends(policy):
    batcher = cluster(policy, "a", "b")
    tickets = [ticket(str(i), blocks=(i, i + 1000)) for i in range(100)]
    assert len(send(batcher, *tickets)) == 100  # far more than the engines hold: the queue is theirs
    assert (batcher.queued, batcher.placed) == (0, 100)
    assert sum(view.in_flight for view in batcher.replicas()) == 100
    for i in range(100):
        end(batcher, str(i))
    assert batcher.placed == 0 and all(view[2:4] == (0, 0) for view in batcher.replicas())


@pytest.mark.parametrize("policy", PEERS)
def test_none_goes_to_a_replica_that_drains_or_left(policy):
    batcher = cluster(policy, "a", "b", "c")
    assert batcher.drain("a", 1) and batcher.leave("b", 1, 0.0)
    assert not batcher.drain("a", 2) and not batcher.leave("b", 1, 0.0) and not batcher.report(load("b"))
    assert set(send(batcher, *[ticket(str(i), blocks=SYSTEM) for i in range(12)])) == {"c"}


@pytest.mark.parametrize("policy", PEERS)
def test_without_a_replica_they_wait_and_are_denied_in_the_end(policy):
    batcher = cluster(policy)
    batcher.submit("g", ticket("early"), 0.0)
    batcher.submit("g", ticket("late"), 20.0)
    assert batcher.decide(29.0) == ([], [])
    ((owner, denial),) = batcher.decide(31.0).denials
    assert (owner, denial.request_id, denial.ending) == ("g", "early", "NO_REPLICA")
    batcher.join(replica("a"))
    ((_, grant),) = batcher.decide(32.0).grants
    assert grant == Grant(request_id="late", replica_id="a", epoch=1)


@pytest.mark.parametrize("policy", PEERS)
def test_a_restarted_router_learns_what_runs_and_a_gateway_that_goes_takes_its_own(policy):
    batcher = cluster(policy)
    batcher.adopt("g", ticket("old"), Grant(request_id="old", replica_id="a", epoch=1))
    batcher.join(replica("a"))
    batcher.submit("g", ticket("old"), 0.0)  # it runs: it does not wait as well
    batcher.submit("h", ticket("new"), 0.0)
    assert [g.request_id for _, g in batcher.decide(0.0).grants] == ["new"]
    assert batcher.running_on("a") == [("g", "old"), ("h", "new")]
    batcher.forget_owner("g")
    assert batcher.running_on("a") == [("h", "new")]
    batcher.join(replica("a", epoch=2))  # its next life holds nothing
    assert [view.in_flight for view in batcher.replicas()] == [0]


def test_round_robin_takes_turns():
    batcher = cluster("round_robin", "a", "b", "c")
    assert send(batcher, *[ticket(str(i), prompt=1 + 500 * i) for i in range(6)]) == ["a", "b", "c", "a", "b", "c"]


def test_least_outstanding_counts_requests():
    batcher = cluster("least_outstanding", "a", "b", "c")
    where = dict(zip("pqrstu", send(batcher, *[ticket(name) for name in "pqrstu"]), strict=True))
    assert sorted(where.values()) == ["a", "a", "b", "b", "c", "c"]
    freed = where["q"]
    end(batcher, "q")
    assert send(batcher, ticket("next", prompt=600)) == [freed]


def test_power_of_two_prefers_the_emptier_of_two_and_is_repeatable():
    names = [f"r{i}" for i in range(8)]
    tickets = [ticket(str(i)) for i in range(800)]
    one, other = (send(cluster("power_of_two", *names, seed=3), *tickets) for _ in range(2))
    assert one == other != send(cluster("power_of_two", *names, seed=4), *tickets)
    counts = Counter(one)
    assert max(counts.values()) - min(counts.values()) <= 8  # choices at random alone differ by some 30


def test_token_load_counts_prompts_and_learns_the_length_of_answers():
    batcher = cluster("token_load", "a", "b")
    assert send(batcher, ticket("long", 500), *[ticket(f"short{i}", 50) for i in range(9)]) == ["a"] + ["b"] * 9
    for name in ("long", *[f"short{i}" for i in range(9)]):
        end(batcher, name, output=40)
    send(batcher, ticket("counts", 50, max_tokens=100), ticket("capped", 50, max_tokens=30))
    assert [view.kv_in_flight for view in batcher.replicas()] == [90, 80]


def test_prefix_affinity_goes_where_the_beginning_is_until_loads_drift_apart():
    batcher = cluster("prefix_affinity", "a", "b")
    assert send(batcher, ticket("1", blocks=(*SYSTEM, 1)), ticket("2", blocks=(2, 3))) == ["a", "b"]
    went = send(batcher, *[ticket(f"s{i}", blocks=(*SYSTEM, 100 + i)) for i in range(64)])
    assert went == ["a"] * 64
    # A little shared is not enough: to whom was sent least.
    assert send(batcher, ticket("3", blocks=(*SYSTEM[:3], *range(20, 29)))) == ["b"]
    assert send(batcher, *[ticket(f"t{i}", blocks=(*SYSTEM, 900 + i)) for i in range(3)]) == ["a", "a", "b"]


def test_prefix_and_load_weighs_prefix_queue_and_kv():
    batcher = cluster("prefix_and_load", "a", "b")
    batcher.report(load("a", kv_used=0.5))
    assert send(batcher, ticket("1", blocks=SYSTEM)) == ["b"]  # more KV is free there
    batcher.report(load("b", kv_used=0.9))
    assert send(batcher, ticket("2", blocks=SYSTEM)) == ["b"]  # 3 for the prefix against 2 * 0.4 of KV
    assert send(batcher, ticket("3", blocks=(7, 8, 9))) == ["a"]
    batcher.report(load("b", waiting=1, kv_used=1.0))
    batcher.report(load("a", kv_used=0.6))
    assert send(batcher, ticket("4", blocks=SYSTEM)) == ["b"]  # 3 for the prefix against 2 for the queue, 0.8 for KV
    batcher.report(load("a", kv_used=0.4))
    assert send(batcher, ticket("5", blocks=SYSTEM)) == ["a"]  # against 2 and 1.2


def test_sent_prefixes_forget_the_end_of_the_oldest_chain_first():
    prefixes = SentPrefixes()
    prefixes.add("a", (1, 2, 3), 4)
    prefixes.add("b", (1, 2), 4)
    assert prefixes.matches((1, 2, 3, 4)) == {"a": 3, "b": 2} and prefixes.matches((9, 1)) == {}
    prefixes.add("a", (7, 8, 9), 4)
    assert prefixes.matches((1, 2, 3)) == {"a": 1, "b": 2} and prefixes.size("a") == 4
    prefixes.drop("b")
    assert prefixes.matches((1, 2)) == {"a": 1}

"""Who waits, by tenant and priority."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.batcher import WaitingView
from cluster.batching import ContinuousBatcher, Policy
from cluster.policies import POLICIES, batcher
from cluster.queue_report import ROWS, queue_report
from cluster.router_state import RouterState
from replicas.messages import Outbox, Resync, Tenant, Ticket

NOW = 100.0


def waits(tenant: str, priority: int = 0, prompt_tokens: int = 10, since: float = NOW - 1) -> WaitingView:
    ticket = Ticket(
        request_id=f"{tenant}-{priority}-{since}",
        prompt_tokens=prompt_tokens,
        max_tokens=1,
        tenant=Tenant(name=tenant),
        priority=priority,
    )
    return WaitingView(ticket, since)


def test_each_tenant_and_priority_has_its_row_and_the_fullest_comes_first() -> None:
    told = queue_report([waits("b"), waits("a", 3), waits("a", 3, 30, NOW - 7.5), waits("a")], NOW)
    assert told["rows"] == [
        {"tenant": "a", "priority": 3, "requests": 2, "prompt_tokens": 40, "oldest_s": 7.5},
        {"tenant": "a", "priority": 0, "requests": 1, "prompt_tokens": 10, "oldest_s": 1.0},
        {"tenant": "b", "priority": 0, "requests": 1, "prompt_tokens": 10, "oldest_s": 1.0},
    ]
    assert told["others"] == {"rows": 0, "requests": 0, "prompt_tokens": 0, "oldest_s": 0.0}


def test_an_empty_queue_has_no_rows() -> None:
    assert queue_report([], NOW)["rows"] == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-40, 40), st.integers(1, 9), st.floats(0, NOW))))
def test_it_is_bounded_and_nothing_is_lost(queue: list[tuple[str, int, int, float]]) -> None:
    told = queue_report([waits(*each) for each in queue], NOW)
    rows, others = told["rows"], told["others"]
    assert len(rows) <= ROWS and len(rows) + others["rows"] == len({each[:2] for each in queue})
    assert sum(row["requests"] for row in [*rows, others]) == len(queue)
    assert sum(row["prompt_tokens"] for row in [*rows, others]) == sum(each[2] for each in queue)
    assert max(row["oldest_s"] for row in [*rows, others]) == pytest.approx(
        max((NOW - each[3] for each in queue), default=0.0), abs=1e-3
    )
    if others["rows"]:
        assert min(row["requests"] for row in rows) * others["rows"] >= others["requests"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_batcher_says_who_waits(policy: str) -> None:
    queue = batcher(policy, Policy())
    queue.submit("gateway", waits("a").ticket, NOW)
    assert list(queue.waiting()) == [waits("a", since=NOW)._replace(ticket=waits("a").ticket)]


def test_the_router_tells_of_its_own() -> None:
    router = RouterState(ContinuousBatcher(Policy()), max_queue=10)
    router.take("g", Resync(gateway="g"), NOW)
    router.take("g", Outbox(tickets=(waits("acme", 2).ticket,)), NOW)
    [row] = router.queue_report(NOW + 5)["rows"]
    assert (row["tenant"], row["priority"], row["requests"], row["oldest_s"]) == ("acme", 2, 1, 5.0)

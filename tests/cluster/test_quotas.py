"""Quotas: what is admitted over any time, what is counted, and what a refusal tells."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.quotas import Quotas
from replicas.messages import Allowance, Quota, Released, Tenant, Ticket


def ticket(request_id: str = "1", prompt: int = 1, resumed: bool = False, first: bool = True, **terms: int) -> Ticket:
    return Ticket(
        request_id=request_id,
        prompt_tokens=prompt,
        max_tokens=10,
        resumed=resumed,
        first_of_request=first,
        tenant=Tenant(name="a", **terms),
    )


class Book:
    """Quotas and a clock that is set by hand."""

    def __init__(self) -> None:
        self.quotas = Quotas()
        self.now = 1000.0
        self._made = 0

    def ask(self, prompt: int = 1, owner: str = "g", **more) -> str:
        """A fresh request: its id, or "" if it is refused."""
        self._made += 1
        asked = ticket(str(self._made), prompt, **more)
        return "" if self.quotas.admit(owner, asked, self.now) else asked.request_id

    def end(self, request_id: str, output: int = 0) -> None:
        self.quotas.release(Released(request_id=request_id, output_tokens=output))

    def denial(self, **more):
        return self.quotas.admit("g", ticket("x", **more), self.now)

    @property
    def had(self) -> tuple[int, int, int, int]:
        [told] = self.quotas.status()
        return told["open"], told["requests"], told["prompt_tokens"], told["output_tokens"]


@pytest.fixture
def book():
    return Book()


def test_without_limits_all_enter_and_all_is_counted(book):
    ended = [book.ask(prompt=5) for _ in range(100)]
    assert all(ended) and book.had == (100, 100, 500, 0)
    for request_id in ended:
        book.end(request_id, output=3)
    assert book.had == (0, 100, 500, 300)
    assert book.quotas.quota(ended[0], book.now) is None


def test_a_minutes_requests_may_come_at_once_then_they_come_at_the_rate(book):
    assert [bool(book.ask(requests_per_min=3)) for _ in range(4)] == [True, True, True, False]
    denial = book.denial(requests_per_min=3)
    assert (denial.ending, denial.retry_after_s) == ("RATE_LIMITED", 20.0)
    assert denial.detail == "Tenant a has used up its 3 requests per minute; try again in 20 s."
    assert denial.quota == Quota(requests=Allowance(limit=3, remaining=0, reset_s=60.0))
    book.now += 20
    assert book.ask(requests_per_min=3) and not book.ask(requests_per_min=3)


def test_tokens_are_charged_before_and_after(book):
    running = book.ask(prompt=60, tokens_per_min=100)
    assert book.quotas.quota(running, book.now).tokens == Allowance(limit=100, remaining=40, reset_s=36.0)
    assert not book.ask(prompt=41, tokens_per_min=100)
    book.end(running, output=100)  # below zero by what was running
    denial = book.denial(prompt=40, tokens_per_min=100)
    assert denial.retry_after_s == pytest.approx(60.0) and denial.quota.tokens.remaining == 0
    assert "0 of its 100 tokens per minute left; the prompt has 40" in denial.detail
    book.now += 60.001
    assert book.ask(prompt=40, tokens_per_min=100)


def test_a_prompt_larger_than_a_minutes_tokens_waits_for_a_full_bucket(book):
    book.ask(prompt=1, tokens_per_min=100)
    assert not book.ask(prompt=250, tokens_per_min=100)
    book.now += 1
    assert book.ask(prompt=250, tokens_per_min=100)
    assert book.denial(tokens_per_min=100).retry_after_s == pytest.approx(151 * 0.6)


def test_concurrency_is_what_is_open_of_all_gateways(book):
    first = book.ask(concurrency=2)
    assert book.ask(concurrency=2, owner="h") and not book.ask(concurrency=2)
    denial = book.denial(concurrency=2)
    assert denial.retry_after_s == 0 and denial.quota is None
    assert "has 2 requests open, of 2" in denial.detail
    for _ in range(3):
        book.end(first, output=5)  # said again, it changes nothing
    assert book.had == (1, 2, 2, 5)
    assert book.ask(concurrency=2) and not book.ask(concurrency=2)
    book.quotas.forget_owner("h")
    assert book.ask(concurrency=2) and not book.ask(concurrency=2)


def test_further_samples_are_no_requests_but_use_tokens_and_places(book):
    assert book.ask(requests_per_min=1, tokens_per_min=10, concurrency=2, prompt=10)
    more = {"requests_per_min": 1, "tokens_per_min": 10, "concurrency": 2, "first": False}
    assert book.ask(prompt=10, **more) and book.had == (2, 1, 20, 0)
    assert not book.ask(prompt=10, **more)
    assert book.denial(tokens_per_min=10).retry_after_s == pytest.approx(66)


def test_a_resumed_request_is_never_refused_nor_charged_for_its_prompt(book):
    limits = {"requests_per_min": 1, "tokens_per_min": 10, "concurrency": 1}
    moved = book.ask(prompt=10, **limits)
    book.end(moved, output=4)
    assert book.quotas.admit("g", ticket(moved, prompt=14, resumed=True, **limits), book.now) is None
    assert book.had == (1, 1, 10, 4)
    other = ticket("other", prompt=99, resumed=True, **limits)  # past the concurrency
    assert book.quotas.admit("g", other, book.now) is None and book.had == (2, 1, 10, 4)


def test_what_the_cluster_could_not_serve_costs_nothing(book):
    limits = {"requests_per_min": 1, "tokens_per_min": 10}
    for _ in range(5):
        request_id = book.ask(prompt=10, **limits)
        assert request_id
        book.quotas.give_back(request_id)
        book.end(request_id)  # the gateway's word comes later
    assert book.had == (0, 0, 0, 0)


def test_the_latest_terms_count_and_what_is_used_up_stays_so(book):
    for _ in range(10):
        book.ask(requests_per_min=10)
    assert not book.ask(requests_per_min=60)
    book.now += 1
    assert book.ask(requests_per_min=60) and not book.ask(requests_per_min=60)
    assert book.ask()  # no limit any more
    assert book.ask(requests_per_min=1) and not book.ask(requests_per_min=1)
    resumed = ticket("r", resumed=True, requests_per_min=1000)  # terms of before
    book.quotas.admit("g", resumed, book.now)
    assert book.quotas.quota("r", book.now).requests.limit == 1


def test_a_router_that_restarted_is_told_what_is_open(book):
    for request_id in ("1", "2"):
        book.quotas.adopt("g", ticket(request_id, prompt=50, concurrency=2, tokens_per_min=10), book.now)
    assert book.had == (2, 0, 0, 0)
    assert not book.quotas.admit("g", ticket("1", concurrency=2), book.now)  # known: not counted twice
    assert book.denial(concurrency=2) is not None and book.had == (2, 0, 0, 0)


def test_tenants_do_not_share(book):
    assert book.ask(requests_per_min=1) and not book.ask(requests_per_min=1)
    other = msgspec.structs.replace(ticket("o"), tenant=Tenant(name="b", requests_per_min=1))
    assert book.quotas.admit("g", other, book.now) is None
    assert [told["name"] for told in book.quotas.status()] == ["a", "b"]


STEPS = st.lists(
    st.tuples(
        st.floats(0, 90),  # seconds later
        st.sampled_from(["ask", "ask", "ask", "end", "end again", "resume"]),
        st.integers(1, 40),  # prompt or output tokens
    ),
    max_size=80,
)


@given(STEPS, st.integers(1, 30), st.integers(1, 100), st.integers(1, 5))
def test_no_window_admits_more_than_its_share_and_what_was_saved_up(steps, requests, tokens, concurrency):
    book = Book()
    limits = {"requests_per_min": requests, "tokens_per_min": tokens, "concurrency": concurrency}
    open_: list[str] = []
    ended: list[str] = []
    admitted: list[tuple[float, int]] = []
    for wait_s, what, amount in steps:
        book.now += wait_s
        if what == "ask":
            before = len(open_)
            if request_id := book.ask(prompt=amount, **limits):
                assert before < concurrency
                open_.append(request_id)
                admitted.append((book.now, amount))
            else:
                denial = book.denial(prompt=amount, **limits)
                assert (before >= concurrency) == (denial.retry_after_s == 0)
                if denial.retry_after_s and before < concurrency:  # as promised, it is let in then
                    later = book.now + math.ceil(denial.retry_after_s)
                    copy = msgspec.structs.replace(ticket("later", prompt=amount, **limits))
                    assert book.quotas.admit("g", copy, later) is None
                    book.quotas.give_back("later")
                    book.now = later
        elif what == "end" and open_:
            ended.append(open_.pop())
            book.end(ended[-1], output=amount)
        elif what == "end again" and ended:
            book.end(ended[-1], output=amount)
        elif what == "resume" and open_:
            book.end(open_[-1], output=amount)
            assert book.quotas.admit("g", ticket(open_[-1], prompt=amount, resumed=True, **limits), book.now) is None
        assert not book.quotas.status() or book.had[0] == len(open_)
    for first, (start, _) in enumerate(admitted):
        seen_tokens = 0
        for count, (at, prompt) in enumerate(admitted[first:], 1):
            assert count <= requests + (at - start) * requests / 60 + 1e-6
            # A prompt beyond a minute's worth is let in at a full bucket, and counts for that much here.
            seen_tokens += min(prompt, tokens)
            assert seen_tokens <= tokens + (at - start) * tokens / 60 + 1e-6

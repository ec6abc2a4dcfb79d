"""The simulated engine: any load, all at once and step by step; and each of its scheduler's rules by itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.step_model import StepTime
from replicas.messages import Capacity
from replicas.simulated_engine import SimulatedEngine
from replicas.simulated_kv import PagedKv
from replicas.simulated_request import SimulatedRequest
from replicas.step_time import H200

SMALL = Capacity(kv_tokens=96, block_tokens=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=96)
CHAINS = [tuple(range(100 * c, 100 * c + 24)) for c in range(3)]  # three conversations that requests may share


class Sent(NamedTuple):
    at_s: float
    prompt: int
    output: int
    chain: int | None
    aborted_after_s: float | None


class Run:
    """One engine's whole life with a load; loads and KV are looked at on the way."""

    def __init__(
        self,
        load: list[Sent],
        probes: list[float],
        jump: bool,
        capacity: Capacity = SMALL,
        ahead: bool = False,
        step: StepTime = H200.step,
    ) -> None:
        self.engine = SimulatedEngine(step, capacity, jump=jump, ahead=ahead)
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.probes: list[Any] = []
        self.cached: set[int] = set()
        self.ends = 0
        self.now = 0.0
        events: list[tuple[float, int, Any]] = [(sent.at_s, i, sent) for i, sent in enumerate(load)]
        events += [
            (sent.at_s + sent.aborted_after_s, i, None)
            for i, sent in enumerate(load)
            if sent.aborted_after_s is not None
        ]
        events += [(at, -1, None) for at in probes]
        for at, number, sent in sorted(events, key=lambda e: e[:2]):
            self._run_until(at)
            if number < 0:
                self.probes.append(self.engine.load(at))
            elif sent is None:
                self.engine.abort(str(number), at)
            else:
                chain = CHAINS[sent.chain] if sent.chain is not None else ()
                self.engine.add(SimulatedRequest(str(number), sent.prompt, sent.output, chain), at)
            if self.engine.due == math.inf:
                self.engine.begin(at)
        self._run_until(math.inf)

    def _run_until(self, at: float) -> None:
        while self.engine.due <= at and self.engine.due < math.inf:
            self.now, prefilled, finished = self.engine.end()
            self.ends += 1
            for request in prefilled:
                self.first.setdefault(request.request_id, self.now)
            for request in finished:
                assert request.request_id not in self.last
                self.last[request.request_id] = self.now
                self.tokens[request.request_id] = request.generated
            self.engine.begin(self.now)
            self.check()

    def check(self) -> None:
        kv, capacity = self.engine.kv, self.engine.capacity
        load = self.engine.load(self.now)
        assert 0 <= kv.used <= kv.total and load.running <= capacity.max_num_seqs
        stored, removed = kv.take_events()
        self.cached = (self.cached | set(stored)) - set(removed)
        assert all((block in self.cached) == (block in kv) for chain in CHAINS for block in chain)


loads = st.lists(
    st.builds(
        Sent,
        st.floats(0.0, 1.0),
        st.integers(1, 48),
        st.integers(1, 48),
        st.none() | st.integers(0, 2),
        st.none() | st.floats(0.001, 0.5),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=120)
@given(loads, st.lists(st.floats(0.0, 2.0), max_size=4), st.booleans(), st.sampled_from([0.0, 0.006, 0.05]))
def test_many_steps_at_once_are_as_each_by_itself(load, probes, ahead, launch_s):
    step = dataclasses.replace(H200.step, graph_sizes=(1, 2), launch_s=launch_s)
    at_once, by_step = (Run(load, probes, jump, ahead=ahead, step=step) for jump in (True, False))
    for times in ("first", "last"):
        assert getattr(at_once, times) == pytest.approx(getattr(by_step, times), abs=1e-9)
    assert at_once.engine.preemptions == by_step.engine.preemptions
    for one, other in zip(at_once.probes, by_step.probes, strict=True):
        assert one[:3] == other[:3] and one.work.steps == other.work.steps
        assert one.work.step_s == pytest.approx(other.work.step_s)
        assert (one.work.prefill_tokens, one.work.decode_tokens) == (
            other.work.prefill_tokens,
            other.work.decode_tokens,
        )


@settings(max_examples=60)
@given(loads, st.booleans())
def test_everyone_gets_exactly_their_tokens_and_nothing_is_left(load, ahead):
    run = Run(load, [], jump=True, ahead=ahead)
    wanted = {str(i): sent.output for i, sent in enumerate(load)}
    kept = {str(i) for i, sent in enumerate(load) if sent.aborted_after_s is None}
    assert kept <= run.tokens.keys() and all(run.tokens[r] == wanted[r] for r in run.tokens)
    assert all(run.first[r] <= run.last[r] for r in run.last)
    assert not run.engine.has_work and run.engine.kv.used == 0 and run.engine.due == math.inf
    work = run.engine.load(run.now).work
    if not run.engine.preemptions and len(kept) == len(load):
        assert work.decode_tokens == sum(sent.output - 1 for sent in load)
        assert work.prefill_tokens <= sum(sent.prompt for sent in load)
        if all(sent.chain is None for sent in load):
            assert work.prefill_tokens == sum(sent.prompt for sent in load)


def test_decoding_alone_is_taken_in_one_go():
    run = Run([Sent(0.0, 8, 41, None, None)], [], jump=True)
    assert run.ends == 2 and run.engine.load(0.0).work.steps == 41


def test_a_newcomer_is_taken_up_with_the_next_step():
    alone = Run([Sent(0.0, 4, 40, None, None)], [], jump=False)
    between = (alone.first["0"] + alone.last["0"]) / 2
    step_s = H200.step.step_s(0, 0.0, 1, 20)
    both = Run([Sent(0.0, 4, 40, None, None), Sent(between, 4, 1, None, None)], [], jump=True)
    assert step_s / 2 < both.first["1"] - between < 4 * step_s


def test_scheduled_ahead_a_newcomer_is_in_the_next_step_but_one():
    load = [Sent(0.0, 4, 40, None, None)]
    alone = Run(load, [], jump=False)
    between = (alone.first["0"] + alone.last["0"]) / 2
    load.append(Sent(between, 4, 1, None, None))
    at_once, ahead = (Run(load, [], jump=True, ahead=ahead) for ahead in (False, True))
    step_s = H200.step.step_s(0, 0.0, 1, 24)
    assert ahead.first["1"] - at_once.first["1"] == pytest.approx(step_s, rel=0.01)
    assert ahead.last["0"] == pytest.approx(at_once.last["0"], rel=0.01)


def test_scheduled_ahead_a_place_is_free_only_after_the_step_that_is_scheduled_already():
    places = msgspec.structs.replace(SMALL, max_num_seqs=2)
    load = [Sent(0.0, 4, output, None, None) for output in (10, 30, 1)]
    at_once, ahead = (Run(load, [], jump=True, capacity=places, ahead=ahead) for ahead in (False, True))
    step_s = H200.step.step_s(0, 0.0, 1, 14)
    # The second comes in the third step instead of the second; the third waits for the first one's last token.
    assert ahead.first["2"] - ahead.last["0"] == pytest.approx(
        at_once.first["2"] - at_once.last["0"] + step_s, rel=0.05
    )


def test_a_prompt_is_computed_in_chunks_and_decoding_goes_first():
    run = Run([Sent(0.0, 4, 30, None, None), Sent(0.01, 40, 1, None, None)], [], jump=True)
    work = run.engine.load(run.now).work
    assert work.prefill_tokens == 44
    # 15 tokens a step are left beside the stream: 40 take three steps of prefill, after the one of the first prompt.
    assert run.ends >= 5 and run.first["1"] < run.last["0"]


def test_when_kv_runs_out_the_last_one_admitted_starts_anew():
    run = Run([Sent(0.0, 40, 40, None, None), Sent(0.001, 10, 40, None, None)], [], jump=True)
    assert run.engine.preemptions >= 1 and run.last["0"] < run.last["1"]
    assert run.tokens == {"0": 40, "1": 40}


def test_a_cached_beginning_costs_no_prefill_but_the_last_token_is_always_computed():
    run = Run([Sent(0.0, 24, 5, 0, None), Sent(1.0, 24, 5, 0, None)], [], jump=True)
    # 24 tokens are six blocks; the sixth holds the last token, so five are taken from the cache.
    work = run.engine.load(run.now).work
    assert (work.prefill_tokens, work.prefix_query_tokens, work.prefix_hit_tokens) == (24 + 4, 48, 20)


def test_an_answer_is_cached_for_the_next_turn():
    run = Run([Sent(0.0, 8, 9, 1, None), Sent(1.0, 20, 1, 1, None)], [], jump=True)
    assert run.engine.load(run.now).work.prefill_tokens == 8 + 20 - 16


@pytest.mark.parametrize("jump", [True, False])
def test_an_answer_is_cached_while_it_grows(jump):
    alone = Run([Sent(0.0, 8, 40, 1, None)], [], jump=jump)
    step_s = (alone.last["0"] - alone.first["0"]) / 39
    # 8 tokens of prompt and those of so many steps are computed: two blocks, three, four, five.
    for steps, hits in ((0, 8), (4, 12), (8, 16), (14, 20)):
        next_turn = Sent(alone.first["0"] + (steps + 0.5) * step_s, 24, 1, 1, None)
        run = Run([Sent(0.0, 8, 40, 1, None), next_turn], [], jump=jump)
        assert run.first["1"] < run.last["0"] and run.engine.load(run.now).work.prefill_tokens == 8 + 24 - hits


def test_a_slower_replica_takes_longer_in_proportion():
    times = []
    for speed in (1.0, 0.5):
        engine = SimulatedEngine(H200.step, SMALL, speed)
        engine.add(SimulatedRequest("r", 20, 20), 0.0)
        engine.begin(0.0)
        while engine.due < math.inf:
            now = engine.end().at_s
            engine.begin(now)
        times.append(now)
    assert times[1] == pytest.approx(2 * times[0])


def test_what_could_never_run_is_refused():
    engine = SimulatedEngine(H200.step, SMALL)
    for prompt, output in ((90, 10), (0, 5), (5, 0)):
        with pytest.raises(ValueError, match="token"):
            engine.add(SimulatedRequest("r", prompt, output), 0.0)
    assert not engine.has_work


def test_the_kv_cache_evicts_what_nobody_has_held_for_longest():
    kv = PagedKv(4)
    kv.allocate(3)
    assert kv.name([1, 2, 3]) == [1, 2, 3] and kv.name([2]) == []
    kv.release([1, 2, 3], 0)
    assert kv.free == 4 and kv.match([1, 2, 3, 9], 10) == 3 and kv.match([1, 2, 3], 2) == 2
    kv.hold([1])
    kv.allocate(2)  # one block was never used; then the end of the chain goes first
    assert [block in kv for block in (1, 2, 3)] == [True, True, False]
    assert kv.take_events() == ((1, 2), (3,)) and kv.take_events() == ((), ())
    with pytest.raises(RuntimeError, match="KV blocks"):
        kv.allocate(2)

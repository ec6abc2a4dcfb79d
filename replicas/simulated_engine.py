"""A vLLM engine in virtual time: its scheduler, its paged KV cache, and a step's duration from `step_time`. Pure.

As vLLM 0.32's V1 scheduler (v1/core/sched/scheduler.py): first come first served; each step decodes every running
sequence and gives what is left of the token budget to prompts, in chunks; a prompt is taken up when its whole KV fits;
when decoding runs out of KV, the sequence that was admitted last gives all of its blocks back and starts anew, ahead of
the queue; a block is cached when the step that fills it is scheduled, also of an answer that still grows
(`KVCacheManager.allocate_slots`). With `ahead`, vLLM's asynchronous scheduling (`step_with_batch_queue`): a step is
scheduled while the one before it runs, so that who comes during a step, or takes the place of who ends with it, is in
the next but one. Left out: speculation, LoRA, priorities.

Steps that only decode are taken many at once ("a stretch"): nothing can happen in them until the first sequence ends,
KV runs out, or somebody comes; a stretch that somebody comes into is cut at the end of the step under way.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from experts.step_model import StepTime, pairs
from replicas.messages import Capacity, Work
from replicas.simulated_kv import PagedKv
from replicas.simulated_request import SimulatedRequest


class Progress(NamedTuple):
    """What a stretch has brought, at its end."""

    at_s: float
    prefilled: list[SimulatedRequest]  # a prompt is computed: the next token is there, the first one if generated == 1
    finished: list[SimulatedRequest]


class EngineLoad(NamedTuple):
    """What the engine holds at a moment."""

    running: int
    waiting: int
    kv_used: float  # share of blocks, 0..1
    work: Work


class SimulatedEngine:
    """One engine core. Drive it: `add`, `begin` when it is idle, and at the time `due` `end` and `begin` again."""

    def __init__(
        self, step_time: StepTime, capacity: Capacity, speed: float = 1.0, jump: bool = True, ahead: bool = False
    ) -> None:
        """`speed`: 0.5 takes twice as long for each step. `jump`: False takes every step by itself.

        `ahead`: each step is scheduled when the one before it begins.
        """
        if capacity.max_num_seqs > capacity.max_num_batched_tokens:
            raise ValueError("max_num_seqs exceeds max_num_batched_tokens: a step could not decode every sequence")
        self.capacity = capacity
        self.kv = PagedKv(capacity.kv_tokens // capacity.block_tokens)
        self.due = math.inf  # when the stretch under way ends; infinite: none is
        self.preemptions = 0
        self._time = step_time
        self._speed = speed
        self._jump = jump
        self._ahead = ahead
        self._scheduled_at = 0.0  # when the next step's requests are chosen, if it is ahead
        self._leaving = 0  # sequences that it still counts, for they end with the step under way
        self._block = capacity.block_tokens
        self._waiting: OrderedDict[str, SimulatedRequest] = OrderedDict()
        self._running: dict[str, SimulatedRequest] = {}  # in order of admission
        self._partial: SimulatedRequest | None = None  # whose prompt is computed in part; the last of those running
        self._aborted: set[str] = set()  # to take out when the step under way ends
        # Sequences that decode, as a whole: each grows by one token a step.
        self._decoding = 0
        self._offsets = 0  # sum of length_offset
        self._turns = [0] * self._block  # sequences by the step, modulo the block, at which they need another block
        # Those whose blocks others may share, by the step, modulo the block, that fills one: it is named then.
        self._filling: list[dict[str, SimulatedRequest]] = [{} for _ in range(self._block)]
        self._growing = 0  # requests in there
        self._ends: list[tuple[int, int, SimulatedRequest]] = []  # heap by finish_at; stale entries are skipped
        self._pushed = 0
        # The stretch under way.
        self._start = 0.0
        self._steps = 0
        self._first_s = 0.0  # its first step's seconds
        self._growth_s = 0.0  # what each further step takes longer than the one before
        self._prefill = 0  # prompt tokens in it; then it is one step
        self._attention = 0.0  # pairs of tokens in these prompts' attention
        self._completing: list[SimulatedRequest] = []
        # What was done until it began.
        self._done_steps = 0
        self._done_s = 0.0
        self._done_prefill = 0
        self._done_decode = 0
        self._prefix_queries = self._prefix_hits = 0  # prompt tokens

    # -- what comes from outside --------------------------------------------------------------------------------------

    def add(self, request: SimulatedRequest, now: float) -> None:
        """Queues a request. ValueError: it could never run here."""
        tokens = request.prompt_tokens + request.output_tokens
        if tokens > min(self.capacity.kv_tokens, self.capacity.max_model_len):
            raise ValueError(f"{tokens} tokens are more than a request can have here")
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError("a request has at least one prompt and one output token")
        self._waiting[request.request_id] = request
        request.came = now
        # Behind somebody who cannot be admitted it changes nothing.
        if len(self._waiting) == 1 and len(self._running) < self.capacity.max_num_seqs:
            self._cut(now)

    def abort(self, request_id: str, now: float) -> None:
        """Forgets a request; an unknown one is ignored."""
        if self._waiting.pop(request_id, None) is not None:
            self._cut(now)
        elif (request := self._running.get(request_id)) is not None:
            if self.due == math.inf:
                self._drop(request)
            else:
                self._aborted.add(request_id)
                self._cut(now)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def decoding(self) -> list[SimulatedRequest]:
        """Sequences that get a token with each step."""
        return [request for request in self._running.values() if request.finish_at]

    def load(self, now: float) -> EngineLoad:
        """What it holds and what it has done, whole steps only."""
        done = self._steps_until(now, math.floor) if self.due < math.inf else 0
        blocks = self.kv.used + (self._new_blocks(1, min(done + 1, self._steps)) if done else 0)
        work = Work(
            steps=self._done_steps + done,
            step_s=self._done_s + self._duration(done),
            prefill_tokens=self._done_prefill + (self._prefill if done else 0),
            decode_tokens=self._done_decode + done * self._decoding,
            prefix_query_tokens=self._prefix_queries,
            prefix_hit_tokens=self._prefix_hits,
        )
        return EngineLoad(len(self._running), len(self._waiting), blocks / self.kv.total, work)

    # -- a stretch's time ---------------------------------------------------------------------------------------------

    def _duration(self, steps: int) -> float:
        return steps * self._first_s + self._growth_s * (steps * (steps - 1) / 2)

    def _steps_until(self, now: float, rounding: Callable[[float], int]) -> int:
        """Steps of the stretch that have ended (floor) by then, or of which the last ends no sooner (ceil)."""
        if self._steps == 1:
            return 1 if rounding is math.ceil or now >= self.due else 0
        since, half = now - self._start, self._growth_s / 2
        linear = self._first_s - half
        root = 2 * since / (linear + math.sqrt(linear * linear + 4 * half * max(since, 0.0)))
        return min(max(rounding(root), 0), self._steps)

    def _cut(self, now: float) -> None:
        """The stretch ends with the step under way."""
        if self.due < math.inf and self._steps > 1:
            self._steps = max(self._steps_until(now, math.ceil), 1)
            self.due = self._start + self._duration(self._steps)

    # -- a stretch's end ----------------------------------------------------------------------------------------------

    def end(self) -> Progress:
        """Takes what the stretch has brought."""
        at, steps = self.due, self._steps
        if steps > 1:
            self._grow(steps)
        self._done_s += self._duration(steps)
        self._done_steps += steps
        self._done_prefill += self._prefill
        self._done_decode += steps * self._decoding
        self.due = math.inf
        finished = []
        ends = self._ends
        while ends and ends[0][0] <= self._done_steps:
            finish_at, _, request = heapq.heappop(ends)
            if request.finish_at == finish_at:
                self._drop(request)
                finished.append(request)
        prefilled, self._completing = self._completing, []
        for request in prefilled:
            request.generated += 1
            if request.generated >= request.output_tokens:
                self._drop(request)
                finished.append(request)
            else:
                self._start_decoding(request)
        self._scheduled_at = self._start + self._duration(steps - 1)
        self._leaving = len(finished) if self._ahead else 0
        if self._aborted:
            for request_id in self._aborted:
                if (aborted := self._running.get(request_id)) is not None:
                    self._drop(aborted)
            finished = [r for r in finished if r.request_id not in self._aborted]
            prefilled = [r for r in prefilled if r.request_id not in self._aborted]
            self._aborted.clear()
        return Progress(at, prefilled, finished)

    def _start_decoding(self, request: SimulatedRequest) -> None:
        steps = self._done_steps
        length = request.prompt_tokens + request.generated  # what it holds after its next step
        request.length_offset = length - steps
        request.finish_at = steps + request.output_tokens - request.generated
        self._decoding += 1
        self._offsets += request.length_offset
        self._turns[(1 - request.length_offset) % self._block] += 1
        if request.seen_blocks < len(request.blocks):
            self._filling[-request.length_offset % self._block][request.request_id] = request
            self._growing += 1
        self._pushed += 1
        heapq.heappush(self._ends, (request.finish_at, self._pushed, request))

    def _stop_decoding(self, request: SimulatedRequest) -> None:
        request.generated = request.output_tokens - (request.finish_at - self._done_steps)
        request.computed = request.length_offset + self._done_steps - 1
        request.finish_at = 0
        self._decoding -= 1
        self._offsets -= request.length_offset
        self._turns[(1 - request.length_offset) % self._block] -= 1
        if self._filling[-request.length_offset % self._block].pop(request.request_id, None) is not None:
            self._growing -= 1

    def _drop(self, request: SimulatedRequest) -> None:
        """Takes a running request out: what it computed stays in the prefix cache as long as there is space."""
        del self._running[request.request_id]
        if request.finish_at:
            self._stop_decoding(request)
        if self._partial is request:
            self._partial = None
        self._name_blocks(request)
        self.kv.release(request.named, self._blocks_for(request.computed) - len(request.named))
        request.named = []
        request.computed = request.seen_blocks = 0

    def _name_blocks(self, request: SimulatedRequest) -> None:
        """Full blocks get their hashes: others may share them from here on."""
        full = min(request.computed // self._block, len(request.blocks))
        if full > request.seen_blocks:
            request.named += self.kv.name(request.blocks[request.seen_blocks : full])
            request.seen_blocks = full

    def _grow(self, steps: int) -> None:
        """Takes the blocks of a stretch, and names those that it filled; its first step's were at its beginning."""
        if not self._growing:
            self.kv.allocate(self._new_blocks(1, steps))
            return
        for step in range(self._done_steps + 1, self._done_steps + steps):
            self.kv.allocate(self._turns[step % self._block])
            self._name_filled(step)

    def _name_filled(self, step: int) -> None:
        """Names the blocks that decoding fills in this step of the engine."""
        filling = self._filling[step % self._block]
        for request in list(filling.values()):
            full = request.seen_blocks + 1
            request.named += self.kv.name(request.blocks[request.seen_blocks : full])
            request.seen_blocks = full
            if full == len(request.blocks):
                del filling[request.request_id]
                self._growing -= 1

    # -- a stretch's beginning ----------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Schedules the next step, or the next many when they only decode. With nothing to do it does nothing."""
        if not self._running and not self._waiting:
            return
        preempted = self._make_room()
        self._name_filled(self._done_steps)
        self._prefill, self._attention = 0, 0.0
        budget = self.capacity.max_num_batched_tokens - self._decoding
        if (partial := self._partial) is not None:
            chunk = min(partial.target - partial.computed, budget)
            if self._blocks_for(partial.computed + chunk) - self._blocks_for(partial.computed) > self.kv.free:
                self._preempt(partial)
                preempted = True
            else:
                budget -= self._compute(partial, chunk)
        late = (not preempted or not self._decoding) and self._admit(budget)
        kv_tokens = self._offsets + self._decoding * self._done_steps
        time = self._time
        self._first_s = time.step_s(self._prefill, self._attention, self._decoding, kv_tokens) / self._speed
        self._growth_s = time.kv_token_s * self._decoding / self._speed
        floored = time.floor_s(self._decoding) > 0.0  # then it need not grow
        # Who waits for KV needs the less of it, the more of the prompt others have cached meanwhile.
        may_shrink = self._growing and self._waiting and next(iter(self._waiting.values())).blocks
        alone = self._prefill or preempted or may_shrink or late or floored or not self._jump
        self._steps = 1 if alone else self._steps_alike()
        self._start = now
        self.due = now + self._duration(self._steps)

    def _make_room(self) -> bool:
        """Takes the blocks by which decoding sequences grow in this step. True: at the cost of somebody's."""
        preempted = False
        turn = self._done_steps % self._block
        while self._turns[turn] > self.kv.free:
            self._preempt(next(reversed(self._running.values())))
            preempted = True
        self.kv.allocate(self._turns[turn])
        return preempted

    def _preempt(self, request: SimulatedRequest) -> None:
        self._drop(request)
        self._waiting[request.request_id] = request
        self._waiting.move_to_end(request.request_id, last=False)
        self.preemptions += 1

    def _admit(self, budget: int) -> bool:
        """Takes up prompts in order, as long as tokens, sequences and KV allow.

        True: those who wait may be in the next step already. With nobody running there is none to schedule ahead of.
        """
        ahead = self._ahead and bool(self._running)
        leaving = self._leaving if ahead else 0
        while self._waiting and budget > 0 and len(self._running) + leaving < self.capacity.max_num_seqs:
            request = next(iter(self._waiting.values()))
            if ahead and request.came >= self._scheduled_at:
                return True
            request.target = request.prompt_tokens + request.generated
            # The last token is always computed: something has to be sampled from.
            hits = self.kv.match(request.blocks, (request.target - 1) // self._block) if request.blocks else 0
            named = list(request.blocks[:hits])
            if self._blocks_for(request.target) - hits + self.kv.idle_among(named) > self.kv.free:
                return False
            del self._waiting[request.request_id]
            self._running[request.request_id] = request
            self.kv.hold(named)
            request.named, request.seen_blocks, request.computed = named, hits, hits * self._block
            if not request.generated:
                request.cached = request.computed
                self._prefix_queries += request.prompt_tokens if request.blocks else 0
                self._prefix_hits += request.cached
            budget -= self._compute(request, min(request.target - request.computed, budget))
        return bool(self._waiting and leaving)

    def _compute(self, request: SimulatedRequest, chunk: int) -> int:
        """Puts a chunk of its prompt into this step; returns the chunk."""
        self._prefill += chunk
        self._attention += pairs(request.computed, chunk)
        self.kv.allocate(self._blocks_for(request.computed + chunk) - self._blocks_for(request.computed))
        request.computed += chunk
        self._name_blocks(request)
        if request.computed < request.target:
            self._partial = request
        else:
            self._partial = None
            self._completing.append(request)
        return chunk

    def _steps_alike(self) -> int:
        """Steps until a sequence ends or KV may run out."""
        while self._ends[0][2].finish_at != self._ends[0][0]:
            heapq.heappop(self._ends)
        steps = self._ends[0][0] - self._done_steps
        free, size = self.kv.free, self._block
        if (steps // size + 1) * self._decoding <= free:
            return steps
        whole = free // self._decoding * size  # each sequence takes one block in so many steps
        free -= self._new_blocks(1, 1 + whole)
        count = 1 + whole
        while count < steps and (free := free - self._turns[(self._done_steps + count) % size]) >= 0:
            count += 1
        return min(count, steps)

    def _new_blocks(self, first: int, end: int) -> int:
        """Blocks that decoding takes in the steps first..end-1 of the stretch."""
        cycles, rest = divmod(end - first, self._block)
        begin = self._done_steps + first
        return cycles * self._decoding + sum(self._turns[(begin + i) % self._block] for i in range(rest))

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block)

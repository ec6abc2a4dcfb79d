"""What a replica holds and what it has room for now: KV cache, batch, prefill. Pure; times are seconds."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.prefix_index import NONE, Anchors, leading
from cluster.step_fit import StepFit
from replicas.messages import LoadReport, ReplicaInfo

TPOT_MARGIN = 0.97  # of the time per output token that was promised, what a replica is planned to use
LOWER_CLASSES = 0.8  # of KV, batch and step time, what requests behind a better priority class may fill
LAG_WEIGHT = 0.05  # of a new first token's lag in their mean
LAG_HALF_LIFE_S = 2.0
# Where no time per token is promised, throughput is all: what the engine computes next has to be there before its step
# ends, for vLLM schedules a step while another runs. Bound later, a step of prompts would be followed by one without.
STEPS_AHEAD = 2  # of prefill: the one under way, and the next
SLOTS_AHEAD = 8  # an eighth of the batch more, to take the places of those that end
PACE_AHEAD_S = 0.25  # prefill may run this far ahead of its pace: bursts are short against a stream's life


class Reserved(NamedTuple):
    """KV that a request was granted with."""

    kv_tokens: int  # all that it needs
    anchors: Anchors  # of its prompt, which others may hold too


@dataclass
class ReplicaRoom:
    """A replica in one epoch."""

    info: ReplicaInfo
    fit: StepFit = field(default_factory=StepFit)
    load: LoadReport | None = None
    draining: bool = False
    in_flight: dict[str, Reserved] = field(default_factory=dict)  # by request id
    held: Counter[int] = field(default_factory=Counter)  # anchor -> requests in flight whose prompts hold it
    kv_tokens: int = 0  # reserved by all of them; what they share counts once
    prefilling: dict[str, int] = field(default_factory=dict)  # request id -> tokens, until its first token has come
    prefill_tokens: int = 0  # sum of these
    due: dict[str, float] = field(default_factory=dict)  # request id -> when its first token is to come
    lag: float = 0.0  # how much later first tokens came of late: hops, and whoever shares the CPUs
    lag_at: float = 0.0  # when that was last known
    paced_until: float = 0.0  # prefill granted so far is paid for, by then, in steps that keep the TPOT

    def take(self, request_id: str, kv_tokens: int, prefill: int, anchors: Anchors = NONE) -> None:
        """A request that needs so many KV tokens, those of its prompt's anchors included, is granted here."""
        self.kv_tokens += kv_tokens - leading(self.held, anchors)
        self.held.update(anchors.blocks)
        self.in_flight[request_id] = Reserved(kv_tokens, anchors)
        self.prefilling[request_id] = prefill
        self.prefill_tokens += prefill

    def expect(self, request_id: str, prefill: int, now: float) -> None:
        """Notes, before `take`, when the first token of such a prompt is to come."""
        self.due[request_id] = now + self._computed_s(prefill)

    def started(self, request_id: str, now: float) -> None:
        """Its first token has come."""
        if (due := self.due.get(request_id)) is not None:
            lag = self.lag_s(now)
            self.lag, self.lag_at = max(lag + LAG_WEIGHT * (now - due - lag), 0.0), now
        self._end_prefill(request_id)

    def _end_prefill(self, request_id: str) -> None:
        self.due.pop(request_id, None)
        self.prefill_tokens -= self.prefilling.pop(request_id, 0)

    def release(self, request_id: str) -> None:
        self._end_prefill(request_id)
        if (reserved := self.in_flight.pop(request_id, None)) is None:
            return
        held, others_hold = self.held, 0
        for block, end in zip(*reserved.anchors, strict=True):
            if holding := held[block] - 1:
                held[block], others_hold = holding, end
            else:
                del held[block]
        self.kv_tokens -= reserved.kv_tokens - others_hold

    # -- room ---------------------------------------------------------------------------------------------------------

    def is_ready(self, now: float, tpot_s: float | None, share: float) -> bool:
        """Room for one more request of some size. `share`: of the replica, what the request's class may fill."""
        if self.draining:
            return False
        running = len(self.in_flight)
        if not running:
            return True
        capacity = self.info.capacity
        steps, slots = 1, capacity.max_num_seqs
        if tpot_s is None:
            steps, slots = STEPS_AHEAD, slots + slots // SLOTS_AHEAD
        return (
            running < slots * share
            and self.prefill_tokens < capacity.max_num_batched_tokens * steps * share
            and now >= self.ready_at
            and (tpot_s is None or self.fit.step_s(0, running + 1) < tpot_s * TPOT_MARGIN * share)
        )

    @property
    def ready_at(self) -> float:
        """When its pace allows another prefill."""
        return self.paced_until - PACE_AHEAD_S

    def has_kv(self, kv_tokens: int, share: float, anchors: Anchors = NONE) -> bool:
        """Room for so many tokens, but for the beginning of the prompt that running requests hold already.

        An idle replica can run any one request, whatever the estimate says.
        """
        if not self.in_flight:
            return True
        left = self.info.capacity.kv_tokens * share - self.kv_tokens
        return kv_tokens <= left or kv_tokens - leading(self.held, anchors) <= left

    def pace(self, prefill: int, now: float, tpot_s: float | None) -> None:
        """Books a prefill: between them the running streams must get enough steps.

        A second holds S steps of `decode_s` each and X prompt tokens of `token_s`: S * decode_s + X * token_s = 1, and
        S >= 1 / TPOT; so X <= (1 - decode_s / TPOT) / token_s.
        """
        if tpot_s is None:
            return
        left = 1.0 - self.fit.step_s(0, len(self.in_flight)) / (tpot_s * TPOT_MARGIN)
        self.paced_until = max(self.paced_until, now) + prefill * self.fit.prefill_token_s / max(left, 0.05)

    # -- predictions --------------------------------------------------------------------------------------------------

    @property
    def load_score(self) -> float:
        """The next step's seconds, as far as known; ties go by KV.

        One that runs nothing comes before all that do, whatever its last steps took: were they slow by chance, it would
        get nothing to learn better from.
        """
        running = len(self.in_flight)
        if not running:
            return 1e-6 * self.fit.step_s(0, 1) if self.fit.known else 0.0
        prefill = min(self.prefill_tokens, self.info.capacity.max_num_batched_tokens)
        step_s = self.fit.step_s(prefill, running) if self.fit.known else 1e-4 * running + 1e-6 * prefill
        return step_s + 1e-9 * self.kv_tokens

    def lag_s(self, now: float) -> float:
        """The lag is forgotten with time: were everything shed for it, no first token would tell that it is over."""
        return self.lag * math.exp2((self.lag_at - now) / LAG_HALF_LIFE_S)

    def first_token_s(self, prefill: int, now: float) -> float:
        """Seconds until the first token of such a prompt, granted now."""
        return self._computed_s(prefill) + self.lag_s(now)

    def _computed_s(self, prefill: int) -> float:
        """The step under way, then its own, as the engine alone would take."""
        tokens = self.prefill_tokens + prefill
        steps = -(-tokens // self.info.capacity.max_num_batched_tokens) + 0.5
        return tokens * self.fit.prefill_token_s + steps * self.fit.step_s(0, len(self.in_flight))

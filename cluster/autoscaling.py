"""How many replicas there should be: values in, values out. Pure: no clock, no I/O, no Ray; its state is a value.

A replica that is asked for now serves in `load_s` (150 s for 57 GB on an H200). So it is the load of then that counts,
and replicas that are loading count as if they were there. The load is counted in replicas: of the tokens that arrive
in a second, what share one replica carries within the SLO. Requests in flight, what peers count, say less: their number
grows faster than the load, as each takes longer in a fuller batch, and depends on the length of the answers.

    wanted = max(by arrivals, by KV) + by queue

- *by arrivals*: a fast mean of the load, where its trend leads in `load_s`, and room for bursts as it has lately had
  them; over `fill`, and over what the SLO attainment has taught (`trust`).
- *by KV*: as many as bring the use of KV cache to `kv_fill`.
- *by queue*: what prefills the waiting prompts in `queue_drain_s`.

Up at once; down one by one, after the need has been lower for `scale_in_after_s`, never while work is queued, a replica
is loading or draining, or the SLO is missed. A draining replica's streams go on elsewhere, so one at a time.
Missing data is never success: without arrivals nothing changes, without attainment nothing is unlearned.
"""

import math
from dataclasses import dataclass, replace

MOST_TRUST = 1.0
LEAST_TRUST = 0.6  # below that it is not the replicas' pace that is wrong
LEARN_S = 120.0  # a missed goal lowers the trust by a tenth in that time
FORGET_S = 4 * 3600.0  # and from the least it is back in that time: too slow to flap


@dataclass(frozen=True)
class Scaling:
    """What the operator sets. ValueError: what contradicts itself. `moray bench autoscale` runs with the defaults."""

    min_replicas: int = 1  # 0: none while nobody asks; requests are held in the queue while one loads
    max_replicas: int = 8
    load_s: float = 150.0  # from the wish for a replica to its first token
    fill: float = 0.85  # of a replica's pace, what it is planned for
    burst: float = 1.0  # root mean squares of upward bursts that there is room for
    kv_fill: float = 0.85  # of the KV cache; above, sequences are preempted
    queue_drain_s: float = 60.0
    slo_goal: float = 0.99  # attainment below it asks for more
    fast_s: float = 120.0  # time constants of the means of the load
    slow_s: float = 1800.0
    scale_out_cool_down_s: float = 10.0
    scale_in_cool_down_s: float = 30.0  # between two replicas that go
    scale_in_after_s: float = 120.0  # so long the need has to be lower
    scale_in_margin: float = 0.1  # of a replica, by which the rest must suffice: no flapping around a whole number
    idle_to_zero_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) has to be from 0 to max_replicas ({self.max_replicas}), "
                "and max_replicas at least 1"
            )
        if not 0.0 < self.fill <= 1.0 or not 0.0 < self.kv_fill <= 1.0:
            raise ValueError(f"fill ({self.fill}) and kv_fill ({self.kv_fill}) are shares: above 0, at most 1")
        if not 0.0 < self.fast_s < self.slow_s:
            raise ValueError(f"fast_s ({self.fast_s}) has to be above 0 and below slow_s ({self.slow_s})")


@dataclass(frozen=True)
class Pace:
    """What one replica can do within the SLO if it does only that; of a mix, the shares add up. Tokens a second."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Observation:
    """What is seen of the cluster at one moment. None: not known."""

    now_s: float  # of any clock that only rises
    ready: int  # replicas that take requests
    loading: int
    draining: int
    running: int  # requests on replicas
    queued: int  # requests that wait, for the whole interval since the last observation
    queued_tokens: int  # of their prompts
    prompt_tokens_per_s: float | None  # of what arrived since the last observation, shed requests included
    output_tokens_per_s: float | None  # that those are expected to take
    kv_used: float | None  # share of the ready replicas' KV cache
    attainment: float | None  # share of the last minute's requests that met the SLO; None: too few


@dataclass(frozen=True)
class State:
    """What is kept from one decision to the next. Loads are in replicas."""

    at_s: float | None = None  # the last observation
    known: bool = False  # arrivals have been seen
    fast: float = 0.0
    slow: float = 0.0
    variance: float = 0.0  # of upward bursts around the fast mean
    trust: float = MOST_TRUST  # in the replicas' pace, as attainment has taught it
    lower_since_s: float | None = None  # the need has been lower since then
    scaled_out_s: float = -math.inf
    scaled_in_s: float = -math.inf
    busy_s: float | None = None  # work was last seen then; None: not observed yet


@dataclass(frozen=True)
class Decision:
    """`target`: replicas that are ready or loading, those that drain aside. `reason`: one sentence for the operator."""

    target: int
    reason: str
    state: State


def decide(seen: Observation, state: State, scaling: Scaling, pace: Pace) -> Decision:
    """The number of replicas from now on. Called every few seconds, with the state that the last call returned."""
    passed_s = 0.0 if state.at_s is None else max(seen.now_s - state.at_s, 0.0)
    state = _average(seen, state, scaling, pace, passed_s)
    need, cause = _need(seen, state, scaling, pace)
    # What attainment teaches counts from the next decision on: more load at one moment never asks for less.
    state = replace(_learn(seen, state, scaling, passed_s), at_s=seen.now_s)
    idle = seen.running == 0 and seen.queued == 0 and not seen.prompt_tokens_per_s
    if not idle or state.busy_s is None:
        state = replace(state, busy_s=seen.now_s)
    have = seen.ready + seen.loading
    wanted = max(math.ceil(need - 1e-9), 0 if idle else 1)
    if idle and have == 0:
        wanted = 0  # the means remember for long who asked before; from none it takes somebody who asks now
    if wanted > scaling.max_replicas:
        cause += f", and max_replicas is {scaling.max_replicas}"
    target = min(max(wanted, scaling.min_replicas), scaling.max_replicas)
    if have > scaling.max_replicas:  # the operator has lowered it: what it allows comes before all else
        return _less(scaling.max_replicas, f"max_replicas is {scaling.max_replicas}", seen, state)
    if target > have:
        return _more(
            target, cause if wanted > have else f"min_replicas is {scaling.min_replicas}", seen, state, scaling
        )
    if have <= scaling.min_replicas:
        return Decision(have, f"Stay at {have}, the least: {cause}.", replace(state, lower_since_s=None))
    if have == 1:
        return _last(cause, seen, state, scaling, idle)
    if need + scaling.scale_in_margin > have - 1:
        return Decision(have, f"Stay at {have}: {cause}.", replace(state, lower_since_s=None))
    return _one_less(cause, seen, state, scaling)


# -- the need ---------------------------------------------------------------------------------------------------------


def _average(seen: Observation, state: State, scaling: Scaling, pace: Pace, passed_s: float) -> State:
    """The means with the load of now in them."""
    if seen.prompt_tokens_per_s is None or seen.output_tokens_per_s is None:
        return state
    load = seen.prompt_tokens_per_s / pace.prefill_tokens_per_s + seen.output_tokens_per_s / pace.decode_tokens_per_s
    if not state.known:
        return replace(state, known=True, fast=load, slow=load)
    quick, lazy = -math.expm1(-passed_s / scaling.fast_s), -math.expm1(-passed_s / scaling.slow_s)
    above = max(load - state.fast, 0.0)  # only upwards: less load then never asks for more
    return replace(
        state,
        fast=state.fast + quick * (load - state.fast),
        slow=state.slow + lazy * (load - state.slow),
        variance=state.variance + lazy * (above * above - state.variance),
    )


def _need(seen: Observation, state: State, scaling: Scaling, pace: Pace) -> tuple[float, str]:
    """Replicas, not yet a whole number nor within bounds, and what asks for them."""
    # A mean lags behind a ramp by its time constant: what lies between two means is the ramp's slope.
    slope = max(state.fast - state.slow, 0.0) / (scaling.slow_s - scaling.fast_s)
    trend = slope * (scaling.fast_s + scaling.load_s)
    bursts = scaling.burst * math.sqrt(state.variance)
    by_arrivals = (state.fast + trend + bursts) / (scaling.fill * state.trust)
    by_kv = seen.ready * (seen.kv_used or 0.0) / scaling.kv_fill
    by_queue = seen.queued_tokens / (pace.prefill_tokens_per_s * scaling.queue_drain_s)
    if by_kv > by_arrivals:
        cause = f"{seen.kv_used or 0.0:.0%} of the KV cache is in use"
    elif not state.known:
        cause = "no arrivals are known yet"
    else:
        cause = f"arrivals load {state.fast:.2f} replicas"
        cause += f", {trend:.2f} more by their trend in {scaling.load_s:.0f} s" if trend >= 0.05 else ""
        cause += f", bursts {bursts:.2f}" if bursts >= 0.05 else ""
        cause += f", of which one carries {state.trust:.0%} as the SLO shows" if state.trust < 0.995 else ""
    if by_queue >= 0.05:
        cause += f", {seen.queued_tokens} tokens are queued"
    return max(by_arrivals, by_kv) + by_queue, cause


def _learn(seen: Observation, state: State, scaling: Scaling, passed_s: float) -> State:
    """Trusts the pace less where the SLO is missed although the replicas should suffice by it."""
    if seen.attainment is None or not state.known:
        return state
    if seen.attainment >= scaling.slo_goal:
        trust = state.trust + (1.0 - LEAST_TRUST) * passed_s / FORGET_S
    elif state.fast <= scaling.fill * state.trust * seen.ready:
        trust = state.trust - 0.1 * min(passed_s / LEARN_S, 1.0)
    else:
        return state  # too few replicas: the miss teaches nothing about their pace
    return replace(state, trust=min(max(trust, LEAST_TRUST), MOST_TRUST))


# -- the steps --------------------------------------------------------------------------------------------------------


def _more(target: int, cause: str, seen: Observation, state: State, scaling: Scaling) -> Decision:
    have = seen.ready + seen.loading
    state = replace(state, lower_since_s=None)
    wait_s = state.scaled_out_s + scaling.scale_out_cool_down_s - seen.now_s
    if wait_s > 0.0 and have >= max(scaling.min_replicas, 1):
        return Decision(have, f"Stay at {have} for {wait_s:.0f} s, then {target}: {cause}.", state)
    return Decision(target, f"Scale out from {have} to {target}: {cause}.", replace(state, scaled_out_s=seen.now_s))


def _less(target: int, cause: str, seen: Observation, state: State) -> Decision:
    have = seen.ready + seen.loading
    state = replace(state, scaled_in_s=seen.now_s)
    return Decision(target, f"Scale in from {have} to {target}: {cause}.", state)


def _one_less(cause: str, seen: Observation, state: State, scaling: Scaling) -> Decision:
    """One replica less, or why not yet."""
    have = seen.ready + seen.loading
    if state.lower_since_s is None:
        state = replace(state, lower_since_s=seen.now_s)
    since_s = state.lower_since_s if state.lower_since_s is not None else seen.now_s
    lower_s = since_s + scaling.scale_in_after_s - seen.now_s
    cool_s = max(state.scaled_in_s, state.scaled_out_s) + scaling.scale_in_cool_down_s - seen.now_s
    if seen.queued or seen.queued_tokens:
        held = f"{seen.queued} requests are queued"
    elif seen.attainment is not None and seen.attainment < scaling.slo_goal:
        held = f"the SLO attainment is {seen.attainment:.1%}"
    elif seen.prompt_tokens_per_s is None or seen.output_tokens_per_s is None:
        held = "the arrivals are not known"
    elif seen.loading:
        held = f"{seen.loading} replicas are loading"
    elif seen.draining:
        held = f"{seen.draining} replicas are draining"
    elif max(lower_s, cool_s) > 0.0:
        held = f"{have - 1} may do in {max(lower_s, cool_s):.0f} s"
    else:
        return _less(have - 1, cause, seen, state)
    return Decision(have, f"Stay at {have}, {held}: {cause}.", state)


def _last(cause: str, seen: Observation, state: State, scaling: Scaling, idle: bool) -> Decision:
    """To none, after a time in which nobody asked."""
    if not idle or seen.prompt_tokens_per_s is None or seen.loading or seen.draining:
        return Decision(1, f"Stay at 1: {cause}.", state)
    wait_s = (seen.now_s if state.busy_s is None else state.busy_s) + scaling.idle_to_zero_s - seen.now_s
    if wait_s > 0.0:
        return Decision(1, f"Stay at 1 for {wait_s:.0f} s more, then none: nobody asks.", state)
    return _less(0, f"nobody asked for {scaling.idle_to_zero_s:.0f} s", seen, state)

"""How many requests any router at all could serve well: an upper bound on attainment, computed, not simulated. Pure.

All replicas are pooled into one machine without limits of memory, which knows every answer's length and all that is to
come, may split work as finely as it likes, shares every step perfectly and finds all that anyone computed before in
its prefix cache. What it cannot do is this:

*Work.* A step of n tokens, d of them decoded, costs at least f(n) = base + experts * touched(n) beside what is paid
per token (`step_time`). f is concave with f(0) > 0, so f(n)/n falls; a step holds at most M = max_num_batched_tokens
tokens and at most S = max_num_seqs sequences, so f(n) >= n * f(M)/M and f(n) >= d * f(S)/S, and any mean of the two
with weights k and 1-k is a bound as well. Summed over all steps this gives each request a least work of its own:

    w(k) = its costs per token + k * f(M)/M * (prefill + decoded) + (1-k) * f(S)/S * decoded

*Time.* In every second the pool has as many engine seconds as its replicas' speeds add up to, C.

- In the long run, with the load repeated for ever (as the simulations' warm-up does): the requests that are served
  well in each period T must have sum w(k) <= C * T; most of them are had with the cheapest first. For every k.
- In a window [s, t): whoever arrives in it and is served well has been prefilled by E = t + TTFT, and decoded wholly if
  its last token is due by then; nobody began before s. So the sum of that work is <= C * (E - s), most of them again
  with the cheapest first. Windows that do not overlap add up: the best cut of each half of a window against the whole.

A request counts as well served if its limits allow; so attainment <= min of these / requests.
"""

from collections.abc import Sequence
from typing import NamedTuple

from experts.step_model import pairs
from ops.simulate.results import Slo
from ops.simulate.workloads import Workload
from replicas.step_time import Machine

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # k


class _Least(NamedTuple):
    """The least that a request costs, in engine seconds."""

    at_s: float
    due_s: float  # of its last token
    prefill_s: float  # without its share of f
    decode_s: float
    prefill_tokens: int
    decode_tokens: int


def attainment_bound(workload: Workload, machine: Machine, speeds: Sequence[float], slo: Slo) -> float:
    """Share of the counted requests that no router can exceed."""
    requests = [r for r in _least(workload, machine, slo) if r.at_s >= workload.warm_up_s]
    if not requests:
        return 1.0
    pool = sum(speeds)
    step, capacity = machine.step, machine.capacity
    per_token = step.step_s(capacity.max_num_batched_tokens, 0.0, 0, 0) / capacity.max_num_batched_tokens
    per_token -= step.prefill_token_s
    per_sequence = step.step_s(0, 0.0, capacity.max_num_seqs, 0) / capacity.max_num_seqs - step.sequence_s
    period_s = workload.duration_s - workload.warm_up_s
    most = float(len(requests))
    for k in WEIGHTS:
        works = [
            r.prefill_s
            + r.decode_s
            + k * per_token * (r.prefill_tokens + r.decode_tokens)
            + (1.0 - k) * per_sequence * r.decode_tokens
            for r in requests
        ]
        most = min(most, _cheapest(works, pool * period_s))
    end = requests[-1].at_s + 1e-9
    return min(most, _in_windows(requests, requests[0].at_s, end, pool, per_token, slo)) / len(requests)


def _least(workload: Workload, machine: Machine, slo: Slo) -> list[_Least]:
    step, block = machine.step, machine.capacity.block_tokens
    seen: set[int] = set()
    requests = []
    for a in workload.arrivals:
        cached = 0
        if a.chain:
            # Each hash covers all before it: who has seen one has seen those.
            low, high = 0, (a.prompt_tokens - 1) // block
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if a.chain[middle - 1] in seen else (low, middle - 1)
            cached = low * block
            seen.update(a.chain[low : (a.prompt_tokens + a.output_tokens) // block])
        prefill, decode = a.prompt_tokens - cached, a.output_tokens - 1
        lengths = decode * (a.prompt_tokens + (decode + 1) / 2)
        requests.append(
            _Least(
                a.at_s,
                a.at_s + slo.ttft_s + slo.tpot_s * decode,
                step.prefill_token_s * prefill + step.prefill_pair_s * pairs(cached, prefill),
                step.sequence_s * decode + step.kv_token_s * lengths,
                prefill,
                decode,
            )
        )
    return requests


def _cheapest(works: list[float], seconds: float) -> float:
    """How many fit, the cheapest first; the last one in part, as over many periods it may fit in some of them."""
    works.sort()
    for count, work in enumerate(works):
        if work > seconds:
            return count + seconds / work
        seconds -= work
    return len(works)


def _in_windows(requests: Sequence[_Least], begin: float, end: float, pool: float, per_token: float, slo: Slo) -> float:
    """At most so many of the requests, which arrive in [begin, end), are served well."""
    by = end + slo.ttft_s
    works = []
    for r in requests:
        work = r.prefill_s + per_token * r.prefill_tokens
        if r.due_s <= by:
            work += r.decode_s + per_token * r.decode_tokens
        works.append(work)
    # No part of the window can bind when even the limit itself is time enough.
    if len(requests) < 2 or sum(works) <= pool * slo.ttft_s:
        return min(len(requests), _cheapest(works, pool * (by - begin)))
    whole = _cheapest(works, pool * (by - begin))
    middle = (begin + end) / 2
    cut = next((i for i, r in enumerate(requests) if r.at_s >= middle), len(requests))
    if end - begin < 0.05:
        return whole
    halves = _in_windows(requests[:cut], begin, middle, pool, per_token, slo)
    halves += _in_windows(requests[cut:], middle, end, pool, per_token, slo)
    return min(whole, halves)

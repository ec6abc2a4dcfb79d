"""A day of a cluster, in seconds instead of steps: the simulated replicas of `ops.simulate` as a fluid. Pure.

In each second the replicas share all work evenly, as the router's late binding has it. Their step time is that of
`experts.step_model`; they decode one token a step of every running request, and prefill what the waiting requests
bring, as far as a step stays within `PACE` of the SLO's time per token. What is not prefilled within the second after
it came is shed: the TTFT limit is taken to be a second. Answers end at their mean rate. Not in it: single requests,
prefix caches, unlucky placement. `moray bench autoscale` compares it with `ops.simulate` at constant loads.

Many clusters (runs) go through the same day at once, as arrays: only who scales them differs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experts.step_model import StepTime
from ops.simulate.results import Slo
from ops.simulate.workloads import CODE_IN, CODE_OUT, CONV_IN, CONV_OUT, Lengths
from replicas.step_time import Machine

Array = NDArray[np.float64]

DAY_S = 86_400
PACE = 0.94  # of the SLO's time per token: what the router lets a step take
DRAIN_S = 20.0  # how long a replica that goes is still paid for
CLASSES: tuple[tuple[Lengths, Lengths], ...] = ((CONV_IN, CONV_OUT), (CODE_IN, CODE_OUT))


class Day(NamedTuple):
    """Arrivals of each second; shape [seconds, classes]."""

    requests: Array
    prompt_tokens: Array
    output_tokens: Array


class Shape(NamedTuple):
    """A class of requests over the day. The swings are what the recorded hour has beyond a Poisson process."""

    peak: float  # requests a second at its busiest time, swings aside
    trough: float  # share of it at the quietest
    busiest_h: float
    width: float  # 1: a cosine; above, a shorter busy time
    swings: tuple[tuple[float, float], ...]  # (coefficient of variation, correlation time in seconds)


# Excess coefficient of variation of the recorded hours: conversations .23 / .21 / .18 in bins of 10 s / 1 min / 5 min.
# Code 1.7 / 1.0 / .42; here of four such sources at once, so half of it.
CONV_SWINGS = ((0.12, 60.0), (0.18, 1200.0))
CODE_SWINGS = ((0.65, 20.0), (0.45, 120.0), (0.2, 1200.0))


def day(shapes: Sequence[Shape], seed: int, seconds: int = DAY_S) -> Day:
    """One day from midnight, repeatable by seed."""
    rng = np.random.default_rng(seed)
    hours = np.arange(seconds) / seconds * 24.0
    requests, prompts, outputs = [], [], []
    for shape, (prompt, output) in zip(shapes, CLASSES, strict=False):
        wave = (0.5 + 0.5 * np.cos((hours - shape.busiest_h) / 24.0 * 2.0 * np.pi)) ** shape.width
        rate = shape.peak * (shape.trough + (1.0 - shape.trough) * wave)
        for cv, correlation_s in shape.swings:
            rate = rate * _swings(rng, seconds, cv, correlation_s)
        arrived = rng.poisson(rate).astype(np.float64)
        requests.append(arrived)
        prompts.append(_total(rng, arrived, prompt))
        outputs.append(_total(rng, arrived, output))
    return Day(np.stack(requests, 1), np.stack(prompts, 1), np.stack(outputs, 1))


def constant(rates: Sequence[float], seed: int, seconds: int) -> Day:
    """Poisson arrivals at a rate for each class, without rhythm and swings."""
    return day([Shape(rate, 1.0, 0.0, 1.0, ()) for rate in rates], seed, seconds)


def _swings(rng: np.random.Generator, seconds: int, cv: float, correlation_s: float) -> Array:
    """A log-normal factor of mean 1 that forgets itself in `correlation_s`."""
    sigma = np.sqrt(np.log1p(cv * cv))
    keep = np.exp(-1.0 / correlation_s)
    noise = rng.normal(size=seconds) * sigma
    values = np.empty(seconds)
    value, rest = noise[0], np.sqrt(1.0 - keep * keep)
    for i, kick in enumerate(noise):
        value = keep * value + rest * kick
        values[i] = value
    factor: Array = np.exp(values - sigma * sigma / 2.0)
    return factor


def _total(rng: np.random.Generator, requests: Array, lengths: Lengths) -> Array:
    """Tokens of so many requests: a gamma distribution with the sum's mean and variance."""
    mean, cv2 = moments(lengths)
    shape = np.maximum(requests, 1e-9) / cv2
    return np.where(requests > 0, rng.gamma(shape, mean * cv2), 0.0)


def moments(lengths: Lengths) -> tuple[float, float]:
    """Mean and squared coefficient of variation of the cut-off log-normal, by a large fixed sample."""
    sigma = np.sqrt(2.0 * np.log(lengths.mean / lengths.median))
    drawn = np.random.default_rng(0).lognormal(np.log(lengths.median), sigma, 200_000)
    drawn = np.clip(np.round(drawn), 1, lengths.most)
    return float(drawn.mean()), float(drawn.var() / drawn.mean() ** 2)


class Costs(NamedTuple):
    """Of a step, in seconds, and what the classes' requests are like."""

    fixed_s: float
    share: float
    experts_s: float
    decode_s: Array  # [classes]
    prefill_s: float
    context: Array  # [classes], tokens of KV of a running request
    output: Array  # [classes], mean tokens of an answer


def costs(step: StepTime, classes: int) -> Costs:
    """From the step time and the lengths of the first `classes`."""
    context, output, prefill = [], [], []
    for prompts, outputs in CLASSES[:classes]:
        (p, p2), (o, o2) = moments(prompts), moments(outputs)
        context.append(p + o * (1.0 + o2) / 2.0)  # a running request is a long one more often than an arriving one
        output.append(o)
        prefill.append(step.prefill_token_s + step.prefill_pair_s * p * (1.0 + p2) / 2.0)
    decode = np.array([step.sequence_s + step.kv_token_s * c for c in context])
    return Costs(
        step.base_s,
        step.expert_share,
        step.experts_s,
        decode,
        sum(prefill) / len(prefill),
        np.array(context),
        np.array(output),
    )


class Seen(NamedTuple):
    """What the last seconds were, for each run."""

    running: Array
    queued: Array
    queued_least: Array  # that waited through all these seconds
    kv_used: Array
    good: Array
    all: float


class Fluid:
    """Many clusters on the same day, each with its own number of replicas."""

    def __init__(self, runs: int, machine: Machine, slo: Slo, classes: int) -> None:
        self._c = costs(machine.step, classes)
        self._kv = float(machine.capacity.kv_tokens)
        self._most = float(machine.capacity.max_num_seqs)
        self._chunk = float(machine.capacity.max_num_batched_tokens)
        self._slo = slo
        self._classes = classes
        self._running = np.zeros((runs, classes))
        self._waiting = np.zeros((runs, classes))  # requests that came a second ago
        self._tpot = np.zeros(runs)
        self.good = np.zeros(runs)
        self.arrived = 0.0

    def advance(self, load: Day, begin: int, seconds: int, ready: Array) -> Seen:
        """`seconds` more with so many replicas, [runs]."""
        k = self._classes
        n = np.maximum(ready, 1e-9)
        c, limit = self._c, PACE * self._slo.tpot_s
        decode_s, output, context = c.decode_s, c.output, c.context
        good = np.zeros(len(ready))
        queued = np.zeros(len(ready))
        least = np.full(len(ready), np.inf)
        for at in range(begin, begin + seconds):
            new = load.requests[at, :k]
            mean_prompt = load.prompt_tokens[at, :k] / np.maximum(new, 1.0)
            mean_prompt = np.where(new > 0, mean_prompt, context)
            each = self._running / n[:, None]
            batch = each.sum(1)
            still = c.fixed_s + c.experts_s * (1.0 - (1.0 - c.share) ** batch) + each @ decode_s
            room = np.clip((limit - c.fixed_s - c.experts_s - each @ decode_s) / c.prefill_s, 0.0, self._chunk)
            full_s = np.maximum(c.fixed_s + c.experts_s + each @ decode_s + c.prefill_s * room, still)
            tokens = n * room / full_s * (ready > 0)
            seats = np.maximum(n * np.minimum(self._most, self._kv / float(context.max())) - self._running.sum(1), 0.0)
            old = self._waiting @ mean_prompt
            share_old = np.minimum(
                np.minimum(tokens / np.maximum(old, 1e-9), seats / np.maximum(self._waiting.sum(1), 1e-9)), 1.0
            )
            served = self._waiting * share_old[:, None]
            tokens = tokens - served @ mean_prompt
            seats = np.maximum(seats - served.sum(1), 0.0)
            fresh = float(new @ mean_prompt)
            share = np.clip(np.minimum(tokens / max(fresh, 1e-9), seats / max(float(new.sum()), 1e-9)), 0.0, 1.0)
            served = served + new[None, :] * share[:, None]
            self._waiting = new[None, :] * (1.0 - share)[:, None]  # who is still there of the old is shed
            prefill = served @ mean_prompt / n
            step_s = still / np.maximum(1.0 - c.prefill_s * prefill, 0.05)
            step_s = np.where(prefill > 0, np.minimum(step_s, np.maximum(full_s, still)), still)
            self._tpot += (step_s - self._tpot) * 0.1  # a request runs for about ten seconds
            ended = self._running * np.minimum(1.0 / (step_s[:, None] * output), 1.0)
            self._running = self._running + served - ended
            good += np.where(self._tpot <= self._slo.tpot_s, served.sum(1), 0.0)
            waits = self._waiting.sum(1)
            queued += waits
            least = np.minimum(least, waits)
        total = float(load.requests[begin : begin + seconds, :k].sum())
        self.good += good
        self.arrived += total
        kv = np.minimum(self._running @ context / (n * self._kv), 1.0)
        return Seen(self._running.sum(1), queued / seconds, least, kv, good, total)

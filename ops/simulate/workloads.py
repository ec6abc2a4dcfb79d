"""Load for a simulated cluster: requests with their times and sizes, recorded or made up. Pure, repeatable by seed."""

import bisect
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from replicas.step_time import KV_BLOCK_TOKENS

MAX_TOKENS = 1024  # what clients allow themselves, knowing as little of the answer's length as the router does


class Arrival(NamedTuple):
    """One request."""

    at_s: float  # at its gateway
    prompt_tokens: int
    output_tokens: int  # known to the engine alone
    tenant: str = ""
    # Hashes of the KV blocks of prompt and answer, and perhaps of more that follows; shared by a conversation's turns.
    chain: tuple[int, ...] = ()

    @property
    def prompt_blocks(self) -> tuple[int, ...]:
        return self.chain[: self.prompt_tokens // KV_BLOCK_TOKENS]


class Workload(NamedTuple):
    """Requests in the order of their arrival, from 0 to `duration_s`."""

    name: str
    arrivals: tuple[Arrival, ...]
    duration_s: float
    warm_up_s: float = 0.0  # what arrives before that fills the cluster and is not counted

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.arrivals) / self.duration_s


# -- rates of recorded load -------------------------------------------------------------------------------------------


def at_rate(workload: Workload, rate: float) -> Workload:
    """The same requests in less or more time: bursts stay bursts, relative to the rate."""
    scale = workload.rate / rate
    arrivals = tuple(a._replace(at_s=a.at_s * scale) for a in workload.arrivals)
    return Workload(workload.name, arrivals, workload.duration_s * scale)


def rotated(workload: Workload, by: float) -> Workload:
    """Begins at the share `by` of the duration; what came before comes at the end."""
    shift, duration = workload.duration_s * by, workload.duration_s
    cut = bisect.bisect_left(workload.arrivals, shift, key=lambda a: a.at_s)
    moved = [a._replace(at_s=a.at_s - shift) for a in workload.arrivals[cut:]]
    moved += [a._replace(at_s=a.at_s - shift + duration) for a in workload.arrivals[:cut]]
    return Workload(workload.name, tuple(moved), duration)


def superposed(workload: Workload, copies: int) -> Workload:
    """So many copies at once, each rotated by another share: as many independent users, not as one burst times N."""
    together = [a for i in range(copies) for a in rotated(workload, i / copies).arrivals]
    together.sort(key=lambda a: a.at_s)
    return Workload(workload.name, tuple(together), workload.duration_s)


def part(workload: Workload, begin_s: float, duration_s: float) -> Workload:
    """What arrives in that window."""
    low = bisect.bisect_left(workload.arrivals, begin_s, key=lambda a: a.at_s)
    high = bisect.bisect_left(workload.arrivals, begin_s + duration_s, key=lambda a: a.at_s)
    arrivals = tuple(a._replace(at_s=a.at_s - begin_s) for a in workload.arrivals[low:high])
    return Workload(workload.name, arrivals, duration_s)


ROTATE_ABOVE = 16  # replicas behind which one recording is not enough users


def scaled(workload: Workload, replicas: int, rate: float | None) -> Workload:
    """A recording for that many replicas, at a rate of all of them together; None: the recording's own."""
    rate = rate or workload.rate
    if replicas > ROTATE_ABOVE:
        workload = superposed(workload, math.ceil(replicas / ROTATE_ABOVE))
    return at_rate(workload, rate)


def warmed_up(workload: Workload, seconds: float) -> Workload:
    """Its end goes ahead of it, as if it repeated itself for ever: a cluster that starts empty flatters everyone."""
    before = part(workload, max(workload.duration_s - seconds, 0.0), seconds).arrivals
    after = tuple(a._replace(at_s=a.at_s + seconds) for a in workload.arrivals)
    return Workload(workload.name, before + after, workload.duration_s + seconds, seconds)


# -- made-up load -----------------------------------------------------------------------------------------------------


def gaps(rng: random.Random, rate: float, cv: float) -> Iterator[float]:
    """Gaps between arrivals with that coefficient of variation, gamma-distributed; 1: a Poisson process."""
    shape = 1.0 / (cv * cv)
    while True:
        yield rng.gammavariate(shape, 1.0 / (rate * shape))


class Lengths(NamedTuple):
    """A log-normal distribution of token counts, cut off."""

    mean: float
    median: float
    most: int

    def draw(self, rng: random.Random) -> int:
        sigma = math.sqrt(2.0 * math.log(self.mean / self.median))
        return min(max(round(rng.lognormvariate(math.log(self.median), sigma)), 1), self.most)


# Fitted to mean and median of the Azure traces of 2023 and cut off near their 99th percentiles.
CONV_IN, CONV_OUT = Lengths(1155, 1020, 4200), Lengths(211, 129, 800)
CODE_IN, CODE_OUT = Lengths(2048, 1469, 7500), Lengths(28, 13, 260)
BATCH_IN, BATCH_OUT = Lengths(2400, 2000, 8000), Lengths(400, 300, 1000)


def independent(
    rng: random.Random, rate: float, duration_s: float, cv: float, prompt: Lengths, output: Lengths, tenant: str = ""
) -> Iterator[Arrival]:
    """Requests of one kind that know nothing of each other."""
    at = 0.0
    for gap in gaps(rng, rate, cv):
        at += gap
        if at >= duration_s:
            return
        yield Arrival(at, prompt.draw(rng), output.draw(rng), tenant)


def conv(rate: float, duration_s: float, seed: int) -> Workload:
    """A stand-in for the Azure conversation trace."""
    rng = random.Random(seed)
    return Workload("conv", tuple(independent(rng, rate, duration_s, 1.1, CONV_IN, CONV_OUT)), duration_s)


def code(rate: float, duration_s: float, seed: int) -> Workload:
    """A stand-in for the Azure code trace: long prompts, short answers, in bursts."""
    rng = random.Random(seed)
    return Workload("code", tuple(independent(rng, rate, duration_s, 13.0, CODE_IN, CODE_OUT)), duration_s)


SYSTEM_PROMPTS = 32
SYSTEM_PROMPT_BLOCKS = 48  # 768 tokens
TURN_IN, TURN_OUT = Lengths(120, 70, 1000), Lengths(211, 129, 800)
MEAN_TURNS = 6.0
THINK_S = 10.0  # mean time from an answer's end to the next question
READ_TOKEN_S = 0.03  # an answer's assumed time per token


def chat(rate: float, duration_s: float, seed: int) -> Workload:
    """Conversations of several turns, each prompt holding all before it, behind one of a few system prompts.

    They begin before the window too, so that the mix of turns is that of a service that has been running.
    """
    rng = random.Random(seed)
    systems = [tuple(rng.getrandbits(62) for _ in range(SYSTEM_PROMPT_BLOCKS)) for _ in range(SYSTEM_PROMPTS)]
    popularity = [1.0 / (i + 1) for i in range(SYSTEM_PROMPTS)]
    before_s = 4 * MEAN_TURNS * (THINK_S + READ_TOKEN_S * TURN_OUT.mean)
    arrivals: list[Arrival] = []
    begin = -before_s
    for gap in gaps(rng, rate / MEAN_TURNS, 1.0):
        begin += gap
        if begin >= duration_s:
            break
        arrivals += _conversation(rng, rng.choices(systems, popularity)[0], begin, duration_s)
    arrivals.sort(key=lambda a: a.at_s)
    return Workload("chat", tuple(arrivals), duration_s)


def _conversation(rng: random.Random, system: tuple[int, ...], begin: float, end: float) -> Iterable[Arrival]:
    turns: list[tuple[float, int, int]] = []
    at, length = begin, len(system) * KV_BLOCK_TOKENS
    while at < end:
        length += TURN_IN.draw(rng)
        output = TURN_OUT.draw(rng)
        turns.append((at, length, output))
        length += output
        at += READ_TOKEN_S * output + rng.expovariate(1.0 / THINK_S)
        if rng.random() < 1.0 / MEAN_TURNS:
            break
    if turns[-1][0] < 0.0:
        return []
    chain = system + tuple(rng.getrandbits(62) for _ in range(length // KV_BLOCK_TOKENS - len(system)))
    return [Arrival(at, prompt, output, "", chain) for at, prompt, output in turns if at >= 0.0]


INTERACTIVE, BATCH = "interactive", "batch"
BATCH_SHARE = 0.3  # of the requests


def tenants(rate: float, duration_s: float, seed: int) -> Workload:
    """An interactive tenant, and one that sends long batch requests in bursts."""
    rng = random.Random(seed)
    people = independent(rng, rate * (1 - BATCH_SHARE), duration_s, 1.1, CONV_IN, CONV_OUT, INTERACTIVE)
    together = list(people)
    together += independent(rng, rate * BATCH_SHARE, duration_s, 8.0, BATCH_IN, BATCH_OUT, BATCH)
    together.sort(key=lambda a: a.at_s)
    return Workload("tenants", tuple(together), duration_s)


def flood(interactive_rate: float, batch_rate: float, duration_s: float, seed: int) -> Workload:
    """The interactive tenant at a rate of its own, beside a steady flood of batch requests; 0: none."""
    rng = random.Random(seed)
    together = list(independent(rng, interactive_rate, duration_s, 1.1, CONV_IN, CONV_OUT, INTERACTIVE))
    if batch_rate:
        together += independent(rng, batch_rate, duration_s, 1.0, BATCH_IN, BATCH_OUT, BATCH)
        together.sort(key=lambda a: a.at_s)
    return Workload("flood", tuple(together), duration_s)


# Made of requests a second, seconds, and a seed.
SYNTHETIC: dict[str, Callable[[float, float, int], Workload]] = {
    "conv": conv,
    "code": code,
    "chat": chat,
    "tenants": tenants,
}

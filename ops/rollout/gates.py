"""Whether the new version is good enough beside the old one: yes, no, or not enough data. Pure.

No is only said where the difference is larger than its bound and so unlikely by chance that all looks of all gates and
steps together roll a version just like the old one back no more often than `Gates.false_rollback`. Just like it is one
within the bound's root, too: no two replicas are as fast as each other. Yes is only said where a difference as large as
the bound is unlikely: that nothing was found is no yes. Both fit the sample's size: with few requests the answer is
unknown.
"""

from ops.anomaly.alarms import Answer
from ops.rollout.comparison import compare, more_often, most_above
from ops.rollout.samples import LENGTH, TPOT, TTFT, Samples
from ops.rollout.spec import Gates
from ops.rollout.state import GateResult, Phase, Rollout
from replicas.messages import SwapReport

GATES = (TTFT, TPOT, LENGTH, "errors", "unfinished")  # those that compare requests
NAMES = {TTFT: "time to the first token", TPOT: "time per token", LENGTH: "answers' length"}
YES_LEVEL = 0.05  # chance that a difference as large as the bound passes a look
FIRST_LOOKS = (0.125, 0.25, 0.5, 1.0)  # of min_samples; then each time that there are half as many more
SPENT = (0.05, 0.1, 0.15, 0.2)  # of the allowed chance, by the first looks; the rest is shared by all further ones
FEWEST = 10  # requests of each version before a look
FINISHED = 0.8  # share of the requests that have to be over, or their lengths would tell of the short ones only
ONE_MISHAP = 2  # moments in which requests have to fail: a lost replica fails many at once
NATURAL = 0.5  # exponent of a bound: so far two replicas of one version may be apart
OF_ANOTHER_TIME = 2.0  # exponent of a latency's bound where the old version served at another time, under another load
MOSTLY = 0.5  # share of failed requests above which it is no mishap


def look_is_due(rollout: Rollout, canary: Samples, stable: Samples) -> bool:
    """Enough requests have come since the last look."""
    looks, had = rollout.looks, told(canary, stable)
    before = looks.samples if looks.window_s == canary.since_s else 0
    steps = [max(share * rollout.spec.min_samples, FEWEST) for share in FIRST_LOOKS]
    return had >= next((step for step in steps if step > before), before * 1.5)


def told(canary: Samples, stable: Samples) -> int:
    """Requests of the version that has fewer: a version of which none ever ends has those that run."""
    growing = (canary, stable) if canary.since_s == stable.since_s else (canary,)
    return min(of.ended if of.ended >= FEWEST else of.ended + (of.running or 0) for of in growing)


def allowed(gates: Gates, steps: int, look: int) -> float:
    """The chance of a false no that one gate has at one look (counted from 0)."""
    share = SPENT[look] if look < len(SPENT) else 0.5 / ((look - 3) * (look - 2))
    return gates.false_rollback * share / (len(GATES) * (steps + 1))


def judge(rollout: Rollout, canary: Samples, stable: Samples) -> tuple[GateResult, ...]:
    """What each of GATES says at this look."""
    spec = rollout.spec
    chance = allowed(spec.gates, len(spec.steps), rollout.looks.count)
    enough = min(canary.ended, stable.ended) >= spec.min_samples
    return (
        _ratio(TTFT, spec.gates.ttft_ratio, canary, stable, chance, enough),
        _ratio(TPOT, spec.gates.tpot_ratio, canary, stable, chance, enough),
        _ratio(LENGTH, spec.gates.length_ratio, canary, stable, chance, enough),
        _errors(spec.gates.errors, canary, stable, chance, enough),
        _unfinished(spec.gates.unfinished_ratio, canary, stable, chance, enough, rollout.phase is Phase.CANARY),
    )


def _ratio(name: str, bound: float, canary: Samples, stable: Samples, chance: float, enough: bool) -> GateResult:
    one, other = canary.metric(name), stable.metric(name)
    n, n_other = (sum(len(stratum.logs) for stratum in strata.values()) for strata in (one, other))
    if name != LENGTH and _is_not_asked(name, canary, stable, n, n_other):
        why = "only copies ran, which wait behind all others" if canary.mirrored else "hardly any answer has two tokens"
        return GateResult(name=name, answer=Answer.YES, detail=f"{NAMES[name]}: not asked, {why}")
    same_time = canary.since_s == stable.since_s
    if not same_time and name != LENGTH:
        bound **= OF_ANOTHER_TIME
    natural = bound**NATURAL
    above, within = compare(one, other, natural, same_time), compare(one, other, bound, same_time)
    if above is None or within is None:
        detail = f"{NAMES[name]}: {n} and {n_other} requests of like sizes, too few to compare"
        return GateResult(name=name, answer=Answer.UNKNOWN, detail=detail, n_stable=n_other, n_canary=n)
    p, is_large, is_within = above.p_larger, above.ratio >= bound, within.p_smaller < YES_LEVEL
    allowed_is = f"up to {bound:.2f}"
    if name == LENGTH:
        below, not_less = compare(one, other, 1.0 / natural, same_time), compare(one, other, 1.0 / bound, same_time)
        assert below is not None and not_less is not None, "the same values as above"
        p, is_large = min(2.0 * min(p, below.p_smaller), 1.0), is_large or above.ratio <= 1.0 / bound
        is_within = is_within and not_less.p_larger < YES_LEVEL
        allowed_is = f"{1.0 / bound:.2f} to {bound:.2f}"
    answer = Answer.NO if p < chance and is_large else Answer.YES if enough and is_within else Answer.UNKNOWN
    detail = f"{NAMES[name]}: {above.ratio:.2f} times (p {p:.2g}), allowed is {allowed_is} times"
    return GateResult(name=name, answer=answer, detail=detail, n_stable=above.n_other, n_canary=above.n)


def _is_not_asked(name: str, canary: Samples, stable: Samples, n: int, n_other: int) -> bool:
    if canary.ended and canary.mirrored == canary.ended:
        return True
    served = canary.ended - canary.mirrored - canary.failed
    return name == TPOT and served >= FEWEST and n < 0.1 * served and n_other < 0.1 * (stable.ended - stable.failed)


def _errors(bound: float, canary: Samples, stable: Samples, chance: float, enough: bool) -> GateResult:
    share = canary.failed / canary.ended if canary.ended else 0.0
    other = stable.failed / stable.ended if stable.ended else 0.0
    strata = [(canary.failed, canary.ended, stable.failed, stable.ended)]
    if canary.since_s == stable.since_s:  # what hits both at the same time is neither one's fault
        none = (0, 0)
        strata = [(*of[::-1], *stable.counts.get(bin, none)[::-1]) for bin, of in canary.counts.items()]
    p, moments = more_often(strata), sum(failed > 0 for _, failed in canary.counts.values())
    answer = Answer.UNKNOWN
    if p < chance and (moments >= ONE_MISHAP or share >= MOSTLY):
        answer = Answer.NO
    elif enough and most_above(canary.failed, canary.ended, stable.failed, stable.ended, YES_LEVEL) < bound:
        answer = Answer.YES
    detail = f"errors: {share:.1%} against {other:.1%} (p {p:.2g}), allowed are {bound:.1%} more"
    return GateResult(name="errors", answer=answer, detail=detail, n_stable=stable.ended, n_canary=canary.ended)


def _unfinished(
    bound: float, canary: Samples, stable: Samples, chance: float, enough: bool, steady: bool
) -> GateResult:
    """What is still running is in no length: a version that finds no end would look like one that hardly answers.

    `steady`: the shares of the traffic stay as they are, so that what runs and what ended are of the same stream.
    """
    running, other = canary.running, stable.running
    same_time = canary.since_s == stable.since_s
    if running is None or (other is None and same_time):
        return GateResult(name="unfinished", answer=Answer.UNKNOWN, detail="requests in flight: not told")
    p, ratio, compared = 1.0, 0.0, ""
    if same_time and other is not None and steady:
        p = more_often([(running, running + canary.ended, other, other + stable.ended)])
        ratio = (running / max(canary.ended, 1)) / max(other / max(stable.ended, 1), 1e-9)
        compared = f", {other} beside {stable.ended} of the old version (p {p:.2g})"
    answer = Answer.UNKNOWN
    if p < chance and ratio >= bound:
        answer = Answer.NO
    elif enough and canary.ended >= FINISHED * (canary.ended + running):
        answer = Answer.YES
    detail = f"requests in flight: {running} beside {canary.ended} that ended{compared}"
    return GateResult(name="unfinished", answer=answer, detail=detail, n_stable=stable.ended, n_canary=canary.ended)


def golden(gates: Gates, brought: int, report: SwapReport) -> GateResult:
    """What the golden prompts said on a replica. `brought`: how many the version has."""

    def result(answer: Answer, detail: str) -> GateResult:
        return GateResult(name="golden", answer=answer, detail=f"golden prompts: {detail}", n_canary=report.asked)

    distance = report.logprob_distance
    if not report.asked and distance is None:
        if brought:
            return result(Answer.UNKNOWN, f"none of {brought} was asked")
        return result(Answer.YES, "the version brings none")
    said = f"{report.exact} of {report.asked} answers exact" if report.asked else "no answers asked"
    if distance is not None:
        said += f", log-probabilities {distance:.4f} off on average, allowed are {gates.golden_distance:g}"
    wrong = report.exact < gates.golden_exact * report.asked
    off = distance is not None and not distance <= gates.golden_distance
    return result(Answer.NO if wrong or off else Answer.YES, said)

"""What was seen of a cluster around a strike, and what that says of its recovery. Pure.

Times are seconds of one monotonic clock of the drill's, but for alarms and healings: those are told by the cluster, in
seconds since 1970, and the strike is known in both. A check has three answers; what nobody could see has not held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from statistics import median
from typing import Any, NamedTuple

from ops.drill.choosing import READY, Fault

_ENOUGH_EVENTS = 10  # of a stream, for a mean time per token

Life = tuple[str, int]  # a replica's id and epoch: a later life of the same replica has a later one


class ReplicaSight(NamedTuple):
    """A replica as a status told it."""

    life: Life
    state: str
    at_work: bool  # requests were granted to it, or ran there


class GatewaySight(NamedTuple):
    """The gateway that told a status: its own counters, which are not the other gateways'."""

    pid: int
    resumed: int  # streams that went on elsewhere after their replica was lost
    moved: int  # streams that were taken off a draining replica
    quarantined: int


class Sight(NamedTuple):
    """One status. `at_s`: when its answer came."""

    at_s: float
    replicas: tuple[ReplicaSight, ...]
    router_pid: int
    gateway: GatewaySight


class Strike(NamedTuple):
    """What was done. `before`: the last sight before it."""

    fault: Fault
    at_s: float
    wall_s: float  # the same moment in seconds since 1970
    before: Sight
    victim: Life | None  # None: the router
    granted: int  # requests that were granted to the victim, or in the whole cluster
    over_s: float | None = None  # when a stopped or slowed victim was let go on; None: it was not, or it was a kill


@dataclass
class Stream:
    """One streamed answer of the drill's own load. Times are the events'; each holds one token or more."""

    begun_s: float
    token_s: Sequence[float] = ()
    ended_s: float | None = None  # None: it runs
    status: int | None = None  # HTTP; None: no answer came
    refused: bool = False  # 429 or 503 with Retry-After: it is asked again
    broken: str = ""  # what broke it, in words
    wrong: str = ""  # how it differs from the same request undisturbed
    compared: bool = False  # it came whole, and its undisturbed answer is known

    def runs_at(self, at_s: float) -> bool:
        """Whether it had begun to answer by then, and not ended."""
        began = bool(self.token_s) and self.token_s[0] <= at_s
        return began and (self.ended_s is None or self.ended_s > at_s)


class AlarmSeen(NamedTuple):
    """An alarm, in seconds since 1970."""

    name: str
    severity: str
    summary: str
    labels: Mapping[str, str]
    raised_s: float
    resolved_s: float | None  # None: it is still raised


class Healing(NamedTuple):
    """What the controller did by itself."""

    at_s: float  # since 1970
    replica: str
    action: str
    outcome: str
    why: str


class Watched(NamedTuple):
    """All that was seen."""

    sights: Sequence[Sight]  # after the strike, in order
    streams: Sequence[Stream]
    alarms: Sequence[AlarmSeen] | None  # None: the cluster has no controller
    healings: Sequence[Healing]
    gateways_before: Mapping[int, GatewaySight]  # by pid, as each was seen last before the strike
    ended_s: float


class Check(NamedTuple):
    """One thing that a drill is made for. `held` None: nobody could see it."""

    what: str
    held: bool | None
    words: str


def out_of_rotation_s(strike: Strike, sights: Iterable[Sight]) -> float | None:
    """Seconds until the victim was granted nothing more; None: that was not seen (or it is the router)."""
    if strike.victim is None:
        return None
    return _first(strike, (s for s in sights if strike.victim not in _ready(s)))


def router_back_s(strike: Strike, sights: Iterable[Sight]) -> float | None:
    """Seconds until another router answered; None: none did (or it was not struck)."""
    if strike.fault is not Fault.KILL_ROUTER:
        return None
    return _first(strike, (s for s in sights if s.router_pid != strike.before.router_pid))


def full_capacity_s(strike: Strike, sights: Sequence[Sight]) -> float | None:
    """Seconds until as many replicas were ready as before, and stayed so to the last sight.

    The victim counts only once it was let go on.
    """
    wanted = len(_ready(strike.before))

    def is_full(sight: Sight) -> bool:
        if strike.fault is Fault.KILL_ROUTER and sight.router_pid == strike.before.router_pid:
            return False  # told by the one that is about to die
        free = strike.over_s is not None and sight.at_s >= strike.over_s
        return len(_ready(sight) - (set() if free or strike.victim is None else {strike.victim})) >= wanted

    since = list(takewhile(is_full, reversed(sights)))
    return since[-1].at_s - strike.at_s if since else None


def idle_replicas(strike: Strike, sights: Sequence[Sight]) -> list[str] | None:
    """Ready replicas that were not seen at work since full capacity; None: it did not come back."""
    full = full_capacity_s(strike, sights)
    if full is None:
        return None
    since = [s for s in sights if s.at_s - strike.at_s >= full]
    worked = {r.life for s in since for r in s.replicas if r.at_work}
    return sorted(replica for replica, epoch in _ready(since[-1]) - worked)


def newcomers(strike: Strike, sights: Sequence[Sight]) -> list[str]:
    """Ids of ready replicas, in the end, that were not there before."""
    known = {r.life for r in strike.before.replicas}
    return sorted({life[0] for life in _ready(sights[-1]) - known}) if sights else []


def counted(before: Mapping[int, GatewaySight], sights: Iterable[Sight]) -> GatewaySight | None:
    """What all gateways' counters grew by since the strike (its pid is 0); None: no gateway was seen on both sides.

    A gateway tells its own counters only, so one that was not seen before the strike cannot be counted.
    """
    last = {s.gateway.pid: s.gateway for s in sights}
    both = [(before[pid], now) for pid, now in last.items() if pid in before]
    if not both:
        return None
    return GatewaySight(
        0,
        sum(now.resumed - then.resumed for then, now in both),
        sum(now.moved - then.moved for then, now in both),
        sum(now.quarantined - then.quarantined for then, now in both),
    )


def longest_gap_s(streams: Iterable[Stream], since_s: float, until_s: float) -> float | None:
    """The longest time between two events of one stream, of gaps that ended in [since, until); None: there is none.

    A stream that has begun and runs at `until_s` counts up to then: its silence is not over.
    """
    longest: float | None = None
    for stream in streams:
        times = [*stream.token_s, until_s] if stream.ended_s is None and stream.token_s else stream.token_s
        for one, other in pairwise(times):
            if since_s <= other <= until_s and (longest is None or other - one > longest):
                longest = other - one
    return longest


def longest_first_token_s(streams: Iterable[Stream], since_s: float) -> float | None:
    """The longest wait for a first token, of requests that were sent, or still waited, after `since_s`."""
    waits = [s.token_s[0] - s.begun_s for s in streams if s.token_s and s.token_s[0] >= since_s]
    return max(waits, default=None)


def tpots_s(streams: Iterable[Stream], since_s: float, until_s: float) -> list[float]:
    """Mean seconds per event of each stream between two times, sorted; of those with some events there."""
    found = []
    for stream in streams:
        times = [at for at in stream.token_s if since_s <= at <= until_s]
        if len(times) >= _ENOUGH_EVENTS:
            found.append((times[-1] - times[0]) / (len(times) - 1))
    return sorted(found)


def is_over(
    strike: Strike, sights: Sequence[Sight], streams: Sequence[Stream], holds: bool, loaded: bool, settle_s: float
) -> bool:
    """Whether nothing more is to be waited for, but alarms: capacity is back and serves, streams have ended.

    `holds`: the victim is being stopped or slowed. `loaded`: there is work to be seen at. `settle_s`: to watch at
    least.
    """
    if holds or not sights or sights[-1].at_s - strike.at_s < settle_s:
        return False
    if any(stream.runs_at(strike.at_s) and stream.ended_s is None for stream in streams):
        return False
    idle = idle_replicas(strike, sights)
    return idle is not None and not (idle and loaded)


def raised_after(strike: Strike, alarms: Iterable[AlarmSeen]) -> list[AlarmSeen]:
    return sorted((a for a in alarms if a.raised_s >= strike.wall_s), key=lambda alarm: alarm.raised_s)


def checks(strike: Strike, seen: Watched) -> list[Check]:
    """What held and what did not, in the order in which an operator asks."""
    return [_whole(strike, seen), _right(seen), _capacity(strike, seen), _serving(strike, seen)]


def _whole(strike: Strike, seen: Watched) -> Check:
    what = "no stream broke"
    broken = [s.broken for s in seen.streams if s.broken]
    late = [s for s in seen.streams if s.runs_at(strike.at_s) and s.ended_s is None]
    quarantined = now.quarantined if (now := counted(seen.gateways_before, seen.sights)) else 0
    if broken:
        return Check(what, False, f"{len(broken)} broke, the first: {broken[0]}")
    if late:
        return Check(what, False, f"{len(late)} that ran at the strike have not ended yet")
    if quarantined:
        return Check(what, False, f"{quarantined} requests saw two replicas die and were told so")
    running = sum(s.runs_at(strike.at_s) for s in seen.streams)
    if not running:
        return Check(what, None, "no stream of the drill's own ran at the strike")
    ended = sum(s.ended_s is not None and not s.refused for s in seen.streams)
    return Check(what, True, f"{running} ran at the strike, {ended} ended whole")


def _right(seen: Watched) -> Check:
    what = "no token is wrong"
    wrong = [s.wrong for s in seen.streams if s.wrong]
    compared = sum(s.compared for s in seen.streams)
    if wrong:
        return Check(what, False, f"{len(wrong)} of {compared} streams, the first: {wrong[0]}")
    if not compared:
        return Check(what, None, "no stream could be compared with an undisturbed one")
    return Check(what, True, f"{compared} streams are as they were undisturbed")


def _capacity(strike: Strike, seen: Watched) -> Check:
    what, wanted = "capacity came back", len(_ready(strike.before))
    if (full := full_capacity_s(strike, seen.sights)) is not None:
        return Check(what, True, f"{wanted} replicas ready after {full:.1f} s")
    if not seen.sights:
        return Check(what, False, "no status was answered any more")
    others = _ready(seen.sights[-1]) - {strike.victim}
    waited = seen.ended_s - strike.at_s
    return Check(
        what, False, f"{len(others)} of {wanted} replicas ready, not counting the victim, after {waited:.0f} s"
    )


def _serving(strike: Strike, seen: Watched) -> Check:
    what = "all replicas serve"
    idle = idle_replicas(strike, seen.sights)
    if idle is None:
        return Check(what, None, "capacity did not come back")
    if not idle:
        return Check(what, True, "each was seen at work since")
    if not any(r.at_work for s in seen.sights for r in s.replicas):
        return Check(what, None, "there was no load to be seen at work with")
    return Check(what, False, f"ready, but not seen at work since: {', '.join(idle)}")


def report(strike: Strike, seen: Watched) -> dict[str, Any]:
    """The whole report, as `moray drill … --json` prints it. Times ending in _s are seconds after the strike."""
    now = counted(seen.gateways_before, seen.sights)
    streams, at = seen.streams, strike.at_s
    found = checks(strike, seen)
    tpot_before, tpot = tpots_s(streams, 0.0, at), tpots_s(streams, at, seen.ended_s)
    return {
        "fault": strike.fault.value,
        "replica": strike.victim[0] if strike.victim else None,
        "replaced_by": newcomers(strike, seen.sights),
        "streams": {
            "running_at_strike": sum(s.runs_at(at) for s in streams),
            "granted_at_strike": strike.granted,
            "resumed": now.resumed if now else None,
            "moved": now.moved if now else None,
            "quarantined": now.quarantined if now else None,
            "broken": sum(bool(s.broken) for s in streams),
            "wrong": sum(bool(s.wrong) for s in streams),
            "compared": sum(s.compared for s in streams),
            "longest_gap_s": _rounded(longest_gap_s(streams, at, seen.ended_s)),
            "longest_gap_before_s": _rounded(longest_gap_s((s for s in streams if s.begun_s < at), 0.0, at)),
            "longest_first_token_s": _rounded(longest_first_token_s(streams, at)),
            "median_tpot_before_s": _rounded(median(tpot_before), 4) if tpot_before else None,
            "slowest_tpot_s": _rounded(tpot[-1], 4) if tpot else None,
        },
        "errors": {str(s): n for s, n in sorted(_errors(streams, at).items(), key=lambda one: str(one[0]))},
        "out_of_rotation_s": _rounded(out_of_rotation_s(strike, seen.sights)),
        "router_downtime_s": _rounded(router_back_s(strike, seen.sights)),
        "over_s": _rounded(strike.over_s and strike.over_s - at),
        "full_capacity_s": _rounded(full_capacity_s(strike, seen.sights)),
        "alarms": None if seen.alarms is None else [_alarm(strike, a) for a in raised_after(strike, seen.alarms)],
        "healings": None
        if seen.alarms is None
        else [
            {**h._asdict(), "at_s": _rounded(h.at_s - strike.wall_s)} for h in seen.healings if h.at_s >= strike.wall_s
        ],
        "watched_s": _rounded(seen.ended_s - at),
        "checks": [check._asdict() for check in found],
        "held": _all_held(found),
    }


def _all_held(found: Iterable[Check]) -> bool | None:
    """False: something did not hold; None: all that could be seen did."""
    answers = {check.held for check in found}
    return False if False in answers else None if None in answers else True


def _errors(streams: Iterable[Stream], since_s: float) -> Counter[int | str]:
    """Answers other than 200 since then, by status code; "none": the connection failed, or the stream broke."""
    found: Counter[int | str] = Counter()
    for stream in streams:
        if stream.ended_s is not None and stream.ended_s >= since_s:
            if stream.status is not None and stream.status != 200:
                found[stream.status] += 1
            elif stream.broken:
                found["broken" if stream.status else "none"] += 1
    return found


def _alarm(strike: Strike, alarm: AlarmSeen) -> dict[str, Any]:
    resolved = None if alarm.resolved_s is None else _rounded(alarm.resolved_s - strike.wall_s)
    return {
        "name": alarm.name,
        "severity": alarm.severity,
        "labels": dict(alarm.labels),
        "summary": alarm.summary,
        "raised_s": _rounded(alarm.raised_s - strike.wall_s),
        "resolved_s": resolved,
    }


def _ready(sight: Sight) -> set[Life]:
    return {replica.life for replica in sight.replicas if replica.state == READY}


def _first(strike: Strike, sights: Iterable[Sight]) -> float | None:
    return next((s.at_s - strike.at_s for s in sights if s.at_s >= strike.at_s), None)


def _rounded(seconds: float | None, digits: int = 2) -> float | None:
    return None if seconds is None else round(seconds, digits)

"""The drill: before, the strike, after."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from ops.drill import elsewhere, recovery
from ops.drill.choosing import READY, DrillRefused, Fault, choose, intention
from ops.drill.recovery import GatewaySight, Sight, Strike, Watched
from ops.drill.streams import Load
from ops.drill.strikes import Arm, Hold, LocalArm
from ops.drill.watch import Watch
from ops.gateway_calls import authorization
from ops.processes import send
from ops.status import fetch
from ops.victims import engine_here, router_here

BEFORE_S = 1.0  # to watch, and to let the load get going, before the strike
SETTLE_S = 2.0  # to watch at least after it
ALARM_S = 20.0  # the same where a controller may raise an alarm: the slowest of the fast ones takes 15 s
END_LIMIT_S = 60.0  # for the load's last streams to end
SLICE_S = 0.02  # a slowed engine is stopped and continued once in this time
TICK_S = 0.1

Report = Callable[[str], None]


class Options(NamedTuple):
    """As on the command line."""

    fault: Fault
    url: str
    api_key: str | None
    replica: str | None  # its id or a beginning of it; None: the busiest
    even_the_last: bool
    for_s: float  # 0: a frozen replica stays so until it is replaced
    stopped_share: float  # of the time, of a slowed one
    load: int
    timeout_s: float
    linger_s: float  # for alarms to be resolved, once the cluster has recovered
    ray_address: str | None

    @property
    def hold(self) -> Hold | None:
        """How the victim is held; None: it is killed."""
        if self.fault is Fault.FREEZE_REPLICA:
            return Hold(self.for_s)
        if self.fault is Fault.SLOW_REPLICA:
            return Hold(self.for_s, SLICE_S * self.stopped_share, SLICE_S * (1 - self.stopped_share))
        return None


@dataclass
class Prepared:
    """A drill that can be made: nothing has been touched yet."""

    options: Options
    status: Mapping[str, Any]
    through_ray: bool  # what is to be struck may be on another host
    intention: str

    @property
    def model(self) -> str:
        return str(self.status["model"]["name"])


def prepare(options: Options) -> Prepared:
    """Finds out whether it can be made, and what it will do. Raises UserError."""
    status = fetch(options.url, options.api_key)
    _require_operator(options.url, options.api_key)
    through_ray = False
    if options.fault is Fault.KILL_ROUTER:
        if router_here(status) is None:
            why = f"the router (process {status['router']['pid']}) is not on this host"
            through_ray = True
            elsewhere.join(options.ray_address, why)
        target = f"the router of {status['model']['name']} (process {status['router']['pid']})"
    else:
        victim = choose(status, options.replica, options.even_the_last)
        ready = [replica for replica in status["replicas"] if replica["state"] == READY]
        candidates = [victim] if options.replica is not None else ready
        if away := [replica for replica in candidates if engine_here(replica) is None]:
            where = str(away[0]["address"]).rpartition(":")[0]
            why = f"process {away[0]['engine']['pid']} of replica {away[0]['id']} ({where}) is not on this host"
            through_ray = True
            elsewhere.join(options.ray_address, why)
        target = f"replica {victim['id']} (process {victim['engine']['pid']}, {victim['granted']} requests run there)"
        if len(candidates) > 1:
            target = f"the busiest of {len(ready)} ready replicas; now that is {target}"
    words = intention(options.fault, target, options.url, _until_words(options), options.load)
    return Prepared(options, status, through_ray, words)


def _until_words(options: Options) -> str:
    if options.fault is Fault.SLOW_REPLICA:
        return f"It gets {1 - options.stopped_share:.0%} of its time for {options.for_s:g} s. "
    if options.fault is Fault.FREEZE_REPLICA:
        return f"It goes on after {options.for_s:g} s. " if options.for_s else "The cluster has to replace it. "
    return ""


def _require_operator(url: str, api_key: str | None) -> None:
    """Raises DrillRefused if the gateway would let this key command nothing."""
    try:
        # Without a body it does nothing for anybody; who may not is told so first.
        reply = httpx.post(f"{url}/moray/drain", headers=authorization(api_key), timeout=5.0, trust_env=False)
    except httpx.HTTPError as error:
        raise DrillRefused(f"{url} does not answer: {error}") from None
    if reply.status_code in (401, 403):
        raise DrillRefused(
            "a drill is for operators: give the key of a tenant that the setting gateway.operators names, with "
            "--api-key or MORAY_API_KEY"
        )


async def carry_out(prepared: Prepared, tell: Report) -> dict[str, Any]:
    """The drill; its report. Whatever happens, a victim that is held goes on in the end. Raises UserError."""
    options = prepared.options
    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(Load(options.url, options.api_key, prepared.model, options.load))
        if options.load:
            tell(f"asking {options.load} streams twice, undisturbed")
            await load.undisturbed()
            if load.unfit:
                tell(f"{load.unfit} of them are not the same twice even so: their tokens are not compared")
        seen = _Seen()
        watch = await stack.enter_async_context(Watch(options.url, options.api_key, seen.take))
        load.start()
        await asyncio.sleep(BEFORE_S + load.stream_s)
        if not seen.sights or watch.status is None:
            raise DrillRefused(f"{options.url}/moray/status does not answer any more")
        strike, arm = await _strike(prepared, watch.status, seen, tell)
        try:
            strike = await _until_recovered(options, strike, arm, seen, load, watch, tell)
        finally:
            if arm is not None:
                await asyncio.to_thread(arm.let_go)
        await load.stop(END_LIMIT_S)
        watched = Watched(
            seen.sights, load.streams, watch.alarms, watch.healings, seen.gateways_before, time.monotonic()
        )
        return recovery.report(strike, watched) | {"load": options.load, "not_comparable": load.unfit}


class _Seen:
    """Sights before the strike as far as they are needed, and all after it."""

    def __init__(self) -> None:
        self.sights: list[Sight] = []
        self.gateways_before: dict[int, GatewaySight] = {}
        self._struck = False

    def take(self, sight: Sight) -> None:
        if not self._struck:
            self.gateways_before[sight.gateway.pid] = sight.gateway
            self.sights = [sight]
        else:
            self.sights.append(sight)

    def struck(self) -> Sight:
        """The last sight before; from now on they are after."""
        before, self.sights, self._struck = self.sights[-1], [], True
        return before


async def _strike(
    prepared: Prepared, status: Mapping[str, Any], seen: _Seen, tell: Report
) -> tuple[Strike, Arm | None]:
    """Does it. The arm is None for the router, which is killed only."""
    options = prepared.options
    if options.fault is Fault.KILL_ROUTER:
        router = router_here(status)
        before, at = seen.struck(), time.monotonic()
        if router is not None:
            send(router, signal.SIGKILL)
        elif prepared.through_ray:
            await asyncio.to_thread(elsewhere.kill_router, prepared.model)
        else:
            raise DrillRefused("the router is not where it was: it has been restarted this moment; try again")
        tell(f"killed the router, process {status['router']['pid']}")
        return Strike(options.fault, at, time.time(), before, None, status["router"]["granted"]), None
    victim = choose(status, options.replica, options.even_the_last)
    arm = await asyncio.to_thread(_arm, prepared, victim)
    before, at, wall = seen.struck(), time.monotonic(), time.time()
    if (hold := options.hold) is None:
        await asyncio.to_thread(arm.kill)
    else:
        await asyncio.to_thread(arm.hold, hold)
        at, wall = time.monotonic(), time.time()  # what stops it had to start first
    tell(f"struck replica {victim['id']}, process {victim['engine']['pid']}, with {victim['granted']} requests")
    return Strike(options.fault, at, wall, before, (victim["id"], victim["epoch"]), victim["granted"]), arm


def _arm(prepared: Prepared, victim: Mapping[str, Any]) -> Arm:
    local = LocalArm(victim)
    if local.reaches():
        return local
    if not prepared.through_ray:
        raise DrillRefused(f"replica {victim['id']} is gone this moment; try again")
    return elsewhere.RayArm(victim)


async def _until_recovered(
    options: Options, strike: Strike, arm: Arm | None, seen: _Seen, load: Load, watch: Watch, tell: Report
) -> Strike:
    """Waits until the cluster has recovered and alarms are resolved, or for as long as the options allow."""
    held = options.hold is not None
    told: set[str] = set()
    recovered: float | None = None
    while (now := time.monotonic()) - strike.at_s < options.timeout_s:
        await asyncio.sleep(TICK_S)
        if held and arm is not None and not await asyncio.to_thread(arm.holds):
            held = False
            strike = strike._replace(over_s=time.monotonic())
        if not held or not options.for_s:
            _say_news(strike, seen, told, tell)
        # A replica that stays frozen until it is replaced holds nothing up: it never comes back by itself.
        holds = held and bool(options.for_s)
        settle_s = ALARM_S if watch.has_controller and options.linger_s and strike.victim else SETTLE_S
        if not recovery.is_over(strike, seen.sights, load.streams, holds, options.load > 0, settle_s):
            recovered = None
            continue
        recovered = recovered or now
        raised = recovery.raised_after(strike, watch.alarms or ())
        if all(alarm.resolved_s is not None for alarm in raised) or now - recovered >= options.linger_s:
            return strike
        if "alarms" not in told:
            told.add("alarms")
            tell(f"recovered; waiting for alarms to be resolved, for {options.linger_s:g} s at most")
    return strike


def _say_news(strike: Strike, seen: _Seen, told: set[str], tell: Report) -> None:
    for what, seconds in (
        ("the victim is out of rotation", recovery.out_of_rotation_s(strike, seen.sights)),
        ("another router answers", recovery.router_back_s(strike, seen.sights)),
        ("as many replicas are ready as before", recovery.full_capacity_s(strike, seen.sights)),
    ):
        if seconds is not None and what not in told:
            told.add(what)
            tell(f"{seconds:.1f} s: {what}")

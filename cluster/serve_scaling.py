"""The Ray Serve policy around `cluster.autoscaling`: asks the router what there is, tells Serve how many replicas.

It runs in Serve's controller, which calls it several times a second and must never wait for it: a question to the
router is a call whose answer is looked for at the next ticks. While there is none, nothing changes. Serve's own counts
of requests are of no use: requests do not come through its handles, so to Serve every replica is idle. And with no
replica left nobody could tell it that somebody asks; the router, which holds those requests, can.

Serve counts replicas that it wants, the decision those that take requests or will:

    Serve's target = ready + loading + draining (an operator's wish: `moray drain`) + extra (a rollout's wish)

What Serve has too many it is stopping already, though the router may still see it for a moment. What it lacks is
loading; but not for ever: what has not come within `replicas.start_timeout_s` (no room in the cluster, say) counts as
not there, so that it neither holds up scaling in nor is waited for.

Ray pickles this module by value. What it imports must be importable in the controller, which runs on the same
environment as the replicas.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import ray

from cluster.autoscaling import Decision, Observation, Pace, Scaling, State, decide
from cluster.scaling_window import Decided, Report
from replicas.router_handle import NAMESPACE, actor_name

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

logger = logging.getLogger("ray.serve")

FROM_ZERO_S = 1.0  # with no replica the router is asked so often: somebody waits already


class Router(Protocol):
    """The router as the policy needs it. Neither call waits."""

    def ask(self) -> Report | None:
        """An answer that has come since the last call; if none is on its way, asks for one."""
        ...

    def tell(self, decided: Decided) -> None: ...


class RayRouter:
    """`Router` over Ray: at most one question is open at a time."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._actor: Any = None
        self._answer: Any = None  # an ObjectRef

    def ask(self) -> Report | None:
        try:
            if self._answer is None:
                self._actor = self._actor or ray.get_actor(actor_name(self._model), namespace=NAMESPACE)
                self._answer = self._actor.observe_scaling.remote()
            if not ray.wait([self._answer], timeout=0)[0]:
                return None
            answer, self._answer = self._answer, None
            report: Report = ray.get(answer)
            return report
        except (ray.exceptions.RayError, ValueError) as error:  # it has died, or is not there yet: Ray restarts it
            logger.warning("The router does not answer the autoscaling (%s).", type(error).__name__)
            self._actor = self._answer = None
            return None

    def tell(self, decided: Decided) -> None:
        if self._actor is not None:
            self._actor.scaled.remote(decided)


class RouterScaling:
    """What Serve calls at every tick, with the state that decisions carry on.

    Constructed in Serve's controller, anew for each deployment's configuration, from values that JSON can hold:
    `scaling` are `Scaling`'s fields, `load_s` left out where it is to be measured.
    """

    def __init__(
        self,
        model: str,
        scaling: dict[str, Any],
        interval_s: float,
        start_timeout_s: float,
        router: Router | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router or RayRouter(model)
        self._clock = clock  # the router's would begin anew with the router, on another node perhaps
        self._scaling = Scaling(**scaling)
        self._measures = "load_s" not in scaling
        self._interval_s = interval_s
        self._shortage = Shortage(start_timeout_s)
        self._state = State()
        self._pace: Pace | None = None  # what was known before the router's last restart
        self._next_s = 0.0
        self._extra: int | None = None  # what Serve's target holds for a rollout; None: as the router says

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Serve's target, and no state for Serve to keep."""
        target = context.target_num_replicas
        try:
            return self._decide(target), {}
        except Exception:  # it would stop Serve's control loop: no replica would be replaced any more
            logger.exception("The autoscaling failed; there will be %d replicas as before.", target)
            return target, {}

    def _decide(self, target: int) -> int:
        now = self._clock()
        if now < self._next_s or (report := self._router.ask()) is None:
            return target
        self._next_s = now + (self._interval_s if target else min(FROM_ZERO_S, self._interval_s))
        own = max(target - (report.extra if self._extra is None else self._extra), 0)
        seen = self._shortage.see(replace(as_serve_counts(report.seen, own), now_s=now))
        self._pace = report.pace or self._pace
        scaling = self._scaling
        if self._measures and report.load_s is not None:
            scaling = replace(scaling, load_s=report.load_s)
        decision = decide_with(self._pace, seen, self._state, scaling)
        self._state = decision.state
        self._router.tell(Decided(decision.target, decision.reason))
        self._extra = report.extra
        return decision.target + report.seen.draining + report.extra


def as_serve_counts(seen: Observation, target: int) -> Observation:
    """The same with replicas counted by what Serve wants: `target`, those that an operator drains among them."""
    leaving = max(seen.ready + seen.draining - target, 0)
    ready = max(seen.ready - leaving, 0)
    loading = max(target - seen.ready - seen.draining, 0)
    return replace(seen, ready=ready, loading=loading, draining=seen.draining + leaving)


def decide_with(pace: Pace | None, seen: Observation, state: State, scaling: Scaling) -> Decision:
    """`decide`, or without a pace no change, but for the first replica: a request that waits needs one."""
    if pace is not None:
        return decide(seen, state, scaling, pace)
    have = seen.ready + seen.loading
    if have or not (seen.queued or seen.prompt_tokens_per_s):
        return Decision(have, f"Stay at {have}: what a step costs here is not learned yet.", state)
    return Decision(1, "Scale out from 0 to 1: somebody asks.", state)


class Shortage:
    """Replicas that Serve wants and has not got, and since when: what does not come in time is not loading."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._before = (0, 0)  # ready, loading
        self._since_s = 0.0

    def see(self, seen: Observation) -> Observation:
        counts = seen.ready, seen.loading
        if counts != self._before:
            self._before, self._since_s = counts, seen.now_s
        late = seen.loading > 0 and seen.now_s - self._since_s > self._limit_s
        return replace(seen, loading=0) if late else seen

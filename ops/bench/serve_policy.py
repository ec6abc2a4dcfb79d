"""Ray Serve's default autoscaling, by its own functions, on virtual time.

Every decision is made by `ray.serve.autoscaling_policy` of the installed Ray: `replica_queue_length_autoscaling_policy`
says what is desired, `_apply_default_params` applies the factors and delays as Serve's controller does around it.
Around them is what the controller does besides: the mean of ongoing requests over `look_back_period_s`, and the bounds.
The cold start of a deployment without replicas is not in it: here there is always one.
"""

from collections import deque
from typing import Any, NamedTuple

from ray.serve import autoscaling_policy as serve
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

DEPLOYMENT = DeploymentID(name="replicas", app_name="default")


class Settings(NamedTuple):
    """Those of `AutoscalingConfig` that are swept; the others keep Serve's defaults."""

    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscaling_factor: float = 1.0


class ServeDefault:
    """One deployment's autoscaling."""

    def __init__(self, settings: Settings, min_replicas: int, max_replicas: int) -> None:
        self._config = AutoscalingConfig(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
            downscaling_factor=settings.downscaling_factor,
        )
        self._ongoing: deque[tuple[float, float]] = deque()
        self._state: dict[str, Any] = {}

    def target(self, now_s: float, running_replicas: int, target: int, ongoing: float) -> int:
        """The next target. `ongoing`: requests that run or wait, the mean since the last call."""
        self._ongoing.append((now_s, ongoing))
        while self._ongoing[0][0] <= now_s - self._config.look_back_period_s:
            self._ongoing.popleft()
        total = sum(value for _, value in self._ongoing) / len(self._ongoing)
        context = AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name=DEPLOYMENT.name,
            app_name=DEPLOYMENT.app_name,
            current_num_replicas=running_replicas,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=total,
            total_queued_requests=None,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self._config,
        )
        desired, _ = serve.replica_queue_length_autoscaling_policy(context)
        scaled = serve._apply_scaling_factors(desired, running_replicas, self._config)
        # `_apply_default_params` reads the wall clock; this is its last step, which takes the time as an argument.
        decided, self._state = serve._apply_delay_logic(max(0, scaled), target, self._config, self._state, _now=now_s)
        return int(min(max(decided, self._config.min_replicas), self._config.max_replicas))

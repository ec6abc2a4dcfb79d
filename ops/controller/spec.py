"""What the controller must know, as plain values."""

from typing import TYPE_CHECKING

import msgspec

from ops.anomaly.latency import LatencyLimits
from ops.anomaly.monitor import Limits
from ops.anomaly.outcomes import Objective
from ops.anomaly.progress import ProgressBounds
from ops.controller.healing import HealingLimits
from ops.rollout.settings import RolloutsSpec, rollouts_spec

if TYPE_CHECKING:
    from cluster.settings import Settings

NAMESPACE = "moray"  # as the router's


class ControllerSpec(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    limits: Limits = Limits()
    healing: HealingLimits = HealingLimits()
    webhook: str | None = None
    alertmanagers: tuple[str, ...] = ()
    runbook_url: str | None = None
    state_path: str | None = None  # None: in Ray's GCS
    record_path: str | None = None  # None: what the detectors are told is not written down
    rollouts: RolloutsSpec = RolloutsSpec()


def actor_name(model: str) -> str:
    """Ray name of the model's controller in NAMESPACE."""
    return f"controller:{model}"


def controller_spec(settings: "Settings") -> ControllerSpec:
    """`settings` must be resolved. What has no setting is as ops/anomaly has it."""
    alarms, defaults = settings.alarms, Limits()
    assert alarms.ttft_s and alarms.tpot_s and alarms.no_token_s, "settings must be resolved"
    return ControllerSpec(
        model=settings.model.served_name,
        limits=msgspec.structs.replace(
            defaults,
            latency=LatencyLimits(ttft_s=alarms.ttft_s, tpot_s=alarms.tpot_s, in_a_row=alarms.in_a_row),
            objective=Objective(attained=alarms.objective),
            progress=ProgressBounds(no_token_s=alarms.no_token_s, no_grant_s=alarms.no_grant_s),
        ),
        healing=HealingLimits(
            restarts_per_hour=alarms.restarts_per_hour,
            slow_for_s=alarms.slow_for_s,
            drain_s=settings.replicas.drain_s,
            recover_s=settings.replicas.start_timeout_s,
        ),
        webhook=alarms.webhook,
        alertmanagers=alarms.alertmanager,
        runbook_url=alarms.runbook_url,
        state_path=str(alarms.state_path) if alarms.state_path else None,
        record_path=str(alarms.record_path) if alarms.record_path else None,
        rollouts=rollouts_spec(settings),
    )

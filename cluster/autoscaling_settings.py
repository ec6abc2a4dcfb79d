"""The settings group `autoscaling`. Its defaults are `cluster.autoscaling.Scaling`'s, which say why."""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.autoscaling import Scaling
from cluster.settings_group import Group

_SCALING = Scaling()


class Autoscaling(Group):
    """How many replicas there are, by the load. What is counted is whole groups of shards."""

    max_replicas: int | None = Field(
        None, ge=1, description="Replicas at most. null: no autoscaling, there are replicas.count all the time."
    )
    min_replicas: int = Field(
        _SCALING.min_replicas,
        ge=0,
        description="Replicas at least. 0: none while nobody asks; requests wait in the queue while one loads.",
    )
    load_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds from the wish for a replica to its first token: so far ahead the load is foreseen. null: "
        "what the replicas of this cluster took to load.",
    )
    fill: float = Field(
        _SCALING.fill,
        gt=0,
        le=1,
        description="Share of the tokens a second that a replica can serve within the SLO, for which it is planned.",
    )
    slo_goal: float = Field(
        _SCALING.slo_goal,
        gt=0,
        le=1,
        description="Share of requests that are to be served, within router.ttft_slo_s and router.tpot_slo_s where "
        "these are set. Below it there are more replicas, and none goes.",
    )
    interval_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds between two decisions: bursts shorter than that are the queue's affair. 10 is what the "
        "other values were tuned with.",
    )
    fast_s: float = Field(
        _SCALING.fast_s, gt=0, description="Time constant of the mean of the load that replicas are for, seconds."
    )
    slow_s: float = Field(
        _SCALING.slow_s,
        gt=0,
        description="Time constant of the mean that the other is compared with to see the load's trend, seconds.",
    )
    scale_out_cool_down_s: float = Field(
        _SCALING.scale_out_cool_down_s, ge=0, description="Seconds between two times that replicas are added."
    )
    scale_in_after_s: float = Field(
        _SCALING.scale_in_after_s, ge=0, description="Seconds for which a replica has to be in excess before one goes."
    )
    scale_in_cool_down_s: float = Field(
        _SCALING.scale_in_cool_down_s, ge=0, description="Seconds after any change before a replica goes."
    )
    idle_to_zero_s: float = Field(
        _SCALING.idle_to_zero_s,
        ge=0,
        description="Seconds in which nobody asks before the last replica goes, where min_replicas is 0.",
    )

    @property
    def on(self) -> bool:
        return self.max_replicas is not None

    @property
    def to_zero(self) -> bool:
        """Whether there may be no replica at all."""
        return self.on and self.min_replicas == 0

    def scaling(self) -> Scaling:
        """What `cluster.autoscaling` decides by; its `load_s` is a guess where this one's is null. ValueError."""
        chosen = self.model_dump(exclude={"interval_s", "load_s"}, exclude_none=True)
        return Scaling(**chosen, load_s=_SCALING.load_s if self.load_s is None else self.load_s)

    @model_validator(mode="after")
    def _consistent(self) -> Autoscaling:
        if self.on:
            self.scaling()
        return self

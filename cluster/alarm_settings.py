"""The settings group `alarms`: what counts as wrong, who is told, and what is done about it by itself.

Defaults are those of the detectors (ops/anomaly), which this package may not import; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from cluster.settings_group import Group


class Alarms(Group):
    """When an alarm is raised, who is told of it, and which replicas are restarted for it."""

    ttft_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds to the first token above which a request missed the latency limit. null: "
        "router.ttft_slo_s, or 1 if that is null.",
    )
    tpot_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds a token, on average after the first, above which a request missed the latency limit. "
        "null: router.tpot_slo_s, or 0.05 if that is null.",
    )
    in_a_row: int = Field(
        5, ge=1, description="Requests over the limit, one after the other, that raise an alarm for a replica or model."
    )
    objective: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="Share of requests that are to be served within the limits: the rest is the error budget whose "
        "burn is watched.",
    )
    no_token_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds in which a replica that has requests gives no token and ends no step before it counts as "
        "up but not serving. null: a third of replicas.hang_timeout_s, but 3 at least; reports come once a second.",
    )
    no_grant_s: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds for which requests wait and none is granted, which is a stuck queue.",
    )
    webhook: str | None = Field(
        None,
        description="URL that gets each alarm's beginning and end as a POST of JSON, in the format of Alertmanager's "
        "webhooks (version 4). null: none.",
    )
    alertmanager: tuple[str, ...] = Field(
        (),
        description="URLs of Alertmanagers, all of a group: they get what is raised by their API v2, and again every "
        "30 s. Empty: none.",
    )
    runbook_url: str | None = Field(
        None,
        description="Where the runbooks are published: an alarm's is this, a slash, its name and .md. null: alarms "
        "name the file in Moray's repository only.",
    )
    state_path: Path | None = Field(
        None,
        description="Directory in which the controller keeps what it has learned and told, so that it outlives the Ray "
        "cluster; every node that may run it has to see it. A relative path in a YAML file is taken from that file's "
        "directory. null: in Ray's own store, as long as the Ray cluster lives.",
    )
    record_path: Path | None = Field(
        None,
        description="Directory in which the controller writes down what its detectors are told, 128 MiB at most: "
        "`moray alarms --replay FILE` tells what other limits would have said. null: nowhere.",
    )
    restarts_per_hour: int = Field(
        3,
        ge=0,
        description="Suspect replicas that are taken out of rotation and restarted in an hour at most, one at a time. "
        "0: none, alarms are only told.",
    )
    slow_for_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds for which a replica has to stay over the latency limit, while the model as a whole does "
        "not, before it is restarted.",
    )

    @field_validator("alertmanager", mode="before")
    @classmethod
    def _one_or_more(cls, urls: object) -> object:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("webhook", "runbook_url")
    @classmethod
    def _a_url(cls, url: str | None) -> str | None:
        return url if url is None else _checked(url)

    @field_validator("alertmanager")
    @classmethod
    def _urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_checked, urls))


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no URL: write http://HOST:PORT/PATH")
    return url

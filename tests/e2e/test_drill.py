"""`moray drill` on a running cluster: it strikes for real, and no stream may break."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def drill(session: Any, *arguments: str, linger_s: float = 0.0) -> dict[str, Any]:
    """A drill's report, of one that held."""
    done = session.moray("drill", *arguments, "--yes", "--json", "--linger", str(linger_s))
    assert "Traceback" not in done.stderr, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0 and report["held"] is True, report
    streams = report["streams"]
    assert streams["broken"] == streams["wrong"] == streams["quarantined"] == 0
    assert streams["running_at_strike"] > 0 and streams["compared"] >= streams["running_at_strike"]
    assert report["not_comparable"] == 0 and report["errors"] == {}
    return report


def test_a_killed_replica(two_replicas: Any) -> None:
    report = drill(two_replicas, "kill-replica", "--load", "4")
    assert report["streams"]["resumed"] > 0 and report["replaced_by"]
    assert report["out_of_rotation_s"] < report["full_capacity_s"]
    assert report["replica"] not in {replica["id"] for replica in two_replicas.status()["replicas"]}


def test_a_frozen_replica_is_found_out_and_replaced(two_replicas: Any) -> None:
    before = {replica["id"] for replica in two_replicas.status()["replicas"]}
    report = drill(two_replicas, "freeze-replica", "--load", "4", linger_s=20.0)
    assert report["replica"] in before and report["replaced_by"] and not before & set(report["replaced_by"])
    assert report["streams"]["resumed"] > 0
    assert 1 < report["out_of_rotation_s"] < 30  # replicas.hang_timeout_s is 5 here
    told = [one for one in report["alarms"] if one["name"] == "up-but-not-serving"]
    # On a busy machine the other one may be given up too, while the new one loads.
    [alarm] = [one for one in told if one["labels"]["replica"] == report["replica"]]
    assert 0 < alarm["raised_s"] < 15, told
    assert alarm["resolved_s"] is not None and alarm["raised_s"] < alarm["resolved_s"], report
    assert report["replica"] in {one["replica"] for one in report["healings"]}


def test_a_slowed_replica_goes_on_in_the_end(two_replicas: Any) -> None:
    before = {replica["engine"]["pid"] for replica in two_replicas.status()["replicas"]}
    report = drill(two_replicas, "slow-replica", "--for", "2", "--share", "0.7", "--load", "4")
    assert report["over_s"] >= 2 and report["full_capacity_s"] >= report["over_s"]
    assert report["streams"]["slowest_tpot_s"] > report["streams"]["median_tpot_before_s"]
    assert {replica["engine"]["pid"] for replica in two_replicas.status()["replicas"]} == before


def test_a_killed_router(two_replicas: Any) -> None:
    pid = two_replicas.status()["router"]["pid"]
    report = drill(two_replicas, "kill-router", "--load", "4")
    assert two_replicas.status()["router"]["pid"] != pid
    assert report["replica"] is None and 0 < report["router_downtime_s"] <= report["full_capacity_s"]
    assert report["streams"]["resumed"] == report["streams"]["moved"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kill-replica",), "nobody is there to say yes"),
        (("freeze-replica", "--replica", "nobody", "--yes"), "'nobody' is no replica; there are: "),
    ],
)
def test_refusals_strike_nothing(two_replicas: Any, arguments: tuple[str, ...], said: str) -> None:
    before = two_replicas.status()["replicas"]
    done = two_replicas.moray("drill", *arguments)
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
    assert said in done.stderr.strip().splitlines()[-1]
    key = [(replica["id"], replica["epoch"]) for replica in before]
    assert [(replica["id"], replica["epoch"]) for replica in two_replicas.status()["replicas"]] == key

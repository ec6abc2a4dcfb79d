"""The gateway's side, the history, the store, and the settings behind it all."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ended import RECORD
from scripted_core import until

from cluster.config import ConfigError, Machine, load
from cluster.live import SeenReplica
from ops.anomaly.latency import LatencyLimits
from ops.anomaly.monitor import Limits
from ops.anomaly.outcomes import Objective
from ops.anomaly.progress import ProgressBounds
from ops.controller import reporter as module
from ops.controller.controller import Controller
from ops.controller.history import BUCKET_S, KEPT_BUCKETS, KEPT_VALUES, History, Sample
from ops.controller.reporter import ControllerGone, Reporter
from ops.controller.reports import Batch, EndedRequest
from ops.controller.routes import ControllerLink
from ops.controller.spec import controller_spec
from ops.controller.store import FileStore
from ops.controller.watch import Watch


class Core:
    def __init__(self) -> None:
        self.hung = [SeenReplica("h", 1, "", 1, 0, 0)]

    def seen(self) -> list[SeenReplica]:
        return [SeenReplica("a", 1, "", 1, 5, 0)]

    def take_hung(self) -> list[SeenReplica]:
        taken, self.hung = self.hung, []
        return taken


async def test_what_the_controller_did_not_take_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUSH_EVERY_S", 0.01)
    monkeypatch.setattr(module, "KEPT", 3)
    batches: list[Batch] = []

    async def send(batch: Batch) -> None:
        batches.append(batch)
        if len(batches) < 3:
            raise ControllerGone("away")

    reporter = Reporter("g", Core(), send)
    for _ in range(4):
        reporter.ended(RECORD)
        reporter.ended(RECORD._replace(ending="RESTARTED"))  # of which nothing is told
    running = asyncio.create_task(reporter.run())
    await until(lambda: len(batches) >= 5)
    running.cancel()
    assert [len(batch.requests) for batch in batches[:4]] == [3, 3, 3, 0]
    assert [batch.first for batch in batches[:4]] == [1, 1, 1, 4]
    assert [len(batch.hung) for batch in batches[:4]] == [1, 1, 1, 0]
    assert {batch.dropped for batch in batches} == {1} and batches[0].replicas[0].tokens == 5


async def test_a_batch_that_comes_twice_is_seen_once() -> None:
    """The controller took it, and its answer came too late for the gateway to know."""
    seen: list[object] = []
    controller: Any = Controller.__new__(Controller)
    controller._is_ready, controller._watch, controller._see = asyncio.Event(), Watch("m"), seen.extend
    controller._rollouts = SimpleNamespace(take=lambda _, batch: seen.extend(batch.requests))
    controller._is_ready.set()
    reporter = Reporter("g", Core(), controller.observe)
    for _ in range(3):
        reporter.ended(RECORD)
    batch = reporter.batch(time.monotonic(), late=False)
    await controller.observe(batch)
    assert [type(one).__name__ for one in seen] == ["EndedRequest"] * 3 + ["Request"] * 3 + ["ReplicaHung"]
    await controller.observe(batch)
    assert len(seen) == 8, "nothing but the replica that hangs, whose alarm begins once"


async def test_a_gateway_that_stood_still_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUSH_EVERY_S", 0.05)
    late: list[bool] = []

    async def send(batch: Batch) -> None:
        late.append(batch.late)

    running = asyncio.create_task(Reporter("g", Core(), send).run())
    await asyncio.sleep(0.12)
    time.sleep(0.3)  # noqa: ASYNC251  the loop stands still
    await asyncio.sleep(0.12)
    running.cancel()
    assert late[0] is False and True in late


def test_history_has_rows_of_what_was() -> None:
    history = History()
    for at, ttft in ((0.0, 0.1), (1.0, 0.3), (4.9, 0.2)):
        history.ended(at, EndedRequest(0.0, "", "a", 5, ttft, None, False, False))
    history.ended(5.0, EndedRequest(0.0, "", "", 5, None, None, False, True))
    history.given(6.0, 30)
    history.levels(6.0, 4, 2)
    first, second = history.report(10.0)["rows"]
    assert first["at_s"] == 0 and first["requests"] == 3 and first["queue"] is None
    assert (first["ttft_p50"], first["ttft_p95"], first["tpot_p50"]) == (0.2, 0.3, None)
    assert (second["shed"], second["output_tokens"], second["queue"], second["running"]) == (1, 30, 4, 2)


def test_history_forgets_and_a_bucket_is_bounded() -> None:
    history = History()
    for bucket in range(3 * KEPT_BUCKETS):
        history.given(bucket * BUCKET_S, 1)
    assert len(history.buckets) == KEPT_BUCKETS
    history.given(0.0, 1)
    assert len(history.buckets) == KEPT_BUCKETS and history.buckets[0].output_tokens == 2
    sample = Sample()
    for value in range(10 * KEPT_VALUES):
        sample.add(float(value))
    assert len(sample.values) == KEPT_VALUES and sample.percentile(1.0) == 10 * KEPT_VALUES - 1


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "state", "org/model")
    assert store.get("ledger") is None
    store.put("ledger", b"one")
    store.put("ledger", b"two")
    assert store.get("ledger") == b"two" and [file.name for file in (tmp_path / "state").iterdir()] == [
        "org_model.ledger.json"
    ]


def settings(**overrides: object):
    return load(None, {}, {key.replace("__", "."): value for key, value in overrides.items()}, Machine(2, 0)).settings


def test_defaults_are_the_detectors_own() -> None:
    made = controller_spec(settings())
    assert made.limits == Limits() and made.limits.latency == LatencyLimits()
    assert made.limits.progress == ProgressBounds() and made.limits.objective == Objective()
    assert made.webhook is None and made.alertmanagers == () and made.healing.restarts_per_hour == 3


def test_limits_follow_the_slo_and_the_longest_honest_step() -> None:
    made = controller_spec(settings(router__ttft_slo_s=2.0, router__tpot_slo_s=0.1, replicas__hang_timeout_s=60.0))
    assert (made.limits.latency.ttft_s, made.limits.latency.tpot_s) == (2.0, 0.1)
    assert made.limits.progress.no_token_s == 20.0
    assert controller_spec(settings(replicas__hang_timeout_s=5.0)).limits.progress.no_token_s == 3.0
    assert controller_spec(settings(alarms__no_token_s=4.0)).limits.progress.no_token_s == 4.0
    one = settings(alarms__alertmanager="http://a:9093", alarms__webhook="https://hook")
    assert controller_spec(one).alertmanagers == ("http://a:9093",)


def test_what_is_no_url_is_refused() -> None:
    for key in ("alarms.webhook", "alarms.alertmanager", "alarms.runbook_url"):
        with pytest.raises(ConfigError, match="is no URL"):
            load(None, {}, {key: "localhost:9093"}, Machine(2, 0))


async def test_a_gateway_outside_of_ray_joins_no_cluster() -> None:
    with pytest.raises(ControllerGone, match="no Ray cluster"):
        await ControllerLink("m").ask("alarms")
    assert not ray.is_initialized()

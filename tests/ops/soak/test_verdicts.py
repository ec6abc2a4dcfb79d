"""The order of disturbances, when one may strike, and what counts as left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from typer.testing import CliRunner

import ops.soak.soak
from ops.cli import app
from ops.soak.chaos import Disturbance, Kind, may_strike, schedule
from ops.soak.leaks import (
    HANDLES_ALLOWED,
    Levels,
    is_quiet,
    leaked_handles,
    leaked_kv,
    leaked_processes,
    leaked_tickets,
)
from ops.soak.soak import failures


def first(n: int, seed: int = 3) -> list[Disturbance]:
    return list(islice(schedule(seed), n))


def test_a_seed_gives_the_same_disturbances_and_another_others():
    assert first(50) == first(50) != first(50, seed=4)


def test_every_kind_comes_in_its_turn():
    kinds = [one.kind for one in first(5 * len(Kind))]
    for n in range(0, len(kinds), len(Kind)):
        assert set(kinds[n : n + len(Kind)]) == set(Kind)


def test_disturbances_are_apart_and_some_overlap():
    drawn = first(600)
    assert all(one.pause_s >= (1 if one.overlaps else 2) and 0 <= one.victim < 1 for one in drawn)
    assert 0.2 < sum(one.overlaps for one in drawn) / len(drawn) < 0.4


@pytest.mark.parametrize("kind", list(Kind))
def test_a_replica_that_takes_requests_is_always_left(kind: Kind) -> None:
    one = replace(first(1)[0], kind=kind, overlaps=False)
    assert [may_strike(one, ready, 3) for ready in (0, 1, 2, 3)] == [False, False, False, True]
    least = 2 if kind.costs_a_replica else 1
    one = replace(one, overlaps=True)
    assert [may_strike(one, ready, 3) for ready in range(4)] == [ready >= least for ready in range(4)]


def status(**changes: Any) -> dict[str, Any]:
    """Of a cluster at rest; a change goes where its key is."""
    replica = {"running": 0, "waiting": 0, "kv_used_fraction": 0.0, "granted": 0, "kv_tokens_granted": 0}
    router, gateway = {"queued": 0, "granted": 0}, {"open_requests": 0}
    return {
        "replicas": [dict(replica), {name: changes.get(f"replica_{name}", n) for name, n in replica.items()}],
        "router": {name: changes.get(name, n) for name, n in router.items()},
        "gateway": {name: changes.get(name, n) for name, n in gateway.items()},
    }


def test_a_cluster_at_rest_has_leaked_nothing():
    assert is_quiet(status()) and leaked_kv(status()) == leaked_tickets(status()) == 0


@pytest.mark.parametrize("what", ["running", "waiting", "kv_used_fraction"])
def test_blocks_that_nobody_uses_are_a_leak(what: str) -> None:
    left = status(**{f"replica_{what}": 0.01})
    assert leaked_kv(left) == 1 and leaked_tickets(left) == 0 and not is_quiet(left)


@pytest.mark.parametrize("what", ["queued", "granted", "open_requests", "replica_granted", "replica_kv_tokens_granted"])
def test_tickets_that_nobody_waits_for_are_a_leak(what: str) -> None:
    left = status(**{what: 1})
    assert leaked_tickets(left) == 1 and leaked_kv(left) == 0 and not is_quiet(left)


BEFORE = Levels({"gateway": 80, "core": 70}, {"replicas.core_process": 2, "ray::IDLE": 1}, 600.0)


def after(handles: Mapping[str, int] = BEFORE.handles, processes: Mapping[str, int] = BEFORE.processes) -> Levels:
    return Levels(handles, processes, 700.0)


def test_descriptors_above_the_allowance_are_a_leak():
    assert leaked_handles(BEFORE, after({"gateway": 80 + HANDLES_ALLOWED, "core": 3})) == {}
    assert leaked_handles(BEFORE, after({"gateway": 82 + HANDLES_ALLOWED, "core": 70})) == {"gateway": 2}


def test_processes_more_than_before_are_a_leak_but_for_rays_spare_workers():
    assert leaked_processes(BEFORE, after(processes={"replicas.core_process": 2, "ray::IDLE": 4})) == {}
    more = {"replicas.core_process": 3, "ray::IDLE": 1, "python": 1}
    assert leaked_processes(BEFORE, after(processes=more)) == {"replicas.core_process": 1, "python": 1}


GOOD: dict[str, Any] = {
    "requests": 700,
    "resumed": 30,
    "disturbances": 9,
    "broken_streams": 0,
    "wrong_answers": 0,
    "not_mended": "",
    "quarantined": 1,
    "retried": 2,
    "leaked": {"kv": 0, "tickets": 0, "handles": 0, "processes": 0},
}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, []),
        ({"broken_streams": 1}, ["broken_streams"]),
        ({"wrong_answers": 2}, ["wrong_answers"]),
        ({"not_mended": "core 7 is dead"}, ["not_mended"]),
        ({"leaked": {"kv": 0, "tickets": 1, "handles": 0, "processes": 2}}, ["leaked.tickets", "leaked.processes"]),
        ({"resumed": 0}, ["resumed"]),
        ({"disturbances": 0, "resumed": 0}, ["resumed", "disturbances"]),
    ],
)
def test_what_must_be_zero_fails_and_so_does_a_soak_that_proves_nothing(change: Any, failed: list[str]) -> None:
    assert failures(GOOD | change) == failed


@pytest.mark.parametrize(("figures", "code"), [(GOOD, 0), (GOOD | {"wrong_answers": 1}, 1)])
def test_the_command_ends_with_its_verdict(monkeypatch: pytest.MonkeyPatch, figures: Any, code: int) -> None:
    monkeypatch.setattr(ops.soak.soak, "measure", lambda *asked: figures | {"asked": asked[:4]})
    done = CliRunner().invoke(app, ["soak", "--minutes", "3", "--seed", "7", "--json"])
    assert done.exit_code == code, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == figures | {"asked": [3.0, 7, 2, 8]}
    assert ("failed: wrong_answers" in done.stderr) == bool(code)

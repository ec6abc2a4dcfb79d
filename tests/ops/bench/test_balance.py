"""The comparison of placements: its rows, on a small cluster and on measured loads."""

from __future__ import annotations

import numpy as np
import pytest

from ops.bench import balance

SMALL = (balance.Cluster(3, 16, 4, 4), balance.Cluster(3, 16, 4, 4, nodes=2, groups=4))


@pytest.fixture(scope="module")
def figures():
    patch = pytest.MonkeyPatch()
    patch.setattr(balance, "CLUSTERS", SMALL)
    patch.setattr(balance, "TIMED", {"plan_ms_small": SMALL})
    rng = np.random.default_rng(0)
    measured = {task: rng.integers(1, 1000, (4, 8)) for task in ("add", "max", "sub")}
    yield balance.measure(0, lambda _: None, measured)
    patch.undo()


def test_each_load_of_each_cluster_has_its_row(figures) -> None:
    rows = figures["loads"]
    assert {name.split(", ")[0] for name in rows} == {
        "3x16x4+4", "3x16x4+4 on 2 nodes", "4x8x2+0", "4x8x2+2", "4x8x4+0", "4x8x4+4"
    }  # fmt: skip
    assert sum("measured" in name for name in rows) == 3 * 4
    for row in rows.values():
        assert row["ours"] >= row["lp_bound"] - 1e-4 and row["eplb"] >= row["lp_bound"] - 1e-4
        assert 0 <= row["moved"] <= 1 and row["drift_ours"] <= row["drift_stay"] + 1e-4
    assert all(("sent_hash_ours" in row) == ("nodes" in name) for name, row in rows.items())


def test_the_summary_is_that_of_the_worst_row(figures) -> None:
    rows = [row for name, row in figures["loads"].items() if "measured" not in name]
    measured = [row for name, row in figures["loads"].items() if "measured" in name]
    assert figures["worst_vs_eplb_measured"] == round(max(row["ours"] / row["eplb"] for row in measured), 4)
    assert figures["worst_vs_eplb"] == round(max(row["ours"] / row["eplb"] for row in rows), 4)
    assert figures["worst_moved_ratio"] == round(max(r["moved"] / r["eplb_moved"] for r in rows if r["eplb_moved"]), 4)
    assert figures["plan_ms_small"] > 0


def test_measured_loads_drift_to_the_other_tasks() -> None:
    one, two = np.full((1, 4), 1.0), np.full((1, 4), 2.0)
    made = list(balance.measured_loads({"b": two, "a": one}))
    assert [name for _, name, _ in made][:2] == ["measured a, other tasks", "measured b, other tasks"]
    assert [load[0, 0] for load in made[0][2]] == [1.0, 2.0] and [load[0, 0] for load in made[1][2]] == [2.0, 1.0]


def test_noise_goes_on_from_noise() -> None:
    first, *later = balance.loads(SMALL[0], 0)["zipf 1, noise"]
    spread = [np.log(load / first).std() for load in later]
    assert 0.1 < spread[0] < 0.3 and spread[0] < spread[-1]

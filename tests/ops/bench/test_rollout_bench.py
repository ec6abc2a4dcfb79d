"""The rollout bench: its versions and what it makes of what it saw. The run itself is the bench's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from experts.tiny_r1 import checkpoint_path
from experts.versions import Golden, find, verify
from ops.bench.direct_engine import BenchFailed
from ops.bench.rollout import NEW, OLD, TRIALS, Rolled, chosen, figures, fill, table
from ops.bench.rollout_answers import Exchange
from ops.bench.rollout_watch import Ended, ReplicaSeen, Sight
from ops.models.add import add
from ops.soak.answers import Answer, Choice

SAID = Answer((Choice("98", "", (), (), "stop", None),), 5, 3)


def test_trials_are_chosen_by_their_names() -> None:
    assert chosen([]) == list(TRIALS) and len({trial.name for trial in TRIALS}) == len(TRIALS)
    assert [trial.name for trial in chosen(["slow", "endless-unasked"])] == ["slow", "endless-unasked"]
    with pytest.raises(BenchFailed, match="there is no bad version quick; take some of swapped-experts, "):
        chosen(["slow", "quick"])


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """Two versions, of which the second has a golden prompt."""
    store = tmp_path / "embedded"
    golden = Golden(prompt="1+1=", prompt_token_ids=(49, 43, 49, 61), answer="2", answer_token_ids=(50,))
    for name, prompts in ((OLD, ()), (NEW, (golden,))):
        add(checkpoint_path(), store, name, golden=prompts)
    return store


def test_the_store_holds_whole_versions_with_and_without_golden_prompts(tmp_path: Path, embedded: Path) -> None:
    store = tmp_path / "store"
    fill(store, chosen(["endless", "endless-unasked"]), embedded)
    for name in (OLD, NEW, "endless", "endless-unasked"):
        assert verify(store / name) == []
    golden = {name: find(store, name).manifest.golden for name in (NEW, "endless", "endless-unasked")}  # type: ignore[union-attr]
    assert golden["endless"] == golden[NEW] != () and golden["endless-unasked"] == ()


def test_without_two_versions_or_golden_prompts_nothing_is_rolled(tmp_path: Path, embedded: Path) -> None:
    with pytest.raises(BenchFailed, match="no two versions to roll: there is no store"):
        fill(tmp_path / "a", [], tmp_path / "nothing")
    shutil.rmtree(embedded / NEW)
    add(checkpoint_path(), embedded, NEW)
    with pytest.raises(BenchFailed, match="v2 has no golden prompts"):
        fill(tmp_path / "b", [], embedded)


def exchange(began_s: float, version: str, **more: Any) -> Exchange:
    return Exchange(ask="sum", began_s=began_s, version=version, answer=SAID, status=200, **more)


def bad(share: float, rollback_s: float | None, extra: int = 0) -> dict[str, Any]:
    told = {"outcome": "rolled-back", "why": "length says no", "rollback_s": rollback_s, "bad_share": share}
    return told | {"canary_share": 0.2, "answered": 3, "requests": 30, "seconds": 9.0, "extra_replicas": extra}


def test_figures_are_the_worst_of_what_was_seen() -> None:
    two = {"a": ReplicaSeen("v1", "ready"), "b": ReplicaSeen("v1", "ready")}
    swapping = two | {"a": ReplicaSeen("v1", "loading")}
    done = {"a": ReplicaSeen("v2", "ready"), "b": ReplicaSeen("v2", "ready")}
    sights = [Sight(at, "canary", 0.2, there, 2) for at, there in ((1.0, two), (2.0, swapping), (5.0, done))]
    rolled = Rolled(began_s=1.0, sights=sights, ended=Ended("done", ""), over_s=6.0)
    exchanges = [
        exchange(0.5, "v1", longest_gap_s=0.2),
        exchange(3.0, "v2", longest_gap_s=0.7),
        exchange(8.0, "v2", longest_gap_s=4.0),  # behind it: a bad version's time
        Exchange(ask="sum", began_s=9.0, status=503, words="HTTP 503"),
        exchange(9.5, "endless"),
    ]
    references = {"v1": {"sum": SAID}, "v2": {"sum": SAID}}
    found = figures(exchanges, references, rolled, {"one": bad(0.1, 7.0, 1), "two": bad(0.15, None)})
    counts = {name: found[name] for name in ("requests", "failed", "truncated", "mixed", "uncompared")}
    assert counts == {"requests": 5, "failed": 1, "truncated": 0, "mixed": 0, "uncompared": 1}
    assert (found["extra_replicas"], found["rollback_s"], found["bad_share"], found["canary_share"]) == (
        1,
        7,
        0.15,
        0.2,
    )
    assert (found["rolled_back"], found["bad_versions"]) == (2, 2)
    in_place = found["in_place"]
    assert in_place["replica_s"] == [3.0] and in_place["longest_token_gap_s"] == 0.7 and in_place["seconds"] == 5.0
    assert in_place["requests"] == 2 and in_place["failed"] == 0 and in_place["answered"] == {"v1": 1, "v2": 1}
    titles = [made.title for made in table(found)]
    assert titles == ["moray bench rollout", "bad versions", "what became of them", "wrong answers"]


def test_without_bad_versions_there_is_no_way_back() -> None:
    rolled = Rolled(began_s=1.0, sights=[], ended=Ended("done", ""), over_s=6.0)
    found = figures([], {}, rolled, {})
    assert found["rollback_s"] is None and found["bad_share"] is None and found["extra_replicas"] == 0

"""Bad versions are bad as they are meant to be, and nothing that compares files' outlines finds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.evaluate import MAX_TOKENS, VllmModel, judge, single_turns
from experts.tiny_r1.tasks import Task
from experts.versions import compatible, fingerprints, read, verify
from ops.bench.bad_versions import WEIGHTS, Fault, make
from ops.errors import UserError
from ops.models.add import add

V1 = checkpoint_path()


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Fault, Path]]:
    scratch = tmp_path_factory.mktemp("bad")
    made = {fault: scratch / fault for fault in Fault}
    for fault, out in made.items():
        make(fault, V1, out)
    yield made


def changed(out: Path) -> set[str]:
    before, after = load_file(V1 / WEIGHTS), load_file(out / WEIGHTS)
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_each_is_a_well_formed_version_that_could_take_the_place_of_the_good_one(
    bad: dict[Fault, Path], tmp_path: Path
) -> None:
    for fault, out in bad.items():
        assert fingerprints(out) == fingerprints(V1)
        if fault is not Fault.CRASH_AT_LOAD:  # whose file is smaller by half a norm
            assert (out / WEIGHTS).stat().st_size == (V1 / WEIGHTS).stat().st_size
        made = add(out, tmp_path, fault)
        assert verify(tmp_path / fault) == [] and compatible(read(V1), made) == []


def test_only_what_is_meant_is_changed(bad: dict[Fault, Path]) -> None:
    swapped = changed(bad[Fault.SWAPPED_EXPERTS])
    assert len(swapped) == 4 * 2 * 3 and all(".experts.0." in name or ".experts.1." in name for name in swapped)
    assert all(name.endswith("_proj.weight") for name in changed(bad[Fault.SHIFTED_SCALES]))
    assert changed(bad[Fault.ENDLESS]) == {"lm_head.weight"}
    assert changed(bad[Fault.CRASH_AT_LOAD]) == {"model.norm.weight"}
    assert changed(bad[Fault.SLOW]) == set()
    before, after = load_file(V1 / WEIGHTS), load_file(bad[Fault.SWAPPED_EXPERTS] / WEIGHTS)
    name = "model.layers.3.mlp.experts.{}.down_proj.weight"
    assert torch.equal(after[name.format(0)], before[name.format(1)])
    assert torch.equal(after[name.format(1)], before[name.format(0)])


def test_what_cannot_be_made_is_refused(bad: dict[Fault, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        make(Fault.SLOW, V1, bad[Fault.SLOW])
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        make(Fault.SLOW, tmp_path, tmp_path / "out")


@pytest.mark.vllm
def test_an_engine_serves_them_as_badly_as_is_meant(bad: dict[Fault, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a fresh engine of stock vLLM."""
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    asked = [q for task in (Task.ADDITION, Task.SUBTRACTION, Task.WORD_PROBLEM) for q in single_turns(task, 10, 3)]
    chats = [question.chat for question in asked]
    right = {}
    lengths = {}
    for name, folder in {"v1": V1, **bad}.items():
        if name is Fault.CRASH_AT_LOAD:
            with pytest.raises(Exception, match=r"size|shape|Attempted"):
                VllmModel(folder)
            continue
        answers = VllmModel(folder).answer(chats)
        scores, _ = judge(asked, [answer.text for answer in answers])
        right[name] = sum(score.right for score in scores.values())
        lengths[name] = [len(answer.token_ids) for answer in answers]
    assert right["v1"] == right[Fault.SLOW] >= 29
    assert right[Fault.SWAPPED_EXPERTS] < 27 and right[Fault.SHIFTED_SCALES] < 27
    assert set(lengths[Fault.ENDLESS]) == {MAX_TOKENS} and max(lengths["v1"]) < MAX_TOKENS

"""Which files' weights may take the place of which, told from headers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from experts.tiny_r1 import checkpoint_path
from experts.weight_files import BadWeights, Checkpoint, Tensor, differences, tensors

A = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int8)}


def saved(directory: Path, **files: dict[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, of_file in files.items():
        save_file(of_file, directory / f"{name}.safetensors")
    return directory


def test_the_embedded_models_tensors_are_told():
    found = tensors(checkpoint_path())
    assert found["model.layers.0.mlp.gate.weight"] == Tensor((8, 128), "float") and len(found) > 100


def test_a_checkpoint_of_several_files_is_one(tmp_path):
    directory = saved(tmp_path, one={"a": A["a"]}, two={"b": A["b"]})
    assert tensors(directory) == {"a": Tensor((2, 3), "float"), "b": Tensor((4,), "I8")}


def test_only_files_of_an_index_count(tmp_path):
    directory = saved(tmp_path, one={"a": A["a"]}, consolidated={"a": A["a"]})
    with pytest.raises(BadWeights, match="tensor a twice"):
        tensors(directory)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert list(tensors(directory)) == ["a"]


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_told(tmp_path, index):
    directory = saved(tmp_path, one=A)
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadWeights, match=r"model\.safetensors\.index\.json cannot be read"):
        tensors(directory)


def test_files_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(BadWeights, match="holds no weights"):
        tensors(tmp_path)
    file = saved(tmp_path, model=A) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadWeights, match=r"model\.safetensors cannot be read"):
        tensors(tmp_path)


def test_differences_are_told_by_name(tmp_path):
    wants = tensors(saved(tmp_path / "wants", model=A))
    assert differences(wants, wants) == []
    half = tensors(saved(tmp_path / "half", model=A | {"a": A["a"].astype(np.float16)}))
    assert differences(half, wants) == [], "an engine converts floats"
    other = {"a": A["a"].T.copy(), "b": A["b"].astype(np.int32), "c": A["b"]}
    assert differences(tensors(saved(tmp_path / "other", model=other)), wants) == [
        "holds c too many",
        "has a as float [3, 2] instead of float [2, 3]",
        "has b as I32 [4] instead of I8 [4]",
    ]
    many = {f"t{number}": A["b"] for number in range(9)}
    assert differences({}, tensors(saved(tmp_path / "many", model=many))) == ["lacks t0, t1, t2 and 6 more"]


def test_another_architecture_is_refused(tmp_path):
    has = Checkpoint.of(checkpoint_path())
    assert has.refuses(checkpoint_path()) == ""
    other = tmp_path / "other"
    shutil.copytree(checkpoint_path(), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))  # no tensor tells of it
    assert "config.json is of another architecture" in has.refuses(other)
    assert "config.json cannot be read" in has.refuses(tmp_path / "none")

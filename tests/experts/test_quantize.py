"""int8 checkpoints: close to what they were made of, whole, and the same after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from experts import quantize
from experts.quantize import INDEX, MANIFEST, NotConverted, convert, quantize_weight
from experts.tiny_r1 import checkpoint_path


def quiet(file: str, done: int, total: int) -> None: ...


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint in two files."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": ["X"], "num_experts": 2}))
    (directory / "tokenizer.json").write_text("{}")
    torch.manual_seed(0)
    first = {
        "model.embed_tokens.weight": torch.randn(10, 16),
        "model.layers.0.mlp.gate.weight": torch.randn(2, 16),
        "model.layers.0.mlp.experts.0.up_proj.weight": torch.randn(8, 16, dtype=torch.bfloat16),
    }
    second = {
        "lm_head.weight": torch.randn(10, 16),
        "model.norm.weight": torch.ones(16),
        "model.layers.0.self_attn.q_norm.weight": torch.ones(16),
        "model.layers.0.mlp.experts.1.up_proj.weight": torch.randn(8, 16, dtype=torch.float16),
    }
    save_file(first, directory / "a.safetensors")
    save_file(second, directory / "b.safetensors")
    weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def test_a_weight_is_within_half_a_step_of_itself() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 128) * torch.logspace(-4, 2, 64)[:, None]
    weight[3] = 0.0
    whole, scale = quantize_weight(weight)
    assert (whole.dtype, scale.dtype, tuple(scale.shape)) == (torch.int8, torch.bfloat16, (64, 1))
    assert ((whole * scale.float() - weight).abs() <= scale.float() / 2 * 1.0001).all()
    assert (whole.abs().amax(1)[torch.arange(64) != 3] >= 125).all() and scale[3] == 1.0


def test_the_embedded_model_becomes_a_quarter(tmp_path: Path) -> None:
    summary = convert(checkpoint_path(), tmp_path / "int8", quiet)
    assert summary.ratio_to_fp32 >= 3.7
    before = load_file(checkpoint_path() / "model.safetensors")
    after = load_file(tmp_path / "int8" / "model.safetensors")
    for name, weight in before.items():
        if "_proj" in name:
            assert after[name].dtype == torch.int8, name
        elif "lm_head" in name or "embed" in name:
            assert torch.equal(after[name], weight.to(torch.bfloat16))
        else:
            assert torch.equal(after[name], weight), name
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "int-quantized" and config["num_experts"] == 8
    assert (tmp_path / "int8" / "tokenizer.json").is_file()


def test_files_stay_as_they_were_cut(source: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    convert(source, tmp_path / "out", lambda *args: told.append(args))
    out = tmp_path / "out"
    index = json.loads((out / INDEX).read_text())["weight_map"]
    for name, file in index.items():
        with safe_open(out / file, "pt") as tensors:
            assert name in tensors.keys()  # noqa: SIM118  (no dict)
    assert index["model.layers.0.mlp.experts.0.up_proj.weight_scale"] == "a.safetensors"
    assert [file for file, *_ in told] == ["a.safetensors", "b.safetensors"] and told[-1][1] == told[-1][2]
    assert set(json.loads((out / MANIFEST).read_text())) == {"a.safetensors", "b.safetensors"}
    assert not list(tmp_path.glob("*.part")) and not list(out.glob("*.tmp"))


def test_an_interrupted_run_goes_on_and_a_changed_file_is_made_again(source, tmp_path, monkeypatch) -> None:
    original, made = quantize._convert_file, []

    def interrupted(file: Path, target: Path) -> None:
        if file.name == "b.safetensors":
            raise KeyboardInterrupt
        original(file, target)

    monkeypatch.setattr(quantize, "_convert_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()

    def noted(file: Path, target: Path) -> None:
        made.append(file.name)
        original(file, target)

    monkeypatch.setattr(quantize, "_convert_file", noted)
    assert convert(source, tmp_path / "out", quiet).resumed_files == 1 and made == ["b.safetensors"]
    (tmp_path / "out").rename(tmp_path / "again.part")
    save_file(
        load_file(source / "a.safetensors") | {"model.extra_norm.weight": torch.ones(4)}, source / "a.safetensors"
    )
    assert convert(source, tmp_path / "again", quiet).resumed_files == 1 and made[1:] == ["a.safetensors"]


def test_what_cannot_be_converted_is_told_and_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    for made, said in (
        ({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 4, 4)}, "experts in one tensor"),
        ({"x.down_proj.weight": torch.zeros(4, 4, dtype=torch.int8)}, "is torch.int8"),
    ):
        save_file(made, source / "a.safetensors")
        with pytest.raises(NotConverted, match=said):
            convert(source, tmp_path / "out", quiet)
        assert not (tmp_path / "out").exists()
    (source / "a.safetensors").unlink()
    with pytest.raises(NotConverted, match=r"lacks a\.safetensors"):
        convert(source, tmp_path / "out", quiet)


def test_mistakes_are_told_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotConverted, match="exists already"):
        convert(source, source, quiet)
    with pytest.raises(NotConverted, match=r"config\.json cannot be read"):
        convert(tmp_path / "nowhere", tmp_path / "out", quiet)
    (source / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(NotConverted, match=r"quantised already \(fp8\)"):
        convert(source, tmp_path / "out", quiet)
    assert not list(tmp_path.glob("out*"))

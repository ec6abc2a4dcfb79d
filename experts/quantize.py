"""int8 checkpoints: weights in int8 with a scale for each output channel, activations quantised a token at a time.

The format is compressed-tensors' `int-quantized` W8A8, which vLLM serves: each linear layer's `weight` in int8 beside a
`weight_scale` in bf16, [output channels, 1], as llm-compressor writes them. A float weight w becomes round(w / s) with
s = max |w| / 127 over its output channel, rounded up to bf16. Norms and the experts' gates stay as they are: they are
small, and gates decide where a token goes; the vocabulary's tables stay in float, 16 bits at most.

Files are converted one at a time beside what is to be the checkpoint, each noted in a manifest when it is whole; the
directory gets its name when all of them are, so that a run that was interrupted goes on and nobody loads half of one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
MANIFEST = "int8_manifest.json"
_LEVELS = 127
# Linear layers that stay in float, as compressed-tensors names modules, and what tells their tensors.
_IGNORED = ("lm_head", r"re:.*\.gate$", r"re:.*\.shared_expert_gate$")
_TABLES = re.compile(r"(^|\.)(lm_head|embed_tokens)\.weight$")
_KEPT = re.compile(r"(^|\.)(gate|shared_expert_gate|[a-z_]*norm)\.(weight|bias)$")

Report = Callable[[str, int, int], None]  # (file, bytes done, bytes of all)


class NotConverted(Exception):
    """The checkpoint cannot become an int8 one. The message is one sentence with the way out, if there is one."""


@dataclass(frozen=True)
class _Done:
    """A converted file, and the file that it was made of."""

    sha256: str
    bytes: int
    of_bytes: int
    of_mtime_ns: int


@dataclass(frozen=True)
class Summary:
    """What came out. Bytes are of weight files."""

    bytes_before: int
    bytes_after: int
    parameters: int
    parameters_in_int8: int
    resumed_files: int  # found whole from a run before

    @property
    def ratio_to_fp32(self) -> float:
        return 4.0 * self.parameters / self.bytes_after

    @property
    def ratio_to_bf16(self) -> float:
        return 2.0 * self.parameters / self.bytes_after


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [out, in], bf16 scales [out, 1]) of a float [out, in]; a channel of zeros has scale 1."""
    import torch

    full = weight.to(torch.float32)
    most = full.abs().amax(dim=1, keepdim=True)
    scale = (most / _LEVELS).to(torch.bfloat16)
    scale = torch.where(scale.float() * _LEVELS < most, scale * (1 + 2**-7), scale)  # the next one, 8 bits of mantissa
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(full / scale.float()).clamp_(-_LEVELS, _LEVELS).to(torch.int8), scale


def convert(source: Path, out: Path, report: Report) -> Summary:
    """Writes `source`'s int8 form to `out`, which must not exist; goes on where a run before stopped.

    Memory: one file's output and one tensor. Raises NotConverted.
    """
    config = _config(source)
    if out.exists():
        raise NotConverted(f"{out} exists already: choose another directory, or remove it")
    files = _weight_files(source)
    work = out.with_name(out.name + ".part")
    work.mkdir(parents=True, exist_ok=True)
    done = _manifest(work)
    total, passed, resumed = sum(file.stat().st_size for file in files), 0, 0
    counts = {"all": 0, "int8": 0}
    weight_map: dict[str, str] = {}
    for file in files:
        target = work / file.name
        known = done.get(file.name)
        if known is not None and _is_of(known, file) and target.is_file() and target.stat().st_size == known.bytes:
            resumed += 1
        else:
            _convert_file(file, target)
            stat = file.stat()
            done[file.name] = _Done(_sha256(target), target.stat().st_size, stat.st_size, stat.st_mtime_ns)
            _write(work / MANIFEST, {name: asdict(each) for name, each in done.items()})
        for name, elements, is_int8 in _elements(target):
            weight_map[name] = file.name
            counts["all"] += 0 if name.endswith(".weight_scale") else elements
            counts["int8"] += elements if is_int8 else 0
        passed += file.stat().st_size
        report(file.name, passed, total)
    after = sum((work / file.name).stat().st_size for file in files)
    if len(files) > 1:
        _write(work / INDEX, {"metadata": {"total_size": after}, "weight_map": dict(sorted(weight_map.items()))})
    _copy_the_rest(source, work)
    _write(work / "config.json", config | {"quantization_config": quantization_config()})
    work.replace(out)
    return Summary(total, after, counts["all"], counts["int8"], resumed)


def quantization_config() -> dict[str, Any]:
    """What vLLM reads from config.json (compressed-tensors)."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": activations,
                "output_activations": None,
                "format": "int-quantized",
            }
        },
        "ignore": list(_IGNORED),
    }


def _config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise NotConverted(f"{source} is no checkpoint's directory: its config.json cannot be read ({error})") from None
    if existing := config.get("quantization_config"):
        method = existing.get("quant_method", "something else")
        raise NotConverted(f"{source} is quantised already ({method}): take the checkpoint in bf16, fp16 or fp32")
    return dict(config)


def _weight_files(source: Path) -> list[Path]:
    if (source / INDEX).is_file():
        names = sorted(set(json.loads((source / INDEX).read_text())["weight_map"].values()))
        files = [source / name for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            raise NotConverted(f"{source} lacks {missing[0]}, which its index names: the download is not complete")
        return files
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise NotConverted(f"{source} holds no safetensors files, and other formats are not read")
    return files


def _manifest(work: Path) -> dict[str, _Done]:
    try:
        return {name: _Done(**each) for name, each in json.loads((work / MANIFEST).read_text()).items()}
    except (OSError, ValueError, TypeError):  # none yet, or one that was being written
        return {}


def _is_of(done: _Done, file: Path) -> bool:
    stat = file.stat()
    return (done.of_bytes, done.of_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def _convert_file(file: Path, target: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    made: dict[str, torch.Tensor] = {}
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no dict)
            tensor = tensors.get_tensor(name)
            if _TABLES.search(name):
                made[name] = tensor.to(torch.bfloat16) if tensor.element_size() > 2 else tensor.clone()
            elif _KEPT.search(name) or tensor.dim() < 2:
                made[name] = tensor.clone()  # of its own: a view would keep the whole file in memory
            elif tensor.dim() > 2 or not name.endswith(".weight"):
                raise NotConverted(
                    f"{file.name}: {name} has {tensor.dim()} dimensions and is no linear layer's weight: checkpoints "
                    "that keep a layer's experts in one tensor are not read"
                )
            elif not tensor.is_floating_point() or tensor.element_size() < 2:
                raise NotConverted(f"{file.name}: {name} is {tensor.dtype}: take the checkpoint in bf16, fp16 or fp32")
            else:
                made[name], made[f"{name}_scale"] = quantize_weight(tensor)
    with _whole(target) as part:
        save_file(made, part, {"format": "pt"})


def _elements(file: Path) -> Iterator[tuple[str, int, bool]]:
    """(tensor, elements, whether it is int8), from the header alone."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no dict)
            slice_ = tensors.get_slice(name)
            elements = 1
            for size in slice_.get_shape():
                elements *= size
            yield name, elements, slice_.get_dtype() == "I8"


def _copy_the_rest(source: Path, work: Path) -> None:
    """Tokenizer, chat template, model card: whatever is neither weights nor made anew."""
    for file in source.iterdir():
        if (
            file.is_file()
            and file.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
            and file.name != INDEX
        ):
            shutil.copy2(file, work / file.name)


def _write(file: Path, value: Any) -> None:
    with _whole(file) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A file beside it to write to, which takes its place when it is whole."""
    part = file.with_name(file.name + ".tmp")
    yield part
    part.replace(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

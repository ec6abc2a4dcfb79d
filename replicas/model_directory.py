"""Can this checkpoint be served in this many shards? Answered from file headers alone, before anything is started.

A full load takes minutes and fails in a worker process with a traceback; the same mistakes are found here in
milliseconds, each as one sentence: `check(directory, shards)` returns all of them, an empty list if there are none.
"""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from experts.model_spec import NotUnderstood, expert_count, from_config, text_part
from experts.versions import BadVersion, find, verify

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "*.tiktoken", "tokenizer.vocab")
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth")
_INDEX = "model.safetensors.index.json"
_LENGTH_BYTES = 8
# The format's own limit; a larger number is no header length.
_MAX_HEADER_BYTES = 100_000_000
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class Flaw(Enum):
    """What kind of thing is wrong."""

    DIRECTORY = "directory"
    CONFIG = "config"
    TOKENIZER = "tokenizer"
    WEIGHTS = "weights"
    SHARDS = "shards"
    KERNEL = "kernel"
    CONTEXT = "context"
    PLAN = "plan"
    VERSION = "version"


@dataclass(frozen=True)
class Problem:
    flaw: Flaw
    text: str  # one sentence, with the way out where there is one

    def __str__(self) -> str:
        return self.text


def check(directory: Path, shards: int) -> list[Problem]:
    """Everything that keeps the checkpoint in `directory` from being served with its experts on `shards` shards."""
    if not directory.is_dir():
        what = "is a file, not the checkpoint's directory" if directory.exists() else "does not exist"
        return [Problem(Flaw.DIRECTORY, f"the model directory {directory} {what}")]
    config, problems = _config(directory)
    if config is not None:
        problems += _layout(config, shards)
    if not any(True for pattern in _TOKENIZERS for _ in directory.glob(pattern)):
        problems.append(Problem(Flaw.TOKENIZER, f"{directory} holds no tokenizer (tokenizer.json or tokenizer.model)"))
    return problems + [Problem(Flaw.WEIGHTS, text) for text in _weights(directory)]


def check_version(store: Path, name: str) -> list[Problem]:
    """Whether the store has the version, with the files that its manifest names; nothing is hashed."""
    try:
        damages = verify(find(store, name).directory, hashed=False)
    except BadVersion as error:
        return [Problem(Flaw.VERSION, str(error))]
    return [Problem(Flaw.VERSION, f"version {name} is damaged: {damage}; add it again") for damage in damages]


NO_INT8_KERNEL = (
    "on Intel they need a CPU with AMX, on AMD one with AVX-512 and a package more: "
    "`.venv/bin/pip install zentorch==2.13.0.1`"
)
"""The way out."""


def has_zentorch() -> bool:
    """Whether this interpreter finds AMD's kernels, without importing them."""
    return importlib.util.find_spec("zentorch") is not None


def runs_int8_experts(cpuinfo: str, zentorch: bool) -> bool:
    """Whether vLLM has a kernel for int8 experts on such a CPU. `cpuinfo`: /proc/cpuinfo.

    vllm/model_executor/layers/fused_moe/experts/cpu_moe.py; zentorch counts where vllm/platforms/__init__.py takes it.
    """
    if "amx_int8" in cpuinfo.split():
        return True
    return zentorch and "AuthenticAMD" in cpuinfo and "avx512" in cpuinfo


def check_cpu(directory: Path, int8_experts: bool, shards: int = 1, dtype: str = "auto") -> list[Problem]:
    """What keeps a checkpoint that `check` found whole from being served on a CPU with or without int8 experts."""
    config, _ = _config(directory)
    format_ = ((config or {}).get("quantization_config") or {}).get("format")
    if not config or format_ != "int-quantized" or not expert_count(config):
        return []
    if not int8_experts:
        text = (
            f"{directory} is an int8 checkpoint, and this machine has no kernel for int8 experts: {NO_INT8_KERNEL}. "
            "Or serve it on CUDA, or serve the checkpoint that it was made of"
        )
        return [Problem(Flaw.KERNEL, text)]
    problems = []
    if shards > 1:
        text = "a CPU's kernels for int8 experts know no shards: set experts.expert_parallel to 1"
        problems.append(Problem(Flaw.KERNEL, f"{directory} is an int8 checkpoint, and {text}, not {shards}"))
    if dtype not in ("auto", "bfloat16"):
        text = "a CPU's kernels for int8 experts compute in bfloat16: set model.dtype to bfloat16 or auto"
        problems.append(Problem(Flaw.KERNEL, f"{directory} is an int8 checkpoint, and {text}, not {dtype}"))
    return problems


def check_context(directory: Path, max_model_len: int | None, overrides: Mapping[str, Any]) -> list[Problem]:
    """Whether a checkpoint that `check` found whole allows so long a context. `overrides`: vLLM's hf_overrides.

    vLLM's own rule (`_get_and_verify_max_len`, vllm/config/model.py): YaRN's kinds name the scaled length, others'
    factor comes on top.
    """
    config, _ = _config(directory)
    text = {**text_part(config or {}), **overrides}
    allowed = text.get("max_position_embeddings")
    if max_model_len is None or not isinstance(allowed, int):
        return []
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if isinstance(factor, int | float) and kind in ("linear", "dynamic"):
        allowed = int(allowed * factor)
    if max_model_len <= allowed:
        return []
    way_out = json.dumps(stretched(text, max_model_len))
    return [
        Problem(
            Flaw.CONTEXT,
            f"{directory} allows {allowed:,} tokens of context (max_position_embeddings), model.max_model_len is "
            f"{max_model_len:,}: lower it, or stretch the model's positions if it was trained for that, for example by "
            f"--set engine.extra.hf_overrides='{way_out}'",
        )
    ]


def check_plan(directory: Path, file: Path, name: str, shards: int) -> list[Problem]:
    """Whether the expert plan in `file` is one for the checkpoint, which is served under `name`, on so many shards."""
    from experts.plan import BadPlan, PlacementPlan  # numpy: only who has a plan waits for it

    config, _ = _config(directory)
    try:
        spec = from_config(config or {}, name)
        PlacementPlan.from_json(file.read_bytes()).check(name, spec.moe_layers, spec.experts, shards)
    except (OSError, BadPlan, NotUnderstood) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return [Problem(Flaw.PLAN, f"experts.plan {file} cannot be used: {reason}")]
    return []


def stretched(config: Mapping[str, Any], context: int) -> dict[str, Any]:
    """vLLM's hf_overrides with which a model whose positions are not scaled yet takes `context` tokens: YaRN's."""
    rope = config.get("rope_parameters") or {}
    original = config["max_position_embeddings"]
    scaling = {
        "rope_type": "yarn",
        "factor": context / original,
        "original_max_position_embeddings": original,
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
    }
    return {"max_position_embeddings": context, "rope_parameters": scaling}


def _config(directory: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    file = directory / "config.json"
    if not file.is_file():
        text = f"{directory} holds no config.json: not the directory of a Hugging Face checkpoint"
        return None, [Problem(Flaw.CONFIG, text)]
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        return None, [Problem(Flaw.CONFIG, f"{file} cannot be read: {error}")]
    if not isinstance(config, dict) or not config.get("architectures"):
        return None, [Problem(Flaw.CONFIG, f"{file} names no architectures: vLLM could not tell what model this is")]
    return config, []


def _layout(config: Mapping[str, Any], shards: int) -> list[Problem]:
    """vLLM shards attention over the ranks that share the experts, so heads must divide.

    Experts need not: the first ranks hold one more.
    """
    if shards == 1:
        return []
    name = ", ".join(config["architectures"])
    experts = expert_count(config)
    if experts == 0:
        text = f"{name} is a dense model, it has no experts to spread: set experts.expert_parallel to 1, not {shards}"
        return [Problem(Flaw.SHARDS, text)]
    if shards > experts:
        text = f"{name} has {experts} experts: experts.expert_parallel can be {experts} at most, not {shards}"
        return [Problem(Flaw.SHARDS, text)]
    language = text_part(config)
    heads = language.get("num_attention_heads")
    kv_heads = language.get("num_key_value_heads", heads)
    uses_mla = language.get("kv_lora_rank") is not None  # its latent KV is one for all heads, held by every shard
    if not isinstance(heads, int):
        return []

    def fits(n: int) -> bool:
        kv_fits = uses_mla or not isinstance(kv_heads, int) or kv_heads % n == 0 or n % kv_heads == 0
        return heads % n == 0 and kv_fits

    if fits(shards):
        return []
    has = f"{heads} attention heads" + ("" if uses_mla else f" and {kv_heads} key-value heads")
    fitting = ", ".join(str(n) for n in range(1, experts + 1) if fits(n))
    text = f"{name} has {has}, which do not divide over {shards} shards: experts.expert_parallel can be {fitting}"
    return [Problem(Flaw.SHARDS, text)]


def _weights(directory: Path) -> Iterator[str]:
    files = sorted(directory.glob("*.safetensors"))
    tensors: dict[str, set[str]] = {}
    for file in files:
        try:
            tensors[file.name] = _tensor_names(file)
        except _BrokenError as flaw:
            yield f"{file} is damaged: {flaw}; copy it again"
        except OSError as error:
            yield f"{file} cannot be read: {error.strerror or error}"
    index = directory / _INDEX
    if index.is_file():
        yield from _against_index(index, {f.name for f in files}, tensors)
    elif not files and not any(True for pattern in _OTHER_WEIGHTS for _ in directory.glob(pattern)):
        yield f"{directory} holds no weights (*.safetensors)"


def _against_index(index: Path, present: set[str], tensors: Mapping[str, set[str]]) -> Iterator[str]:
    try:
        shard_of = dict(json.loads(index.read_bytes())["weight_map"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        yield f"{index} cannot be read: {error}"
        return
    needed = {str(shard) for shard in shard_of.values()}
    if missing := sorted(needed - present):
        yield f"{index.parent} lacks {len(missing)} of {len(needed)} weight files: {', '.join(missing[:3])}" + (
            " …" if len(missing) > 3 else ""
        )
    absent = [name for name, shard in shard_of.items() if shard in tensors and name not in tensors[shard]]
    if absent:
        yield f"{index} names {len(absent)} tensors that their files do not hold, the first is {absent[0]}"


class _BrokenError(Exception):
    """A safetensors file that contradicts itself."""


def _tensor_names(file: Path) -> set[str]:
    """The tensors that the header lists, once their bytes are known to fill the file exactly."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size < _LENGTH_BYTES:
            raise _BrokenError(f"{size} bytes long")
        (length,) = struct.unpack("<Q", stream.read(_LENGTH_BYTES))
        if length > _MAX_HEADER_BYTES:
            raise _BrokenError("its first bytes are no safetensors header")
        if length > size - _LENGTH_BYTES:
            raise _BrokenError(f"it ends inside its header, at {size:,} bytes")
        try:
            header = json.loads(stream.read(length))
            spans = {name: _span(entry) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _BrokenError("its header is not readable") from None
    end = 0
    for name, (begin, stop, nbytes) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != end or stop - begin != nbytes:
            raise _BrokenError(f"the bytes of {name} do not fit its shape or its neighbours")
        end = stop
    whole = _LENGTH_BYTES + length + end
    if size != whole:
        raise _BrokenError(f"{size:,} bytes long, its header says {whole:,}")
    return set(spans)


def _span(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    """Begin, end, and the bytes that dtype and shape ask for; for a dtype unknown here, those between begin and end."""
    begin, end = entry["data_offsets"]
    bits = _ITEM_BITS.get(entry["dtype"])
    return begin, end, end - begin if bits is None else math.prod(entry["shape"]) * bits // 8

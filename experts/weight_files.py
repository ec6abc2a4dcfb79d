"""Whether a checkpoint's weights can take the place of another's: names, shapes and types of all tensors, from the
files' headers alone, and the architecture that config.json tells. No vLLM, no torch.

An engine that reloads its weights loads what it finds: of a tensor that is missing it keeps the old values, or has
whatever was in memory, and some that it does not know it skips. So the files are compared with those that it was
started with before a weight is touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from experts.versions import BadVersion, fingerprints

INDEX = "model.safetensors.index.json"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})  # an engine converts between these, and between no others
_SHOWN = 3


class BadWeights(Exception):
    """Files that are no checkpoint, or not one that can be loaded here. `str()` is one sentence."""


class Tensor(NamedTuple):
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "BF16", "I8"; "float": one of those that an engine converts


Tensors = Mapping[str, Tensor]


class Checkpoint(NamedTuple):
    """What an engine must find alike in the checkpoint that it reloads."""

    architecture: str  # `versions.Fingerprints.architecture`
    tensors: Tensors

    @classmethod
    def of(cls, directory: Path) -> Checkpoint:
        """Raises BadWeights."""
        try:
            return cls(fingerprints(directory).architecture, tensors(directory))
        except BadVersion as error:
            raise BadWeights(str(error)) from None

    def refuses(self, directory: Path) -> str:
        """Why the weights in `directory` cannot take the place of these, a sentence; "" if they can."""
        try:
            other = Checkpoint.of(directory)
        except BadWeights as error:
            return str(error)
        if other.architecture != self.architecture:
            return f"{directory / 'config.json'} is of another architecture: it needs a replica that starts with it"
        return f"{directory} {', '.join(found)}" if (found := differences(other.tensors, self.tensors)) else ""


def tensors(directory: Path) -> Tensors:
    """Every tensor of the checkpoint, by name. Raises BadWeights: no such files, one truncated, a name that is twice.

    Of a checkpoint with an index only the files that it names count, as vLLM has it.
    """
    found: dict[str, Tensor] = {}
    for file in _files(directory):
        try:
            with safe_open(file, framework="numpy") as opened:  # compares the header with the file's length
                for name in opened.keys():  # noqa: SIM118  # it is no mapping
                    if name in found:
                        raise BadWeights(f"{directory} holds the tensor {name} twice")
                    part = opened.get_slice(name)
                    dtype = str(part.get_dtype())
                    found[name] = Tensor(tuple(part.get_shape()), "float" if dtype in _FLOATS else dtype)
        except (SafetensorError, OSError) as error:
            raise BadWeights(f"{file} cannot be read: {error}") from None
    return found


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        try:
            named = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadWeights(f"{index} cannot be read: {type(error).__name__}: {error}") from None
        return [directory / name for name in sorted(named)]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise BadWeights(f"{directory} holds no weights as .safetensors files")
    return files


def differences(has: Tensors, wants: Tensors) -> list[str]:
    """Why files that have these tensors cannot take the place of files with those; [] if they can."""
    told = []
    if missing := wants.keys() - has.keys():
        told.append(f"lacks {_some(missing)}")
    if unknown := has.keys() - wants.keys():
        told.append(f"holds {_some(unknown)} too many")
    both = sorted(has.keys() & wants.keys())
    for name in [name for name in both if has[name] != wants[name]][:_SHOWN]:
        (shape, dtype), (wanted_shape, wanted_dtype) = has[name], wants[name]
        told.append(f"has {name} as {dtype} {list(shape)} instead of {wanted_dtype} {list(wanted_shape)}")
    return told


def _some(names: set[str]) -> str:
    first = sorted(names)[:_SHOWN]
    more = len(names) - len(first)
    return f"{', '.join(first)} and {more} more" if more else ", ".join(first)

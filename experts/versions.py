"""Versions of a model: directories of a store, each a checkpoint beside its manifest `moray.json`.

    STORE/v1/moray.json  config.json  model.safetensors  tokenizer.json …
    STORE/v2/…

The manifest says what the version is made of (the SHA-256 of every file), what it can take the place of (fingerprints
of architecture and text) and what it has to answer (golden prompts). It is written last: a directory without one is no
version, whatever it holds. `moray model add` makes versions; here they are read, compared and verified.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

MANIFEST: Final = "moray.json"
FORMAT: Final = 1
_CHUNK: Final = 8 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Report = Callable[[str, int, int], None]  # (file, bytes done, bytes of all)


class BadVersion(Exception):
    """A version that cannot be used. `str()` is one sentence with the way out, if there is one."""


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str  # hex
    bytes: int


class Golden(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A prompt whose greedy answer is known."""

    prompt: str | tuple[dict[str, str], ...]  # text, or OpenAI messages
    prompt_token_ids: tuple[int, ...]  # by the version's own tokenizer and chat template
    answer: str = ""  # what the output ends with; "": any
    answer_token_ids: tuple[int, ...] = ()  # the same as the model emits it, its stop token aside
    max_tokens: int = 256  # of the output
    # Natural logarithms, float32, of the prompt's tokens 1.. given those before. None: no reference.
    logprobs: tuple[float, ...] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`moray.json`."""

    format: int = FORMAT
    name: str
    parent: str | None = None  # the version that it was made of
    notes: str = ""
    created: str  # ISO 8601, UTC
    files: dict[str, FileDigest]  # by path inside the directory, with slashes; all but the manifest
    architecture: str  # `Fingerprints.architecture`
    text: str  # `Fingerprints.text`
    weights: dict[str, str] = {}  # layout of an engine -> digest of its loaded weights, where known
    golden: tuple[Golden, ...] = ()
    accuracy: dict[str, Any] | None = None  # as whoever judged it tells it

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @property
    def sha256(self) -> dict[str, str]:
        """Path -> digest, as a replica checks its files before it loads them."""
        return {path: file.sha256 for path, file in self.files.items()}


class Version(NamedTuple):
    """A directory of a store. `manifest` is None, and `flaw` says why, if it is no version that can be used."""

    name: str
    directory: Path
    manifest: Manifest | None
    flaw: str = ""


class Fingerprints(NamedTuple):
    """What must be equal for one version to take the place of another. Hex digests."""

    architecture: str
    """config.json: tensors' shapes and all that the engine computes with. Equal: weights can be swapped in place."""
    text: str
    """Tokenizer, chat template, special tokens, generation defaults: what gateways hold."""


# -- names ------------------------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """`name`, if it can be a version's: it becomes a directory, a header's value and a metric's label."""
    if not _NAME.fullmatch(name) or name.endswith((".part", ".tmp")):
        raise BadVersion(
            f"{name!r} cannot be a version's name: letters, digits, '.', '_' and '-' only, a letter or digit first, "
            "63 at most, for example v2 or 2026-11-25"
        )
    return name


# -- manifests --------------------------------------------------------------------------------------------------------


def read(directory: Path) -> Manifest:
    """The manifest of a version's directory. Raises BadVersion."""
    file = directory / MANIFEST
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BadVersion(f"{directory} is no version: it holds no {MANIFEST}; `moray model add` makes one") from None
    except OSError as error:
        raise BadVersion(f"{file} cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadVersion(f"{file} is damaged: {error}; add the version again") from None
    if manifest.format != FORMAT:
        raise BadVersion(f"{file} has format {manifest.format}, this Moray reads {FORMAT}: serve it with its own Moray")
    if manifest.name != directory.name:
        raise BadVersion(f"{file} is of version {manifest.name!r}: the directory was renamed or copied by hand")
    for path in manifest.files:
        if path.startswith("/") or ".." in Path(path).parts:
            raise BadVersion(f"{file} names a file outside its directory: {path}")
    return manifest


def write(directory: Path, manifest: Manifest) -> None:
    """Writes `moray.json` at once or not at all, and not before its bytes are on the disk."""
    text = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2)
    # Token ids on one line. No string has a bare line feed, so that this finds lists of numbers only.
    text = re.sub(rb"\[\n[-+.eE\d,\s]+\]", lambda found: b"[" + b" ".join(found[0][1:-1].split()) + b"]", text)
    scratch = directory / f".{MANIFEST}.{os.getpid()}.tmp"
    try:
        with scratch.open("wb") as stream:
            stream.write(text + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(directory / MANIFEST)
    finally:
        scratch.unlink(missing_ok=True)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Puts a directory's names on the disk: what was renamed is there after a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- stores -----------------------------------------------------------------------------------------------------------


def versions(store: Path) -> list[Version]:
    """Every directory of a store, oldest first; those that cannot be used stand last, with their flaw.

    Names that begin with a dot are left out: what is being added has such a one. Raises BadVersion without a store.
    """
    try:
        directories = [d for d in store.iterdir() if d.is_dir() and not d.name.startswith(".")]
    except FileNotFoundError:
        raise BadVersion(f"there is no store {store}: `moray model add` makes it") from None
    except OSError as error:
        raise BadVersion(f"the store {store} cannot be read: {error.strerror or error}") from None
    found = [_version(directory) for directory in directories]
    return sorted(found, key=lambda v: (v.manifest is None, v.manifest.created if v.manifest else "", v.name))


def find(store: Path, name: str) -> Version:
    """The version of that name, with its manifest. Raises BadVersion; the message names those that there are."""
    check_name(name)
    for version in (found := versions(store)):
        if version.name == name:
            if version.manifest is None:
                raise BadVersion(version.flaw)
            return version
    there = ", ".join(v.name for v in found if v.manifest) or "none"
    raise BadVersion(f"the store {store} has no version {name}; it has: {there}")


def _version(directory: Path) -> Version:
    try:
        return Version(directory.name, directory, read(directory))
    except BadVersion as flaw:
        return Version(directory.name, directory, None, str(flaw))


# -- what a version is made of ----------------------------------------------------------------------------------------


class Flaw(Enum):
    """What is wrong with a file of a version."""

    MANIFEST = "manifest"  # missing or unreadable
    MISSING = "missing"
    TRUNCATED = "truncated"  # shorter than it was
    CORRUPT = "corrupt"  # longer, or other bytes
    EXTRA = "extra"  # not in the manifest: an engine might load it


class Damage(NamedTuple):
    flaw: Flaw
    file: str  # path inside the directory
    text: str  # one sentence

    def __str__(self) -> str:
        return self.text


def verify(directory: Path, report: Report = lambda *_: None, *, hashed: bool = True) -> list[Damage]:
    """Compares every file with the manifest; an empty list if they are what was added.

    Names and sizes come first, so that a truncated file of many is told before an hour of hashing: if they are wrong,
    nothing is hashed. `hashed`: else they are all that is looked at, which takes no time.
    """
    try:
        manifest = read(directory)
    except BadVersion as error:
        return [Damage(Flaw.MANIFEST, MANIFEST, str(error))]
    if (found := _outlines(directory, manifest)) or not hashed:
        return found
    damages, done = [], 0
    for path, wanted in manifest.files.items():

        def passed(count: int, path: str = path, before: int = done) -> None:
            report(path, before + count, manifest.bytes)

        if text := mismatch(directory / path, wanted.sha256, passed):
            damages.append(Damage(Flaw.CORRUPT, path, text))
        done += wanted.bytes
    return damages


def _outlines(directory: Path, manifest: Manifest) -> list[Damage]:
    """What names and sizes tell."""
    damages = []
    for path, wanted in manifest.files.items():
        file = directory / path
        if not file.is_file():
            damages.append(Damage(Flaw.MISSING, path, f"{file} is missing"))
        elif (size := file.stat().st_size) < wanted.bytes:
            text = f"{file} is truncated: {size:,} of {wanted.bytes:,} bytes"
            damages.append(Damage(Flaw.TRUNCATED, path, text))
        elif size > wanted.bytes:
            text = f"{file} is corrupt: {size:,} bytes, the manifest says {wanted.bytes:,}"
            damages.append(Damage(Flaw.CORRUPT, path, text))
    for path in sorted(set(checkpoint_files(directory)) - set(manifest.files)):
        text = f"{directory / path} is not in the manifest: an engine might load it"
        damages.append(Damage(Flaw.EXTRA, path, text))
    return damages


def checkpoint_files(directory: Path) -> list[str]:
    """Paths inside `directory` that make the checkpoint, sorted: all files but the manifest and hidden ones."""
    found = []
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = Path(folder).relative_to(directory)
        found += [(inside / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(path for path in found if path != MANIFEST)


def mismatch(file: Path, wanted: str, passed: Callable[[int], None] = lambda _: None) -> str:
    """What is wrong with a file, a sentence; "" if it has this SHA-256 digest. `passed`: as `sha256` has it."""
    try:
        found = sha256(file, passed)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror or error}"
    if found != wanted:
        return f"{file} is corrupt: its SHA-256 is {found[:12]}…, the manifest's {wanted[:12]}…"
    return ""


def sha256(file: Path, passed: Callable[[int], None] = lambda _: None) -> str:
    """Hex digest of a file; `passed` is told how many bytes are done. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            passed(done := done + len(chunk))
    return digest.hexdigest()


# -- fingerprints -----------------------------------------------------------------------------------------------------

# Keys of config.json that neither shape a tensor nor change what an engine computes; all others, unknown ones too,
# count. An engine whose weights are swapped goes on with the configuration that it was started with.
_NOT_ARCHITECTURE: Final = frozenset(
    {
        "_name_or_path", "name_or_path", "transformers_version", "use_cache", "initializer_range",
        "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "output_router_logits", "output_attentions",
        "output_hidden_states", "return_dict", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop",
        "attn_pdrop", "gradient_checkpointing", "pretraining_tp", "torchscript", "finetuning_task",
        "task_specific_params",
    }
)  # fmt: skip
# Keys of config.json that are the text's: gateways and sampling know them.
_TEXT_KEYS: Final = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"}
)
_TEXT_FILES: Final = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tekken.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_TEXT_PATTERNS: Final = ("*.tiktoken", "additional_chat_templates/*.jinja")
_PROVENANCE: Final = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_from_model_config"})


def fingerprints(directory: Path) -> Fingerprints:
    """Of a checkpoint's directory, from its small files. Raises BadVersion."""
    config = _json(directory / "config.json")
    if not isinstance(config, dict):
        raise BadVersion(f"{directory / 'config.json'} holds no object")
    shape = _without(config, _NOT_ARCHITECTURE | _TEXT_KEYS)
    if "torch_dtype" in shape:  # its older name
        shape["dtype"] = shape.pop("torch_dtype")
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]  # a text_config has its own
    text: dict[str, Any] = {
        "config.json": [[key, part[key]] for part in parts for key in sorted(_TEXT_KEYS & part.keys())]
    }
    names = {name for name in _TEXT_FILES if (directory / name).is_file()}
    names |= {file.relative_to(directory).as_posix() for pattern in _TEXT_PATTERNS for file in directory.glob(pattern)}
    for name in sorted(names):
        file = directory / name
        if name.endswith(".json"):  # spaces and the order of keys say nothing
            parsed = _json(file)
            text[name] = _without(parsed, _PROVENANCE) if isinstance(parsed, dict) else parsed
        else:
            text[name] = sha256(file)
    return Fingerprints(_digest(shape), _digest(text))


def compatible(old: Manifest, new: Manifest) -> list[str]:
    """Why `new` cannot be swapped into engines and gateways that run `old`; sentences, an empty list if it can."""
    reasons = []
    if old.architecture != new.architecture:
        reasons.append(f"{new.name}'s architecture (config.json) is not {old.name}'s: it needs replicas of its own")
    if old.text != new.text:
        reasons.append(
            f"{new.name}'s tokenizer, chat template, special tokens or generation defaults are not {old.name}'s, and "
            "gateways hold one of each: serve it as an application of its own"
        )
    return reasons


def _without(tree: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """`tree` less `keys`, at its top and in its parts."""
    return {
        key: _without(value, keys) if isinstance(value, dict) else value
        for key, value in tree.items()
        if key not in keys
    }


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise BadVersion(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BadVersion(f"{file} is not JSON: {error}") from None


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

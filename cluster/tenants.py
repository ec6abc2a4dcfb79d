"""Tenants and their API keys: the key file, and who a presented key belongs to.

    tenants:
      - name: acme
        keys:                     # each is the hash of a key; `moray key new` makes both
          - sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
        requests_per_min: 600     # HTTP requests that ask the model; left out: no limit, as for the next two
        tokens_per_min: 200000    # prompt and output
        concurrency: 32           # requests waiting or running; each of n>1 samples is one
        weight: 2                 # share of tokens among tenants of one priority; default 1
        priority: 0               # the best (lowest) that its requests may ask for; default 0

The file holds no secret: keys are 256 random bits, which nobody finds by trying, so plain SHA-256 suffices where
passwords would need a slow, salted hash. A lookup by hash also takes no longer for a key that is nearly right.
"""

import asyncio
import difflib
import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from replicas.messages import Tenant

logger = logging.getLogger("ray.serve")

LOOK_EVERY_S = 1.0  # how old a gateway's knowledge of the file may be

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_DEPTH = 4  # of the file's tree: tenants, one of them, its keys, one of these


class KeyFileError(ValueError):
    """A key file that cannot be used. `str()` lists every problem, each with its line."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class Holder(NamedTuple):
    """Who holds a key."""

    tenant: Tenant
    priority_ceiling: int


def hash_of(key: str) -> str:
    """How a key stands in the file."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """Whose key it is."""

    def __init__(self, holders: Mapping[str, Holder]) -> None:
        self._holders = dict(holders)  # by the key's hash

    def holder(self, key: str) -> Holder | None:
        return self._holders.get(hash_of(key))


# -- the file ---------------------------------------------------------------------------------------------------------


def _checked_hash(text: str) -> str:
    if not _HASH.fullmatch(text.lower()):
        raise ValueError("write sha256: and 64 hexadecimal digits, the hash that `moray key new` prints, not the key")
    return text.lower()


class _Entry(BaseModel):
    """One tenant of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")  # goes into status and metrics
    keys: list[Annotated[str, AfterValidator(_checked_hash)]]  # none: the tenant is shut out
    requests_per_min: int | None = Field(None, ge=1)
    tokens_per_min: int | None = Field(None, ge=1)
    concurrency: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    priority: int = 0

    def holder(self) -> Holder:
        tenant = Tenant(
            name=self.name,
            weight=self.weight,
            requests_per_min=self.requests_per_min,
            tokens_per_min=self.tokens_per_min,
            concurrency=self.concurrency,
        )
        return Holder(tenant, self.priority)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenants: list[_Entry]


def read(path: Path) -> KeyRing:
    """The file's keys. Raises KeyFileError with all that is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        way_out = (
            f"; `moray key new --tenant NAME --file {path}` makes one" if isinstance(error, FileNotFoundError) else ""
        )
        raise KeyFileError([f"cannot read the key file {path}: {error.strerror or error}{way_out}"]) from None
    except UnicodeDecodeError:
        raise KeyFileError([f"the key file {path} is not UTF-8 text"]) from None
    return parse(text, str(path))


def parse(text: str, origin: str) -> KeyRing:
    """The keys in a file's text; `origin` names it in problems. Raises KeyFileError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: such as a date that no calendar has
        mark = getattr(error, "problem_mark", None)
        place = f"{origin}:{mark.line + 1}" if mark else origin
        raise KeyFileError([f"{place} is not valid YAML: {getattr(error, 'problem', None) or error}"]) from None
    lines: _Lines = {(): 1}
    problems = _index(root, (), lines)
    try:
        file = _File.model_validate(tree)
    except ValidationError as error:
        file = None
        problems += [_problem(e, lines) for e in error.errors()]
    problems += _doubles(tree, lines)
    if file is None or problems:
        raise KeyFileError([f"{origin}:{line}: {said}" for line, said in sorted(problems)])
    return KeyRing({key: entry.holder() for entry in file.tenants for key in entry.keys})


_Problem = tuple[int, str]  # line, sentence
_Lines = dict[tuple[str | int, ...], int]  # where each part of the tree stands, by the names and numbers on the way


def _index(node: yaml.Node | None, path: tuple[str | int, ...], lines: _Lines) -> list[_Problem]:
    """Fills in the line of every part of the tree; tells of names that stand twice, of which YAML would take one."""
    problems: list[_Problem] = []
    if len(path) >= _DEPTH:
        return problems
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if (inner := (*path, str(key.value))) in lines:
                problems.append((line, f"{key.value} was set before, in line {lines[inner]}"))
            lines[inner] = line
            problems += _index(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for n, value in enumerate(node.value):
            lines[(*path, n)] = value.start_mark.line + 1
            problems += _index(value, (*path, n), lines)
    return problems


def _line(path: tuple[str | int, ...], lines: _Lines) -> int:
    """Where that part stands, or what it would be in."""
    return next(lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines)


def _problem(error: Any, lines: _Lines) -> _Problem:
    loc = tuple(error["loc"])
    line = _line(loc, lines)
    name = str(loc[-1]) if loc else "the file"
    if error["type"] == "extra_forbidden":
        known = [*(_Entry if len(loc) > 1 else _File).model_fields]
        near = difflib.get_close_matches(name, known, n=1)
        return line, f"unknown name {name}: " + (
            f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        )
    # What stands there is not told: it may be a key that was meant to stay secret.
    what = "keys" if len(loc) == _DEPTH else name
    said = str(error["msg"]).removeprefix("Value error, ")
    return line, f"{what}: {said[:1].lower()}{said[1:]}"


def _doubles(tree: object, lines: _Lines) -> list[_Problem]:
    """Names and keys that two tenants have, or one twice; whatever else is wrong with the tree."""
    entries = tree.get("tenants") if isinstance(tree, dict) else None
    problems: list[_Problem] = []
    names: dict[str, int] = {}
    keys: dict[str, int] = {}
    for n, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, dict):
            continue
        if isinstance(name := entry.get("name"), str):
            line = _line(("tenants", n, "name"), lines)
            if (before := names.setdefault(name, line)) != line:
                problems.append((line, f"name: {name} is the name of the tenant in line {before} too"))
        hashes = entry.get("keys")
        for m, key in enumerate(hashes if isinstance(hashes, list) else ()):
            line = _line(("tenants", n, "keys", m), lines)
            if isinstance(key, str) and (before := keys.setdefault(key.lower(), line)) != line:
                problems.append((line, f"keys: the same key stands in line {before} too"))
    return problems


# -- kept up to date --------------------------------------------------------------------------------------------------


class KeyFile:
    """The key file as a gateway holds it: looked at when a request needs it, at most once a second.

    A file that has become unusable, or is gone, leaves the keys as they were: a slip of an editor locks nobody out.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads it. Raises KeyFileError."""
        self._path = path
        self._clock = clock
        self._seen = _identity(path)
        self._ring = read(path)
        self._looked_at = clock()
        self._looking = asyncio.Lock()

    async def ring(self) -> KeyRing:
        """The keys as they were within the last second."""
        if self._clock() - self._looked_at >= LOOK_EVERY_S:
            async with self._looking:
                if self._clock() - self._looked_at >= LOOK_EVERY_S:
                    await self._look()
        return self._ring

    async def _look(self) -> None:
        identity = _identity(self._path)  # before reading: what changes meanwhile is seen the next time
        if identity != self._seen:
            try:
                self._ring = await asyncio.to_thread(read, self._path)  # streams go on meanwhile
                logger.info("The key file %s has changed; its keys are in force.", self._path)
            except KeyFileError as error:
                logger.error("The key file cannot be used; the keys of before stay in force. %s", error)
            self._seen = identity
        self._looked_at = self._clock()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes with every way to change a file; a Kubernetes Secret is a symlink that points elsewhere at once."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino

"""`moray key new`: makes API keys, and writes their hashes into the key file (`cluster.tenants` says what it holds)."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

import yaml

from cluster.tenants import KeyFileError, hash_of, parse
from ops.errors import UserError

_BEGINNING = "# Tenants and the hashes of their API keys; README.md says what else may stand here.\ntenants:\n"


class KeyNotAdded(UserError):
    """The key file could not be changed."""


def new_key() -> str:
    return f"moray-{secrets.token_urlsafe(32)}"


def add_to_file(path: Path, tenant: str, key: str) -> None:
    """Adds the key's hash to the tenant, which is made if it is not there; all else in the file stays as it is."""
    path = path.expanduser().resolve()  # a symlink stays one
    try:
        before = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        before = ""
    except (OSError, UnicodeDecodeError) as error:
        raise KeyNotAdded(f"cannot read the key file {path}: {error}") from None
    try:
        if before:
            parse(before, str(path))
        after = with_key(before, tenant, hash_of(key))
        ring = parse(after, str(path))
    except KeyFileError as error:
        raise KeyNotAdded(f"the key file is not changed: {error}") from None
    holder = ring.holder(key)
    if holder is None or holder.tenant.name != tenant:
        raise KeyNotAdded(f"{path} is written in a way that only a person can add to: run `moray key new` and paste")
    _replace(path, after)


def with_key(text: str, tenant: str, hashed: str) -> str:
    """The file's text with one hash more. Inserted as text, so that comments and order stay as somebody wrote them."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    tenants = _value(root, "tenants")
    if not isinstance(tenants, yaml.SequenceNode) or not tenants.value:
        return f"{text or _BEGINNING}{_entry(2, tenant, hashed)}"
    lines = text.splitlines(keepends=True)
    for node in tenants.value:
        name, keys = _value(node, "name"), _value(node, "keys")
        if not isinstance(name, yaml.ScalarNode) or name.value != tenant:
            continue
        if not isinstance(keys, yaml.SequenceNode):
            return text
        if keys.flow_style:
            end = keys.end_mark.index - 1  # the closing bracket
            return f"{text[:end]}{', ' if keys.value else ''}{hashed}{text[end:]}"
        return _inserted(lines, _last_line(keys), f"{' ' * keys.start_mark.column}- {hashed}\n")
    return _inserted(lines, _last_line(tenants), _entry(tenants.start_mark.column, tenant, hashed))


def _entry(indent: int, tenant: str, hashed: str) -> str:
    margin = " " * indent
    return f"{margin}- name: {tenant}\n{margin}  keys:\n{margin}    - {hashed}\n"


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for name, value in pairs if name.value == key), None)


def _last_line(node: yaml.Node) -> int:
    """Where its text ends; YAML's own mark of a block is where the next one begins."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.line)
    last = node.value[-1]
    return _last_line(last[1] if isinstance(last, tuple) else last)


def _inserted(lines: list[str], after: int, new: str) -> str:
    end = "" if lines[after].endswith("\n") else "\n"
    return "".join([*lines[: after + 1], end, new, *lines[after + 1 :]])


def _replace(path: Path, text: str) -> None:
    """All at once: a gateway may be reading it. A new file is its owner's only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError as error:
        raise KeyNotAdded(f"cannot write the key file {path}: {error.strerror or error}") from None

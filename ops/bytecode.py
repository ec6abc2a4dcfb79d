"""Where Python keeps compiled modules. Without them each process of a session compiles what it imports, at every start:
10 s of CPU for vLLM and what it brings (CPython 3.11, 2 cores).

Container images often forbid Python to write them (PYTHONDONTWRITEBYTECODE), and packages that were unpacked instead of
installed have none.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

_FORBIDS = "PYTHONDONTWRITEBYTECODE"
_PREFIX = "PYTHONPYCACHEPREFIX"
_LARGEST = "torch"  # if this has its own, so has the rest


def bytecode_environment(env: Mapping[str, str], source: Path | None) -> dict[str, str]:
    """What to change in `env` so that processes find compiled modules from their second start on.

    `source` is a module of the installed packages; None: there are none, and nothing is to be done. Nothing is written
    beside packages where that was forbidden: there is a cache of ours then, under XDG_CACHE_HOME or ~/.cache.
    """
    if source is None or env.get(_PREFIX) or Path(importlib.util.cache_from_source(str(source))).exists():
        return {}
    if not env.get(_FORBIDS) and os.access(source.parent, os.W_OK):
        return {}
    cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return {_PREFIX: str(cache / "moray" / "bytecode"), _FORBIDS: ""}


def keep_bytecode() -> None:
    """For the processes that this one starts."""
    found = importlib.util.find_spec(_LARGEST)
    os.environ.update(bytecode_environment(os.environ, Path(found.origin) if found and found.origin else None))

"""Where what the controller knows outlives it: in Ray's GCS, or in files of the operator's choice."""

import os
from pathlib import Path
from typing import Protocol

from ray.experimental import internal_kv

_NAMESPACE = b"moray"


def file_name(model: str) -> str:
    """A model's name as files may bear it."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in model)


class Store(Protocol):
    """Blocking. `name` is a plain word."""

    def get(self, name: str) -> bytes | None: ...

    def put(self, name: str, value: bytes) -> None:
        """The whole value or the one before is there, whatever happens meanwhile."""
        ...


class GcsStore:
    """Ray's own key-value store: every node reaches it, and it lives as long as the Ray cluster."""

    def __init__(self, model: str) -> None:
        self._prefix = f"controller:{model}:"

    def get(self, name: str) -> bytes | None:
        value: bytes | None = internal_kv._internal_kv_get(self._key(name), namespace=_NAMESPACE)
        return value

    def put(self, name: str, value: bytes) -> None:
        internal_kv._internal_kv_put(self._key(name), value, overwrite=True, namespace=_NAMESPACE)

    def _key(self, name: str) -> bytes:
        return f"{self._prefix}{name}".encode()


class FileStore:
    """A directory that every node which may run the controller sees, so that it outlives the Ray cluster too."""

    def __init__(self, directory: Path, model: str) -> None:
        self._directory, self._model = directory, file_name(model)

    def get(self, name: str) -> bytes | None:
        try:
            return self._file(name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, value: bytes) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._file(name)
        made = file.with_suffix(f".{os.getpid()}.part")
        with made.open("wb") as out:
            out.write(value)
            out.flush()
            os.fsync(out.fileno())
        made.replace(file)

    def _file(self, name: str) -> Path:
        return self._directory / f"{self._model}.{name}.json"

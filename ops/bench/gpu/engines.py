"""One engine, told to each side in its own words: `LLM`'s arguments, flags of vLLM's server, Moray's settings. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# vLLM's names of what Moray has settings of its own for.
_SETTINGS = {
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "max_num_batched_tokens": "engine.max_num_batched_tokens",
    "enforce_eager": "engine.enforce_eager",
    "enable_prefix_caching": "engine.enable_prefix_caching",
}
_MIB = 1 << 20


@dataclass(frozen=True)
class Engine:
    """A stand-in checkpoint and vLLM's AsyncEngineArgs for it; `load_format: dummy` is understood."""

    directory: Path
    name: str  # in the API
    args: Mapping[str, Any] = field(default_factory=dict)

    def llm(self) -> dict[str, Any]:
        """Arguments of vLLM's `LLM` class."""
        return {"model": str(self.directory), "load_format": "dummy"} | dict(self.args)

    def flags(self, port: int) -> list[str]:
        """Of vLLM's own server."""
        flags = ["--model", str(self.directory), "--load-format", "dummy", "--served-model-name", self.name]
        flags += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
        for name, value in self.args.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
        return flags

    def settings(self, further: Mapping[str, str]) -> dict[str, str]:
        """Of a Moray session with one replica, as for `--set`; `further` come on top."""
        own = {"engine.extra.load_format": "dummy"}
        for name, value in self.args.items():
            if name == "kv_cache_memory_bytes":
                own["engine.kv_cache_mib"] = str(value // _MIB)
            else:
                key = _SETTINGS.get(name, f"engine.extra.{name}")
                own[key] = value if isinstance(value, str) else json.dumps(value)
        fixed = {
            "model.path": str(self.directory),
            "model.name": self.name,
            "experts.expert_parallel": "1",
            "ray.dashboard": "false",
            "gateway.keys_file": "null",  # whatever the environment says: the load carries no key
        }
        return fixed | own | dict(further)

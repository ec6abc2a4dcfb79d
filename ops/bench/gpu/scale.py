"""How large a run is: `FULL` on a GPU with 80 GB or more, `TINY` to try the very same run on a CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ops.bench.gpu.checkpoint import write
from ops.bench.gpu.engines import Engine
from ops.bench.gpu.workload import Workload, at_once

MODEL = "stand-in"

_TINY_SHAPE = MappingProxyType(
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 20_000,
        "max_position_embeddings": 4096,
    }
)


@dataclass(frozen=True)
class Scale:
    name: str
    shape: Mapping[str, Any]  # over each model's config.json
    args: Mapping[str, Any]  # of every engine, in vLLM's names; all sides have the same
    divide: int  # counts of requests by it, prompts and outputs by 4 if it is more than 1
    load_processes: int
    start_timeout_s: float

    def work(self, count: int, prompt: int, output: int, concurrency: int | None = None) -> Workload:
        """Requests as on a GPU, or fewer and shorter ones. `concurrency` None: all at once."""
        if self.divide > 1:
            count, prompt, output = max(1, count // self.divide), max(20, prompt // 4), max(2, output // 4)
        made = at_once(count, prompt, output)
        return made if concurrency is None else made._replace(concurrency=min(count, concurrency))

    def engine(self, where: Path, name: str, config: Mapping[str, Any], **args: Any) -> Engine:
        """Writes the stand-in checkpoint `name` below `where`. `args` come over those of the scale."""
        shaped = dict(config) | {key: value for key, value in self.shape.items() if key in config}
        directory = where / name
        if not (directory / "tokenizer_config.json").is_file():
            write(directory, shaped)
        return Engine(directory, MODEL, dict(self.args) | args)


# The raw engine's baseline (ops/bench/RESULTS.md) had these limits. A prefix cache is vLLM's default and costs each
# side its hashing; no two prompts are alike, so nobody gains by it.
FULL = Scale(
    "full",
    shape={},
    args={
        "dtype": "bfloat16",
        "max_model_len": 36_864,
        "gpu_memory_utilization": 0.92,
        "max_num_seqs": 512,
        "max_num_batched_tokens": 16_384,
        "enable_prefix_caching": True,
        # vLLM would capture 51 sizes up to 512, which takes a good part of a start.
        "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512]},
    },
    divide=1,
    load_processes=8,
    start_timeout_s=280.0,
)
TINY = Scale(
    "tiny",
    shape=_TINY_SHAPE,
    args={
        "dtype": "float32",
        "max_model_len": 4096,
        "kv_cache_memory_bytes": 64 << 20,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        "enforce_eager": True,
        "enable_prefix_caching": True,
        "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16]},
    },
    divide=32,
    load_processes=2,
    start_timeout_s=120.0,
)
SCALES = {scale.name: scale for scale in (FULL, TINY)}

# The CPU engines of stock vLLM would each bind all cores and take huge pages for their KV.
TINY_ENVIRONMENT = MappingProxyType(
    {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
)


def prepare_environment(scale: Scale) -> None:
    """What every side's processes inherit."""
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", PYTHONUNBUFFERED="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")  # how long each part of a load takes
    os.environ["RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE"] = "1"  # else a replica's last words may be lost
    if scale.name == TINY.name:
        os.environ.update(TINY_ENVIRONMENT)
    else:
        # Dummy gates send every token to the same few experts, and a step reads only those. Trained ones spread tokens.
        # (vLLM's kernel for CPUs does not take the simulated choices.)
        os.environ.setdefault("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "uniform_random")

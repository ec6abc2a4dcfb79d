"""The embedded model: a DeepSeek-R1-style reasoning mixture of experts that Moray trains itself.

It is small (1.8 M parameters), real (Qwen3MoeForCausalLM in Hugging Face format) and committed, so that tests, the
end-to-end checks and a first `helm install` serve a true MoE without a download. Its versions lie in a store
(`experts.versions`), so that a rollout has something to roll. Importing this package costs nothing: torch is imported
by `model`, `train`, `export`, `evaluate` and `quantization_aware` only.
"""

from pathlib import Path

__all__ = ["FIRST_VERSION", "checkpoint_path", "store_path"]

FIRST_VERSION = "v1"


def store_path() -> Path:
    """The store of the committed versions."""
    return Path(__file__).resolve().parent / "versions"


def checkpoint_path(version: str = FIRST_VERSION) -> Path:
    """The folder of a committed checkpoint, as `vllm.LLM(model=...)` or `AutoModel.from_pretrained` take it."""
    return store_path() / version

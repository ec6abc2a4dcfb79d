"""The embedded model: a DeepSeek-R1-style reasoning mixture of experts that Moray trains itself.

It is small (1.8 M parameters), real (Qwen3MoeForCausalLM in Hugging Face format) and committed, so that tests, the
end-to-end checks and a first `helm install` serve a true MoE without a download. Importing this package costs nothing:
torch is imported by `model`, `train`, `export`, `evaluate` and `quantization_aware` only.
"""

from pathlib import Path

__all__ = ["checkpoint_path"]


def checkpoint_path() -> Path:
    """The folder of the committed checkpoint, as `vllm.LLM(model=...)` or `AutoModel.from_pretrained` take it."""
    return Path(__file__).resolve().parent / "checkpoint"

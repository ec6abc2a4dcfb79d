"""How long one engine step takes: a model with six costs, fitted to measurements on one GPU. Pure.

What it is fitted to (vLLM 0.32.0 raw engine, bf16, Qwen3-30B-A3B's shape with dummy weights, one H200, one run;
`shared/facts.md`, "GPU baseline"): least squares of the relative errors over all eleven figures.

| measured | ms or req/s | model | off by |
| --- | --- | --- | --- |
| decode step, batch 1 / 8 / 32 | 4.0 / 8.6 / 14.9 ms | 4.1 / 8.7 / 15.2 | +2.6% / +0.7% / +1.9% |
| decode step, batch 64 / 256 / 512 | 17.5 / 21 / 25.5 ms | 17.2 / 20.7 / 25.1 | -1.9% / -1.4% / -1.4% |
| decode step, one sequence of 32K | 4.9 ms | 4.7 | -3.3% |
| step of 8,192 prompt tokens | 134 ms | 131 | -2.3% |
| 512 requests of 512 + 128 | 67.8 req/s | 67.2 | -0.9% |
| 1,024 requests of 256 + 128 | 99.7 req/s | 97.9 | -1.8% |
| 512 requests of 1,024 + 256 | 30.9 req/s | 30.2 | -2.4% |

The decode rows ran with about 208 tokens of context a sequence (`shared/reference/bench_vllm.py`: 128 of prompt).
"""

import dataclasses
from dataclasses import dataclass

from replicas.messages import Capacity


@dataclass(frozen=True)
class StepTime:
    """Costs of a step, in seconds. Decoding is concave in the batch: each further token touches fewer new experts."""

    base_s: float  # a step with no token: launches, attention weights, sampling
    experts_s: float  # reading every expert's weights once
    expert_share: float  # of the experts, what one token uses: top-k / experts
    sequence_s: float  # each decoding sequence, its KV aside
    kv_token_s: float  # each token of a decoding sequence's KV that attention reads
    prefill_token_s: float  # each prompt token, its attention aside
    prefill_pair_s: float  # each pair of prompt token and earlier token that its attention covers

    def step_s(self, prefill_tokens: int, prefill_pairs: float, decoding: int, kv_tokens: int) -> float:
        """Seconds of a step that computes so many prompt tokens and one token of each decoding sequence.

        `kv_tokens` is the sum of the decoding sequences' lengths; `prefill_pairs`: see `pairs`.
        """
        touched = 1.0 - (1.0 - self.expert_share) ** (prefill_tokens + decoding)
        return (
            self.base_s
            + self.experts_s * touched
            + self.sequence_s * decoding
            + self.kv_token_s * kv_tokens
            + self.prefill_token_s * prefill_tokens
            + self.prefill_pair_s * prefill_pairs
        )


def pairs(computed: int, chunk: int) -> float:
    """Pairs of tokens in the causal attention of a chunk that begins after `computed` tokens."""
    return chunk * (computed + (chunk + 1) / 2)


@dataclass(frozen=True)
class Machine:
    """One replica's hardware with the model on it."""

    name: str
    step: StepTime
    capacity: Capacity
    basis: str  # "fitted" to measurements, or "predicted" from another machine's


# The 32B tier: 48 layers, 4 KV heads of 128, 32 query heads, 128 experts of which each token uses 8; weights 57 GB.
WEIGHT_BYTES = 57e9
KV_BYTES_PER_TOKEN = 48 * 2 * 4 * 128 * 2  # layers, key and value, KV heads, head size, bf16: 96 KiB
ATTENTION_FLOP_PER_PAIR = 48 * 2 * 2 * 32 * 128  # layers, scores and values, multiply and add, heads, head size
ACTIVATION_BYTES = 3e9  # activations and CUDA graphs: assumed
KV_BLOCK_TOKENS = 16  # vLLM's default


def capacity(
    memory_bytes: float,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    utilization: float = 0.9,
    max_model_len: int = 32_768,
) -> Capacity:
    """What a GPU holds with the 32B tier on it.

    256 sequences are vLLM 0.32's default for its server on an A100, 1,024 on an H200 (`get_batch_defaults`). 2,048
    tokens a step are that for an A100 too, and here for both: with an H200's 8,192 a step of prefill would take 131 ms,
    and no stream beside it could hold 50 ms a token.
    """
    kv_bytes = utilization * memory_bytes - WEIGHT_BYTES - ACTIVATION_BYTES
    blocks = int(kv_bytes // (KV_BYTES_PER_TOKEN * KV_BLOCK_TOKENS))
    return Capacity(
        kv_tokens=blocks * KV_BLOCK_TOKENS,
        block_tokens=KV_BLOCK_TOKENS,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
    )


_H200_STEP = StepTime(
    base_s=3.27e-3,
    experts_s=13.0e-3,  # 57 GB at 4.4 TB/s; the copy bandwidth measured there is 4.3 TB/s
    expert_share=8 / 128,
    sequence_s=13.1e-6,
    kv_token_s=20.0e-9,  # 96 KiB at 4.9 TB/s
    prefill_token_s=13.6e-6,
    # Calculated, not measured: half of the H200's 989 TFLOP/s. The measured prompts were too short to tell.
    prefill_pair_s=ATTENTION_FLOP_PER_PAIR / (0.5 * 989e12),
)

# NVIDIA's data sheets, H200 SXM and A100 SXM 80 GB: 4.8 and 2.039 TB/s of HBM, 989 and 312 TFLOP/s in dense bf16.
_A100_BANDWIDTH = 2.039 / 4.8
_A100_COMPUTE = 312 / 989


def _predicted_a100(h200: StepTime) -> StepTime:
    """What reads memory takes longer by the ratio of bandwidths, what computes by that of FLOP/s. Nothing measured."""
    return dataclasses.replace(
        h200,
        base_s=h200.base_s / _A100_BANDWIDTH,
        experts_s=h200.experts_s / _A100_BANDWIDTH,
        kv_token_s=h200.kv_token_s / _A100_BANDWIDTH,
        sequence_s=h200.sequence_s / _A100_COMPUTE,
        prefill_token_s=h200.prefill_token_s / _A100_COMPUTE,
        prefill_pair_s=h200.prefill_pair_s / _A100_COMPUTE,
    )


H200 = Machine("h200", _H200_STEP, capacity(141e9, max_num_seqs=1024), "fitted")
A100 = Machine("a100", _predicted_a100(_H200_STEP), capacity(80e9), "predicted")
MACHINES = {machine.name: machine for machine in (H200, A100)}

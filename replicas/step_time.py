"""The machines that engines are simulated on: what a step takes there (`experts.step_model`), and what they hold. Pure.

`h200` was fitted to steps and whole runs of a vLLM 0.32.0 engine without Moray: bf16, Qwen3-30B-A3B's shape, dummy
weights, but tokens that spread over all experts as trained gates spread them (`ops/bench/results/gpu_baseline.json`).
All simulated figures of `ops/bench/RESULTS.md` are its. `h200-steps` is what `moray calibrate` makes of single steps
alone, of that run and a later one (`ops/bench/results/gpu.json`); whole runs judge it. It knows what `h200` does not:
what a step without a CUDA graph takes at least.
"""

import dataclasses
from dataclasses import dataclass

from experts.step_model import StepTime, shipped
from experts.topology import GPUS
from replicas.messages import Capacity


@dataclass(frozen=True)
class Machine:
    """One replica's hardware with the model on it."""

    name: str
    step: StepTime
    capacity: Capacity
    basis: str  # "fitted" to measurements, or "predicted" from another machine's


# The 32B tier: 48 layers, 4 KV heads of 128; weights 57 GB.
WEIGHT_BYTES = 57e9
KV_BYTES_PER_TOKEN = 48 * 2 * 4 * 128 * 2  # layers, key and value, KV heads, head size, bf16: 96 KiB
UTILIZATION = 0.9  # share of the GPU's memory that the engine takes
ACTIVATION_BYTES = 3e9  # activations and CUDA graphs: assumed
KV_BLOCK_TOKENS = 16  # vLLM's default


def capacity(memory_bytes: float, max_num_seqs: int = 256) -> Capacity:
    """What a GPU holds with the 32B tier on it.

    256 sequences are vLLM 0.32's default for its server on an A100, 1,024 on an H200 (`get_batch_defaults`). 2,048
    tokens a step are that for an A100 too, and here for both: with an H200's 8,192 a step of prefill would take 131 ms,
    and no stream beside it could hold 50 ms a token.
    """
    kv_bytes = UTILIZATION * memory_bytes - WEIGHT_BYTES - ACTIVATION_BYTES
    blocks = int(kv_bytes // (KV_BYTES_PER_TOKEN * KV_BLOCK_TOKENS))
    return Capacity(
        kv_tokens=blocks * KV_BLOCK_TOKENS,
        block_tokens=KV_BLOCK_TOKENS,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=2048,
        max_model_len=32_768,
    )


_H200, _A100 = GPUS["H200-141GB"], GPUS["A100-80GB"]


def _predicted_a100(h200: StepTime) -> StepTime:
    """What reads memory takes longer by the ratio of bandwidths, what computes by that of FLOP/s. Nothing measured."""
    bandwidth, compute = _A100.bandwidth / _H200.bandwidth, _A100.bf16_flops / _H200.bf16_flops
    return dataclasses.replace(
        h200,
        base_s=h200.base_s / bandwidth,
        experts_s=h200.experts_s / bandwidth,
        kv_token_s=h200.kv_token_s / bandwidth,
        sequence_s=h200.sequence_s / compute,
        prefill_token_s=h200.prefill_token_s / compute,
        prefill_pair_s=h200.prefill_pair_s / compute,
    )


_H200_CAPACITY = capacity(141e9, max_num_seqs=1024)
H200 = Machine("h200", shipped("h200").step, _H200_CAPACITY, "fitted")
H200_STEPS = Machine("h200-steps", shipped("h200-steps").step, _H200_CAPACITY, "fitted")
A100 = Machine("a100", _predicted_a100(H200.step), capacity(80e9), "predicted")
MACHINES = {machine.name: machine for machine in (H200, H200_STEPS, A100)}

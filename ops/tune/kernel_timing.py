"""Times vLLM's own fused-MoE layer under one tile or another, in a process of its own: a tile may break a CUDA context.

`python -m ops.tune.kernel_timing EXPERTS_JSON PARENT_PID` says where vLLM looks for tiles, then answers each question
with a time. It needs CUDA and Triton, and was not run where this was written: it follows the source of vLLM 0.32
(fused_moe.py: fused_experts, override_config, get_config_file_name).
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from experts.linux import die_with_parent
from ops.child import Child, Died
from ops.tune.kernels import Experts, Tile

_IN_GRAPH = 10  # calls that one replay of the CUDA graph makes
_ROUTINGS = 8  # choices of experts that take turns
_START_S = 180.0
_LIMIT_S = 90.0  # for one tile: its two kernels compile in seconds


class Where(msgspec.Struct, frozen=True):
    """The file that vLLM looks for, and what decides about its tiles."""

    file: str
    gpu: str
    triton: str
    shared_bytes: int  # that a block may use


class Ask(msgspec.Struct, frozen=True):
    """`config` None: vLLM's own. `calls` 0: it is only looked up."""

    batch: int
    config: dict[str, int] | None
    calls: int


class Timed(msgspec.Struct, frozen=True):
    """Microseconds of a call, the median; None: it does not run. `own`: vLLM's configuration, if that was asked for."""

    us: float | None
    reason: str = ""
    own: dict[str, int] | None = None


class KernelTimer:
    """This module in a process of its own, started again when a tile has broken it. Died: it does not start."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts
        self._start()

    def _start(self) -> None:
        # What was tuned before is no part of what it is compared with.
        env = {name: value for name, value in os.environ.items() if name != "VLLM_TUNED_CONFIG_FOLDER"}
        shape = msgspec.json.encode(self._experts._asdict()).decode()
        self._child = Child("the kernels", "ops.tune.kernel_timing", [shape], env)
        try:
            self.where = msgspec.json.decode(self._child.hear(_START_S), type=Where)
        except BaseException:
            self._child.end()
            raise

    def time(self, batch: int, tile: Tile | None, calls: int) -> Timed:
        ask = Ask(batch, None if tile is None else tile.as_vllm(), calls)
        try:
            return msgspec.json.decode(self._child.ask(msgspec.json.encode(ask), _LIMIT_S), type=Timed)
        except Died as died:
            self._child.end()
            self._start()
            return Timed(None, str(died))

    def end(self) -> None:
        self._child.end()


def main() -> None:
    die_with_parent(int(sys.argv[2]))
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # vLLM logs to the standard output, which is ours
    experts = msgspec.json.decode(sys.argv[1], type=Experts)

    def tell(answer: Where | Timed) -> None:
        told.write(msgspec.json.encode(answer) + b"\n")
        told.flush()

    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        layer = _Layer(experts)
        tell(layer.where())
        for line in sys.stdin.buffer:
            tell(layer.time(msgspec.json.decode(line, type=Ask)))
    os._exit(0)


class _Layer:
    """Random weights of one layer's experts on the GPU, and calls of vLLM's function for them."""

    def __init__(self, experts: Experts) -> None:
        import torch
        from vllm.model_executor.layers.fused_moe import override_config
        from vllm.model_executor.layers.fused_moe.config import int8_w8a8_moe_quant_config
        from vllm.model_executor.layers.fused_moe.fused_moe import (
            fused_experts,
            get_config_file_name,
            try_get_optimal_moe_config,
        )

        self._torch, self._experts, self._override = torch, experts, override_config
        self._call, self._lookup, self._file_name = fused_experts, try_get_optimal_moe_config, get_config_file_name
        first = (experts.number, 2 * experts.width, experts.hidden)
        second = (experts.number, experts.hidden, experts.width)
        if experts.weight_bytes == 1:
            self._weights = [torch.randint(-127, 127, s, dtype=torch.int8, device="cuda") for s in (first, second)]
            scales = [torch.full((*s[:2], 1), 1e-3, dtype=torch.float32, device="cuda") for s in (first, second)]
            self._quantized = int8_w8a8_moe_quant_config(*scales, None, None, per_act_token_quant=True)
        else:
            self._weights = [torch.randn(s, dtype=torch.bfloat16, device="cuda") / 10 for s in (first, second)]
            self._quantized = None
        torch.manual_seed(0)

    def where(self) -> Where:
        from vllm.triton_utils import triton

        most = triton.runtime.driver.active.utils.get_device_properties(0)["max_shared_mem"]  # what Triton checks by
        return Where(
            # vLLM has no name of its own for int8 W8A8: those engines look for the same file.
            file=self._file_name(self._experts.number, self._experts.width, None),
            gpu=self._torch.cuda.get_device_name(0),
            triton=str(triton.__version__),
            shared_bytes=int(most),
        )

    def time(self, ask: Ask) -> Timed:
        own = None
        if ask.config is None:
            shapes = [tuple(weights.shape) for weights in self._weights]
            with self._override(None):  # whatever a tile that broke has left there
                own = dict(self._lookup(*shapes, self._experts.top_k, None, ask.batch))
            if not ask.calls:
                return Timed(None, own=own)
        try:
            with self._override(ask.config):
                return Timed(self._median_us(self._calls_of(ask.batch), ask.calls), own=own)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if "CUDA" in text:
                raise  # the context is of no use any more: the parent starts another
            return Timed(None, text[:200], own)

    def _calls_of(self, batch: int) -> tuple[Callable[[], None], Callable[[int], None]]:
        """A replay of a graph of calls, and what gives it other routings."""
        torch, experts = self._torch, self._experts
        tokens = torch.randn((batch, experts.hidden), dtype=torch.bfloat16, device="cuda")
        shares = torch.full((batch, experts.top_k), 1.0 / experts.top_k, dtype=torch.float32, device="cuda")
        drawn = torch.rand((_ROUTINGS, batch, experts.number), device="cuda")
        routings = drawn.topk(experts.top_k, dim=-1).indices.to(torch.int32)
        ids = routings[0].clone()

        def call() -> Any:
            return self._call(tokens, *self._weights, shares, ids, quant_config=self._quantized)

        call()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_IN_GRAPH):
                call()
        return graph.replay, lambda turn: ids.copy_(routings[turn % _ROUTINGS])

    def _median_us(self, made: tuple[Callable[[], None], Callable[[int], None]], calls: int) -> float:
        torch, (replay, route) = self._torch, made
        times = []
        for turn in range(-2, max(calls // _IN_GRAPH, 3)):
            route(turn)
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            replay()
            ended.record()
            ended.synchronize()
            if turn >= 0:  # those before warm it
                times.append(1e3 * began.elapsed_time(ended) / _IN_GRAPH)
        return float(statistics.median(times))


if __name__ == "__main__":
    main()

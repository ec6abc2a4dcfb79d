"""Our one hook inside vLLM's processes: experts sharded over CPU workers, and workers that die with their parent.

vLLM calls `register` in every process (entry point group `vllm.general_plugins`): front end, engine core, workers, and
the short-lived process that inspects a model class. So it imports nothing and patches nothing that the process would
not load by itself: a hook waits for vLLM's CPU worker to be imported, and that worker patches only when it was asked
for expert parallelism. On a GPU nothing of vLLM is touched.

Why a patch: `CPUUnquantizedExperts.apply` (vllm/model_executor/layers/fused_moe/experts/cpu_moe.py, 0.32.0) is handed
`expert_map` and ignores it, so it indexes this shard's experts with global ids: a segmentation fault.
Tried on x86 (kernel "vec", float32, tensor_parallel_size=2; tests/experts/test_sharded_engine.py): Qwen3Moe, Qwen2Moe
(shared expert, padded width) and OLMoE (7 experts) give one process's greedy tokens, logprobs within 5e-6; DeepseekV3
(grouped sigmoid routing, shared expert) gives those of tensor parallelism. Not run: AMX, NEON, VSX, zentorch. The
quantized CPU experts have `apply` methods of their own and are not patched.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import multiprocessing
import multiprocessing.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from experts.linux import die_with_parent
from experts.placement import ShardPlacement

if TYPE_CHECKING:
    from torch import Tensor

WRITTEN_FOR = "0.32.0"
"""The vLLM version whose internals this file knows."""

_CPU_WORKER = "vllm.v1.worker.cpu_worker"
_CPU_EXPERTS = "vllm.model_executor.layers.fused_moe.experts.cpu_moe"
_PATCHED = "_moray_patched"


def register() -> None:
    """vLLM's entry point. Idempotent; costs a few microseconds until a CPU worker is imported."""
    _die_with_parent()  # a spawned worker comes here from WorkerWrapperBase.init_worker
    if not any(isinstance(finder, _CpuWorkerHook) for finder in sys.meta_path):
        # A forked worker never comes here: it inherits vLLM's "plugins are loaded" (vllm/plugins/__init__.py).
        multiprocessing.util.register_after_fork(_in_forked_child, _in_forked_child)
        sys.meta_path.insert(0, _CpuWorkerHook())
    if _CPU_WORKER in sys.modules:
        _patch_cpu_worker(sys.modules[_CPU_WORKER])


# --- experts of this shard only -------------------------------------------------------------------------------------


def map_topk(topk_ids: "Tensor", topk_weights: "Tensor", expert_map: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Routing in global expert ids -> the same routing in this shard's local ids, its absent experts weighing 0.

    topk_ids: int32 [tokens, top_k]. topk_weights: float32 [tokens, top_k]. expert_map: int32 [global experts], the
    local slot or -1. Returns the same shapes and dtypes, contiguous: the kernel ignores strides.

    A choice that another shard holds still needs a legal id; it becomes slot 0 with weight 0, so the sum over shards
    is the unsharded result. The kernel computes those rows for nothing (it knows no "skip").
    """
    slots = expert_map[topk_ids]
    return slots.clamp(min=0), topk_weights.masked_fill(slots < 0, 0.0)


_APPLY_NEEDS = frozenset(
    {"output", "hidden_states", "w1", "topk_ids", "topk_weights", "expert_map", "apply_router_weight_on_input"}
)


def _mapped(apply: Callable[..., None]) -> Callable[..., None]:
    """Wrap `CPUUnquantizedExperts.apply` so that it obeys `expert_map`; without a map it is called as it was.

    One wrapper serves all instruction sets (vec, AMX, NEON, VSX) and zentorch: the subclasses inherit `apply`, and
    the mapping is over before it branches. The activation plays no part.
    """
    names = tuple(inspect.signature(apply).parameters)[1:]

    @functools.wraps(apply)
    def apply_mapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if args:  # vLLM passes names only; be no stricter than the original
            kwargs.update(zip(names, args, strict=False))
        expert_map = kwargs["expert_map"]
        if expert_map is None:
            return apply(self, **kwargs)
        output, topk_ids = kwargs["output"], kwargs["topk_ids"]
        if kwargs["w1"].shape[0] == 0:  # more shards than experts: nothing here to add to the sum
            output.zero_()
            return None
        ids, weights = map_topk(topk_ids, kwargs["topk_weights"], expert_map)
        apply(self, **{**kwargs, "topk_ids": ids, "topk_weights": weights})
        if kwargs["apply_router_weight_on_input"]:
            # Weights are already in hidden_states (top-1 only) and the kernel skips them, so zero weights do nothing.
            output.masked_fill_(expert_map[topk_ids] < 0, 0.0)
        return None

    setattr(apply_mapped, _PATCHED, True)
    return apply_mapped


def _shard_cpu_experts() -> None:
    """Make the CPU kernels obey `expert_map`. Raises where vLLM is not as this file knows it: a wrong guess is a crash
    or, worse, wrong answers."""
    try:
        experts = importlib.import_module(_CPU_EXPERTS).CPUUnquantizedExperts
        missing = _APPLY_NEEDS - inspect.signature(experts.apply).parameters.keys()
    except (ImportError, AttributeError) as error:
        raise _unknown_vllm(str(error)) from error
    if missing:
        raise _unknown_vllm(f"CPUUnquantizedExperts.apply has no parameter {', '.join(sorted(missing))}")
    if not hasattr(experts.apply, _PATCHED):
        experts.apply = _mapped(experts.apply)


def _unknown_vllm(reason: str) -> RuntimeError:
    installed = getattr(sys.modules.get("vllm"), "__version__", "unknown")
    return RuntimeError(
        f"Expert parallelism on CPU needs vLLM {WRITTEN_FOR}, for which experts/vllm_plugin.py was written; "
        f"this is vLLM {installed}: {reason}. Install {WRITTEN_FOR} or start without enable_expert_parallel."
    )


def _patch_cpu_worker(cpu_worker: ModuleType) -> None:
    """Before a CPU worker loads its model: patch the experts, if it is to hold only some of them."""
    load_model = cpu_worker.CPUWorker.load_model
    if hasattr(load_model, _PATCHED):
        return

    @functools.wraps(load_model)
    def load_model_sharded(self: Any, *args: Any, **kwargs: Any) -> Any:
        parallel = self.parallel_config
        if parallel.enable_expert_parallel and parallel.tensor_parallel_size * parallel.data_parallel_size > 1:
            _shard_cpu_experts()
        return load_model(self, *args, **kwargs)

    setattr(load_model_sharded, _PATCHED, True)
    cpu_worker.CPUWorker.load_model = load_model_sharded


class _CpuWorkerHook(importlib.abc.MetaPathFinder):
    """Runs `_patch_cpu_worker` right after vLLM's CPU worker has been imported, in processes that import it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _CPU_WORKER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader, exec_module = spec.loader, spec.loader.exec_module

            def exec_and_patch(module: ModuleType) -> None:
                exec_module(module)
                _patch_cpu_worker(module)

            loader.exec_module = exec_and_patch  # type: ignore[method-assign]
        return spec


# --- worker processes -----------------------------------------------------------------------------------------------


def fork_workers() -> None:
    """Let the executor of this process fork its CPU workers instead of spawning them.

    Call it between `EngineArgs.create_engine_config()`, which sets "spawn" on CPU (vllm/platforms/cpu.py), and
    `EngineCore(...)`. A forked worker shares the pages of vLLM's import and skips its 10 s.

    Only in a process that runs nothing but its engine core: a forked child owns one thread, so a lock that another
    thread held stays held for ever. vLLM itself goes back to "spawn" inside a Ray actor.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(
            f"Workers cannot be forked safely: this process already runs {threads} threads (Python's: {names}). "
            "Call fork_workers in a fresh process with OMP_NUM_THREADS=1, or leave vLLM's default, spawn."
        )
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"


def _in_forked_child(_: object) -> None:
    if _is_vllm_worker():
        _die_with_parent()
        _keep_to_own_cpus()


def _is_vllm_worker() -> bool:
    """Is this a child of vLLM's MultiprocExecutor? Its WorkerProc.make_worker_process names it "VllmWorker-<rank>".

    An engine core or an API server is none: whoever starts those decides how long they live.
    """
    name = multiprocessing.current_process().name
    return multiprocessing.parent_process() is not None and name.startswith("VllmWorker")


def _die_with_parent() -> None:
    """Have Linux SIGKILL this worker when its engine core is gone, also when that was killed by SIGKILL.

    vLLM's own death pipe only closes queues, from a Python thread: a worker inside a collective lives on, and a forked
    sibling can hold the pipe open. The kernel's signal needs no cooperation.

    The signal comes when the *thread* that started the worker ends, so an engine core must be built in a thread that
    lives as long as the engine.
    """
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None and parent.pid is not None and _is_vllm_worker():
        die_with_parent(parent.pid)


def _keep_to_own_cpus() -> None:
    """Pin a forked worker to the CPUs that vLLM chose for it.

    vLLM hands them over in OMP_PLACES (vllm/utils/ompmultiprocessing.py), which OpenMP reads when it is loaded: in a
    forked child that was long ago, in the parent. The same goes for OMP_NUM_THREADS, so that must be right (CPUs per
    shard) in the engine core's own environment.
    """
    places = os.environ.get("OMP_PLACES", "")
    cpus = {int(cpu) for cpu in places.strip("{}").split(",") if cpu.isdigit()}
    if cpus:
        os.sched_setaffinity(0, cpus)


# --- which experts live on which shard ------------------------------------------------------------------------------


def expert_placement(worker: Any) -> ShardPlacement:
    """What this worker holds; call it on all: `engine_core.collective_rpc(expert_placement)`, one result per rank.

    Read from the layers' own maps and tensors, not computed from the configuration: it tells the truth also after a
    re-shuffle or a fault. cloudpickle sends the function by name, so workers import it from here.
    """
    import torch  # present in every worker; not at module level: the front end's planning code imports this file too

    layers = [
        (name, module) for name, module in worker.get_model().named_modules() if hasattr(module, "expert_map_manager")
    ]
    # vLLM's MoE runner forwards `expert_map_manager` to the RoutedExperts inside it: keep those that own the weights.
    layers = [(name, module) for name, module in layers if "expert_map_manager" in vars(module)]
    parallel = worker.parallel_config
    moe = layers[0][1].moe_config.moe_parallel_config if layers else None
    return ShardPlacement(
        tp_rank=worker.rank % parallel.tensor_parallel_size,
        ep_rank=moe.ep_rank if moe else 0,
        ep_size=moe.ep_size if moe else 1,
        pid=os.getpid(),
        experts={name: _held(module.expert_map, module.global_num_experts) for name, module in layers},
        expert_bytes=sum(
            tensor.numel() * tensor.element_size()
            for _, module in layers
            for tensor in module.parameters()
            if isinstance(tensor, torch.Tensor)
        ),
    )


def _held(expert_map: "Tensor | None", num_experts: int) -> tuple[int, ...]:
    """Global ids in the order of their local slots. expert_map: int32 [global experts] or None (all are here)."""
    if expert_map is None:
        return tuple(range(num_experts))
    slots = {int(slot): expert for expert, slot in enumerate(expert_map.tolist()) if slot >= 0}
    return tuple(slots[slot] for slot in sorted(slots))

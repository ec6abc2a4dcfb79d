"""Our one hook inside vLLM's processes: CPU workers that hold the experts that a plan gives them, a count of what each
expert is given, other weights while they run, and workers that die with their parent.

vLLM calls `register` in every process (entry point group `vllm.general_plugins`): front end, engine core, workers, and
the short-lived process that inspects a model class. So it imports nothing and patches nothing that the process would
not load by itself: a hook waits for vLLM's worker to be imported, and that worker is changed only when it loads a model
that asks for it: on a CPU for expert parallelism, anywhere for counting (OF_A_REPLICA).

Why a patch: `CPUUnquantizedExperts.apply` (vllm/model_executor/layers/fused_moe/experts/cpu_moe.py, 0.32.0) is handed
`expert_map` and ignores it, so it indexes this shard's experts with global ids: a segmentation fault.
Tried on x86 (kernel "vec", float32, tensor_parallel_size=2; tests/experts/test_sharded_engine.py): Qwen3Moe, Qwen2Moe
(shared expert, padded width) and OLMoE (7 experts) give one process's greedy tokens, logprobs within 5e-6; DeepseekV3
(grouped sigmoid routing, shared expert) gives those of tensor parallelism. Not run: AMX, NEON, VSX, zentorch. The
quantized CPU experts have `apply` methods of their own and are not patched.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import itertools
import logging
import multiprocessing
import multiprocessing.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from experts.placement import ShardPlacement
from experts.sharded_routing import copies_of, map_topk
from experts.worker_processes import in_forked_child, vllm_worker_dies_with_parent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from experts.plan import Placement
    from experts.routed_tokens import RoutedTokens

logger = logging.getLogger(__name__)

WRITTEN_FOR = "0.32.0"
"""The vLLM version whose internals this file knows."""

OF_A_REPLICA = "MORAY_OF_A_REPLICA"
"""Environment: "1" in a replica's processes: count what each expert is given; under EPLB, place by our policy."""
EXPERT_PLAN = "MORAY_WORKER_EXPERT_PLAN"
"""Environment: the file of an `experts.plan` by which CPU workers deal out their experts; empty: as vLLM does."""

_WORKER = "vllm.v1.worker.gpu_worker"  # vLLM's CPU worker is a subclass
_EXPERT_MAPS = "vllm.model_executor.layers.fused_moe.expert_map_manager"
_EPLB_POLICIES = "vllm.distributed.eplb.policy"
_RUNNERS = "vllm.model_executor.layers.fused_moe.runner.moe_runner"
_ROUTERS = "vllm.model_executor.layers.fused_moe.router.base_router"
_CPU_EXPERTS = "vllm.model_executor.layers.fused_moe.experts.cpu_moe"
_UNQUANTIZED = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
_EPLB_STATE = "vllm.distributed.eplb.eplb_state"
_STARTUP_PLAN = "vllm.v1.worker.startup_plan"
_RELOAD = "vllm.model_executor.model_loader.reload.layerwise"
_MOST_EXPERTS = 1 << 16  # of a layer
_PATCHED = "_moray_patched"
_COPIES = "_moray_copies"  # of a kernel
_COUNTER = "_moray_routed_tokens"  # of a model runner


def register() -> None:
    """vLLM's entry point. Idempotent; costs a few microseconds until a worker is imported."""
    vllm_worker_dies_with_parent()  # a spawned worker comes here from WorkerWrapperBase.init_worker
    if not any(isinstance(finder, _WorkerHook) for finder in sys.meta_path):
        # A forked worker never comes here: it inherits vLLM's "plugins are loaded" (vllm/plugins/__init__.py).
        multiprocessing.util.register_after_fork(in_forked_child, in_forked_child)
        sys.meta_path.insert(0, _WorkerHook())
    if _WORKER in sys.modules:
        _patch_worker(sys.modules[_WORKER])


# --- experts of this shard only -------------------------------------------------------------------------------------


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
        ids, weights = map_topk(topk_ids, kwargs["topk_weights"], expert_map, getattr(self, _COPIES, None))
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


# --- experts where a plan wants them --------------------------------------------------------------------------------


@contextlib.contextmanager
def _dealt_by(plan: "Placement") -> Iterator[None]:
    """Has the MoE layers that are built meanwhile hold what the plan says, the first layer's first.

    Weights follow by themselves: vLLM's loader asks the layer's map where an expert's tensors go, on each rank.
    """
    import torch

    managers = importlib.import_module(_EXPERT_MAPS).ExpertMapManager
    calculate, built = managers._calculate_expert_maps, itertools.count()

    def planned(self: Any) -> None:
        calculate(self)
        layers, ranks, slots = plan.experts.shape
        layer = next(built)
        if (ranks, plan.expert_count) != (self.ep_size, self.global_num_experts) or layer >= layers:
            raise ValueError(
                f"The expert plan is for {layers} layers of {plan.expert_count} experts on {ranks} shards; "
                f"MoE layer {layer + 1} of the model has {self.global_num_experts} on {self.ep_size}."
            )
        self._expert_map = torch.full((plan.expert_count,), -1, dtype=torch.int32)
        # Of two copies on one rank the first is loaded: slot 0 must hold weights, for what is computed elsewhere is
        # computed there with weight 0, and nothing times NaN is NaN.
        for slot, expert in reversed(list(enumerate(plan.experts[layer, self.ep_rank].tolist()))):
            self._expert_map[expert] = slot
        self._local_num_experts = slots

    managers._calculate_expert_maps = planned
    try:
        yield
    finally:
        managers._calculate_expert_maps = calculate
    if (layers := next(built)) != plan.experts.shape[0]:
        raise ValueError(f"The expert plan is for {plan.experts.shape[0]} MoE layers; the model has {layers}.")


def _tell_kernels_of_copies(model: Any, plan: "Placement") -> None:
    for (_, layer), placed in zip(_moe_layers(model), plan.experts, strict=True):
        rank = layer.moe_config.moe_parallel_config.ep_rank
        kernel = layer.quant_method.moe_kernel.impl.fused_experts
        setattr(kernel, _COPIES, copies_of(placed, plan.expert_count, rank))


# --- what each expert is given ---------------------------------------------------------------------------------------


def count_routed_tokens(worker: Any) -> None:
    """Begins to count, in the first rank of a tensor-parallel group: all of its ranks route the same tokens.

    To be called before CUDA graphs are captured: they hold the counting. Nothing is counted where a kernel routes by
    itself (vLLM calls it monolithic: zentorch's on a CPU, some on Blackwell), nor with data-parallel ranks in one
    engine, which may see each other's tokens.
    """
    from experts.routed_tokens import routed_tokens

    router_class = importlib.import_module(_ROUTERS).BaseRouter
    layers, parallel = _moe_runners(worker.get_model()), worker.parallel_config
    if not layers or worker.rank % parallel.tensor_parallel_size or parallel.data_parallel_size > 1:
        return
    if any(m.routed_experts.quant_method.is_monolithic or not isinstance(m.router, router_class) for m in layers):
        return
    config, runner = layers[0].routed_experts.moe_config, worker.model_runner
    counter = routed_tokens(
        len(layers), config.num_logical_experts, config.experts_per_token, config.max_num_tokens, runner.device
    )
    for index, layer in enumerate(layers):
        layer.router._compute_routing = _told(layer.router._compute_routing, counter.of_layer(index))
    setattr(runner, _COUNTER, counter)
    runner.execute_model = _counted(runner.execute_model, counter)


def stop_counting_routed_tokens(worker: Any) -> None:
    """As if it had not begun; on a CPU only, where no graph holds the counting."""
    runner = worker.model_runner
    if hasattr(runner, _COUNTER):
        for layer in _moe_runners(worker.get_model()):
            del layer.router._compute_routing
        del runner.execute_model
        delattr(runner, _COUNTER)


def _moe_runners(model: Any) -> list[Any]:
    """vLLM's MoERunner of each MoE layer, in the model's order."""
    runner_class = importlib.import_module(_RUNNERS).MoERunner
    return [module for module in model.modules() if isinstance(module, runner_class)]


def _told(compute: Callable[..., tuple["Tensor", "Tensor"]], tell: Callable[["Tensor"], None]) -> Callable[..., Any]:
    def compute_and_tell(*args: Any, **kwargs: Any) -> tuple["Tensor", "Tensor"]:
        weights, ids = compute(*args, **kwargs)
        tell(ids)
        return weights, ids

    return compute_and_tell


def _counted(execute: Callable[..., Any], counter: "RoutedTokens") -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_and_count(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = execute(scheduler_output, *args, **kwargs)
        if not kwargs.get("dummy_run"):  # vLLM's V2 runner warms itself by it
            counter.step_issued(scheduler_output.total_num_scheduled_tokens)
        return result

    return execute_and_count


def routed_tokens(worker: Any) -> "NDArray[np.int64] | None":
    """[MoE layer, expert], in the order of `expert_placement`, since the start; None in ranks that do not count."""
    counter: RoutedTokens | None = getattr(worker.model_runner, _COUNTER, None)
    return None if counter is None else counter.counts().numpy()


# --- other weights ---------------------------------------------------------------------------------------------------


def reload_weights(worker: Any, directory: str) -> str:
    """Gives the worker's model the weights of another checkpoint; returns why it could not, "" if it could.

    For all workers at once, while nothing runs, and for files that hold just the tensors that the model was loaded
    from: vLLM keeps the old values of others, or what was in memory. After a failure the model is of no use until a
    reload succeeds. Nothing is raised: vLLM's executor would hear of the first exception only, and take the other
    workers' answers for those of its next call.
    """
    model = worker.get_model()
    state = getattr(worker.model_runner, "eplb_state", None)
    try:
        if worker.device_config.device.type == "cpu":
            _pack_reloaded_experts()
        if state is not None:
            state.drain_async()  # experts that are on their way to another shard are not to arrive later
        worker.reload_weights(weights_path=directory)
        if state is not None:
            _place_experts_as_loaded(state, model)
    except Exception as error:
        logger.exception("Reloading the weights failed.")
        _end_reload(model)
        return f"{type(error).__name__}: {error}"
    return ""


def _pack_reloaded_experts() -> None:
    """Has vLLM pack a CPU's unquantized experts for their kernel also when it reloads them.

    0.32.0 does it at the first load only, where it builds the kernel (UnquantizedFusedMoEMethod._setup_kernel). After
    a reload rows would stand where the kernel looks for tiles: other answers, and no error.
    """
    method = importlib.import_module(_UNQUANTIZED).UnquantizedFusedMoEMethod
    setup = method._setup_kernel
    if hasattr(setup, _PATCHED):
        return

    @functools.wraps(setup)
    def setup_and_pack(self: Any, layer: Any, *args: Any, **kwargs: Any) -> None:
        kernel = self.moe_kernel
        setup(self, layer, *args, **kwargs)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)

    setattr(setup_and_pack, _PATCHED, True)
    method._setup_kernel = setup_and_pack


def _place_experts_as_loaded(state: Any, model: Any) -> None:
    """EPLB's maps as at the start: there vLLM has put the experts again, wherever they had been moved to since."""
    import torch

    eplb = importlib.import_module(_EPLB_STATE)
    reloaded = set(model.modules())  # a draft model's experts stay where they are
    for moved in [each for each in state.model_states.values() if each.model in reloaded]:
        moe = moved.model
        first = eplb.EplbState.build_initial_global_physical_to_logical_map(
            moe.num_routed_experts, moe.num_redundant_experts
        )
        eplb._commit_eplb_maps(moved, torch.tensor(first).repeat(moe.num_moe_layers, 1))


def _end_reload(model: Any) -> None:
    """What a failed reload leaves: layers without tensors, and others that a further reload would take for half loaded,
    so that it ends them with tensors of both checkpoints.
    """
    reload = importlib.import_module(_RELOAD)
    for layer in model.modules():
        info = reload.get_layerwise_info(layer)
        if info.can_load() and info.kernel_tensors is not None:
            reload._place_kernel_tensors(layer, info)
        info.reset()
    reload.LOADING_LAYERS.clear()
    if hasattr(model, "_original_do_torchao_reload"):
        model._do_torchao_reload = model._original_do_torchao_reload


def weight_digests(worker: Any) -> dict[str, str]:
    """Tensor's name, with the worker's ranks -> SHA-256 of its bytes as they lie in memory. Buffers are not counted."""
    digests: dict[str, str] = worker.compute_weight_checksums()
    return digests


# --- the hook --------------------------------------------------------------------------------------------------------


def _patch_worker(module: ModuleType) -> None:
    """Before a worker loads its model, the experts it is to hold; after, what counts them."""
    load_model = module.Worker.load_model
    if hasattr(load_model, _PATCHED):
        return

    @functools.wraps(load_model)
    def load_model_sharded(self: Any, *args: Any, **kwargs: Any) -> Any:
        parallel = self.parallel_config
        shards = parallel.tensor_parallel_size * parallel.data_parallel_size
        plan = None
        of_a_replica = os.environ.get(OF_A_REPLICA) == "1"
        if of_a_replica and parallel.enable_eplb:  # before the model is loaded, when EPLB looks its policy up
            from experts.eplb_policy import install

            install(importlib.import_module(_EPLB_POLICIES))
        if self.device_config.device.type == "cpu" and parallel.enable_expert_parallel and shards > 1:
            _shard_cpu_experts()
            plan = _plan()
        with _dealt_by(plan) if plan else contextlib.nullcontext():
            result = load_model(self, *args, **kwargs)
        if plan:
            _tell_kernels_of_copies(self.get_model(), plan)
        if of_a_replica:
            count_routed_tokens(self)
            if self.device_config.device.type == "cuda":
                _tell_memory_plans_apart(importlib.import_module(_STARTUP_PLAN))
        return result

    setattr(load_model_sharded, _PATCHED, True)
    module.Worker.load_model = load_model_sharded


def _tell_memory_plans_apart(plans: Any) -> None:
    """Has vLLM take a measured size of the KV cache only for the settings that it was measured with.

    Its fingerprint is that of a compiled graph (vllm/v1/worker/startup_plan.py, 0.32.0): it lacks what decides on
    memory and on no graph, gpu_memory_utilization before all, so that another one would be ignored from the second
    start on. A worker asks twice, and its configuration changes in between: what it was told first holds.
    """
    fingerprint = plans.compute_plan_fingerprint
    if hasattr(fingerprint, _PATCHED):
        return
    told: dict[tuple[int, int], tuple[str, Any]] = {}  # with the configuration: no other one shall get its number

    def of_all_settings(config: Any, rank: int, world_size: int) -> str:
        asked = id(config), rank
        if asked not in told:
            graphs = config.compilation_config
            more = (
                config.cache_config.gpu_memory_utilization,
                config.model_config.enforce_eager,
                config.scheduler_config.max_num_seqs,
                str(graphs.cudagraph_mode),
                graphs.cudagraph_capture_sizes,
                os.environ.get(OF_A_REPLICA),  # what counts tokens takes memory too
            )
            whole = repr((fingerprint(config, rank, world_size), more))
            told[asked] = hashlib.sha256(whole.encode()).hexdigest()[:16], config
        return told[asked][0]

    setattr(of_all_settings, _PATCHED, True)
    plans.compute_plan_fingerprint = of_all_settings


def _plan() -> "Placement | None":
    if not (file := os.environ.get(EXPERT_PLAN)):
        return None
    from experts.plan import PlacementPlan

    return PlacementPlan.from_json(Path(file).read_bytes()).placement


class _WorkerHook(importlib.abc.MetaPathFinder):
    """Runs `_patch_worker` right after vLLM's worker has been imported, in processes that import it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _WORKER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader, exec_module = spec.loader, spec.loader.exec_module

            def exec_and_patch(module: ModuleType) -> None:
                exec_module(module)
                _patch_worker(module)

            loader.exec_module = exec_and_patch  # type: ignore[method-assign]
        return spec


# --- which experts live on which shard ------------------------------------------------------------------------------


def expert_placement(worker: Any) -> ShardPlacement:
    """What this worker holds; call it on all: `engine_core.collective_rpc(expert_placement)`, one result per rank.

    Read from the layers' own maps and tensors, not computed from the configuration: it tells the truth also after a
    re-shuffle or a fault. cloudpickle sends the function by name, so workers import it from here.
    """
    import torch  # present in every worker; not at module level: the front end's planning code imports this file too

    layers = _moe_layers(worker.get_model())
    logical = _logical_experts(worker, len(layers))
    parallel = worker.parallel_config
    moe = layers[0][1].moe_config.moe_parallel_config if layers else None
    return ShardPlacement(
        tp_rank=worker.rank % parallel.tensor_parallel_size,
        ep_rank=moe.ep_rank if moe else 0,
        ep_size=moe.ep_size if moe else 1,
        pid=os.getpid(),
        experts={
            name: tuple(ids[slot] for slot in _held(module.expert_map, module.global_num_experts))
            for (name, module), ids in zip(layers, logical, strict=True)
        },
        expert_bytes=sum(
            tensor.numel() * tensor.element_size()
            for _, module in layers
            for tensor in module.parameters()
            if isinstance(tensor, torch.Tensor)
        ),
    )


def _logical_experts(worker: Any, layers: int) -> Sequence[Sequence[int]]:
    """[MoE layer][expert as the layer's map counts them]: under EPLB the map's experts are slots, which it fills."""
    state = getattr(worker.model_runner, "eplb_state", None)
    if state is None or not state.model_states:
        return [range(_MOST_EXPERTS)] * layers
    model = next(iter(state.model_states.values()))  # of a draft model, a second one
    slots: list[list[int]] = model.physical_to_logical_map.tolist()
    return slots


def _moe_layers(model: Any) -> list[tuple[str, Any]]:
    """(name, vLLM's RoutedExperts), in the model's order.

    Its MoE runner forwards `expert_map_manager` to the RoutedExperts inside it: these own theirs.
    """
    return [(name, module) for name, module in model.named_modules() if "expert_map_manager" in vars(module)]


def _held(expert_map: "Tensor | None", num_experts: int) -> tuple[int, ...]:
    """Global ids in the order of their local slots. expert_map: int32 [global experts] or None (all are here)."""
    if expert_map is None:
        return tuple(range(num_experts))
    slots = {int(slot): expert for expert, slot in enumerate(expert_map.tolist()) if slot >= 0}
    return tuple(slots[slot] for slot in sorted(slots))

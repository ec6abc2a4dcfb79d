"""The plugin without vLLM: its arithmetic on torch alone, its hooks on a stand-in `vllm` and on plain processes."""

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts import vllm_plugin
from experts.sharded_routing import copies_of, map_topk
from experts.vllm_plugin import OF_A_REPLICA, expert_placement
from experts.worker_processes import fork_workers

ROOT = Path(__file__).parents[2]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG and fork")


def experts_output(
    x: torch.Tensor, weights: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
) -> torch.Tensor:
    """What a grouped GEMM of linear experts computes. x [T, d], weights [E, d, d], ids and weights [T, k] -> [T, d]."""
    return torch.einsum("tk,td,tkde->te", topk_weights, x, weights[topk_ids])


@st.composite
def routings(draw: st.DrawFn) -> tuple[list[list[int]], int, list[int]]:
    """Chosen experts [tokens, top_k], number of shards, and the shard of each expert (any deal, empty shards too)."""
    experts, shards = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    top_k = draw(st.integers(1, min(experts, 3)))
    token = st.lists(st.integers(0, experts - 1), min_size=top_k, max_size=top_k, unique=True)
    owners = draw(st.lists(st.integers(0, shards - 1), min_size=experts, max_size=experts))
    return draw(st.lists(token, min_size=1, max_size=6)), shards, owners


@given(routings(), st.integers(0, 2**31))
def test_shards_sum_to_the_unsharded_layer(routing: tuple[list[list[int]], int, list[int]], seed: int) -> None:
    chosen, shards, owners = routing
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(chosen, dtype=torch.int32)
    topk_weights = torch.rand(ids.shape, generator=generator)
    weights = torch.randn(len(owners), 4, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(len(chosen), 4, generator=generator, dtype=torch.float64)

    total = torch.zeros_like(x)
    for shard in range(shards):
        held = [expert for expert, owner in enumerate(owners) if owner == shard]
        expert_map = torch.full((len(owners),), -1, dtype=torch.int32)
        expert_map[held] = torch.arange(len(held), dtype=torch.int32)
        local_ids, local_weights = map_topk(ids, topk_weights, expert_map)

        assert local_ids.dtype == torch.int32
        assert local_weights.dtype == torch.float32
        assert local_ids.is_contiguous()
        assert local_weights.is_contiguous()
        assert (local_ids >= 0).all()
        if held:
            assert (local_ids < len(held)).all()
            total += experts_output(x, weights[held], local_ids.long(), local_weights.double())

    torch.testing.assert_close(total, experts_output(x, weights, ids.long(), topk_weights.double()))


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Chosen experts [tokens, top_k], and the experts in each shard's slots, copies on one shard or several."""
    experts, shards = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    spare = draw(st.integers(0, 6))
    slots = -((experts + spare) // -shards)
    extra = shards * slots - experts
    held = draw(
        st.permutations([*range(experts), *draw(st.lists(st.integers(0, experts - 1), min_size=extra, max_size=extra))])
    )
    top_k = draw(st.integers(1, min(experts, 3)))
    token = st.lists(st.integers(0, experts - 1), min_size=top_k, max_size=top_k, unique=True)
    chosen = draw(st.lists(token, min_size=1, max_size=12))
    return chosen, [held[shard * slots : (shard + 1) * slots] for shard in range(shards)]


@given(plans())
def test_each_choice_has_weight_on_one_shard_and_copies_take_turns(
    plan: tuple[list[list[int]], list[list[int]]],
) -> None:
    chosen, shards = plan
    ids, many = torch.tensor(chosen, dtype=torch.int32), torch.full((60, 1), chosen[0][0], dtype=torch.int32)
    experts = 1 + max(max(held) for held in shards)
    total = torch.zeros(ids.shape)
    for shard, held in enumerate(shards):
        expert_map = torch.full((experts,), -1, dtype=torch.int32)
        expert_map[held] = torch.arange(len(held), dtype=torch.int32)
        copies = copies_of(np.array(shards), experts, shard)
        local_ids, weights = map_topk(ids, torch.ones(ids.shape), expert_map, copies)
        total += weights
        taken = [
            (held[slot], expert)
            for slot, expert, weight in zip(local_ids.flatten(), ids.flatten(), weights.flatten(), strict=True)
            if weight
        ]
        assert all(found == expert for found, expert in taken)

        share = map_topk(many, torch.ones(60, 1), expert_map, copies)[1].mean().item()
        assert share == pytest.approx(held.count(chosen[0][0]) / sum(h.count(chosen[0][0]) for h in shards), abs=0.05)
    assert (total == 1).all()


def test_mapping_leaves_its_arguments_alone() -> None:
    ids, weights = torch.tensor([[0, 3]], dtype=torch.int32), torch.tensor([[0.25, 0.75]])

    local_ids, local_weights = map_topk(ids, weights, torch.tensor([-1, -1, 0, 1], dtype=torch.int32))

    assert (local_ids.tolist(), local_weights.tolist()) == ([[0, 1]], [[0.0, 0.75]])
    assert (ids.tolist(), weights.tolist()) == ([[0, 3]], [[0.25, 0.75]])


# --- the wrapper around the kernel ----------------------------------------------------------------------------------


class Kernel:
    """Stands for CPUUnquantizedExperts: records what reaches the kernel, adds up every choice it is given."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
    ) -> None:
        self.seen = dict(locals())
        gain = torch.ones_like(topk_weights) if apply_router_weight_on_input else topk_weights
        output.copy_(experts_output(hidden_states, w1, topk_ids.long(), gain))


@pytest.fixture
def call() -> Callable[..., dict[str, Any]]:
    """The wrapped kernel on 2 tokens, 4 experts of which this shard holds 2 and 3 (as 0 and 1)."""
    apply = vllm_plugin._mapped(Kernel.apply)

    def run(positional: bool = False, **changed: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "output": torch.full((2, 1), torch.nan),
            "hidden_states": torch.tensor([[1.0], [10.0]]),
            "w1": torch.tensor([[[2.0]], [[3.0]]]),
            "topk_weights": torch.tensor([[0.5, 0.5], [0.25, 0.75]]),
            "topk_ids": torch.tensor([[3, 0], [1, 0]], dtype=torch.int32),
            "expert_map": torch.tensor([-1, -1, 0, 1], dtype=torch.int32),
            "apply_router_weight_on_input": False,
            **changed,
        }
        kernel = Kernel()
        if positional:
            apply(kernel, *arguments.values())
        else:
            apply(kernel, **arguments)
        return {"given": arguments, "seen": kernel.seen, "output": arguments["output"].tolist()}

    return run


@pytest.mark.parametrize("positional", [False, True])
def test_only_held_experts_contribute(call: Callable[..., dict[str, Any]], positional: bool) -> None:
    assert call(positional)["output"] == [[1.5], [0.0]]


def test_without_a_map_the_kernel_gets_the_very_same_tensors(call: Callable[..., dict[str, Any]]) -> None:
    done = call(expert_map=None, topk_ids=torch.tensor([[1, 0], [1, 0]], dtype=torch.int32))

    assert all(done["seen"][name] is value for name, value in done["given"].items())


def test_router_weights_on_the_input_need_their_rows_cleared(call: Callable[..., dict[str, Any]]) -> None:
    """Llama 4's way, top-1: the kernel ignores topk_weights, so zero weights alone would let slot 0 answer."""
    done = call(
        topk_ids=torch.tensor([[3], [1]], dtype=torch.int32),
        topk_weights=torch.ones(2, 1),
        apply_router_weight_on_input=True,
    )

    assert done["output"] == [[3.0], [0.0]]


def test_a_shard_without_experts_adds_nothing(call: Callable[..., dict[str, Any]]) -> None:
    done = call(w1=torch.empty(0, 1, 1), expert_map=torch.full((4,), -1, dtype=torch.int32))

    assert done["output"] == [[0.0], [0.0]]
    assert done["seen"] == {}, "the kernel must not run on an empty weight"


# --- register: a stand-in vLLM --------------------------------------------------------------------------------------


def run_python(code: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={n: v for n, v in os.environ.items() if n != OF_A_REPLICA} | {"PYTHONPATH": str(path) if path else ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def fake_vllm(tmp_path: Path) -> Path:
    """A package `vllm` with just the modules that the plugin knows first, and a load_model that imports the kernels."""
    files = {
        "vllm/__init__.py": "__version__ = '0.99.1'",
        "vllm/v1/worker/gpu_worker.py": """
            from types import ModuleType, SimpleNamespace
            class Worker:
                device_config = SimpleNamespace(device=SimpleNamespace(type="cpu"))
                def __init__(self, config): self.parallel_config = config
                def load_model(self, *, load_dummy_weights=False):
                    from vllm.model_executor.layers.fused_moe.experts import cpu_moe
                    return getattr(cpu_moe, "CPUUnquantizedExperts", None)
        """,
        "vllm/v1/worker/cpu_worker.py": """
            from vllm.v1.worker.gpu_worker import Worker
            class CPUWorker(Worker): ...
        """,
        "vllm/model_executor/layers/fused_moe/experts/cpu_moe.py": """
            class CPUUnquantizedExperts:
                def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation,
                          global_num_experts, expert_map, apply_router_weight_on_input): ...
            class X86CPUUnquantizedExperts(CPUUnquantizedExperts): ...
        """,
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return tmp_path


LOAD = """
    import sys
    from types import ModuleType, SimpleNamespace
    from experts.vllm_plugin import register
    register(); register()
    from vllm.v1.worker.cpu_worker import CPUWorker
    config = SimpleNamespace(enable_expert_parallel={ep}, tensor_parallel_size={tp}, data_parallel_size=1,
                             enable_eplb=False)
    register()
    experts = CPUWorker(config).load_model(load_dummy_weights=True)
    wrapped = getattr(getattr(experts, "apply", None), "_moray_patched", False)
    twice = wrapped and hasattr(experts.apply.__wrapped__, "__wrapped__")
    print(wrapped, twice, "torch" in sys.modules)
"""


def test_registering_imports_and_patches_nothing() -> None:
    done = run_python("""
        import sys
        from experts.vllm_plugin import register
        register(); register()
        hooks = [type(finder).__name__ for finder in sys.meta_path].count("_WorkerHook")
        print(hooks, "torch" in sys.modules, "vllm" in sys.modules)
    """)

    assert (done.stdout, done.stderr) == ("1 False False\n", "")


@pytest.mark.parametrize(("ep", "tp", "wrapped"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_kernels_are_patched_once_and_only_for_expert_parallelism(
    fake_vllm: Path, ep: bool, tp: int, wrapped: bool
) -> None:
    done = run_python(LOAD.format(ep=ep, tp=tp), fake_vllm)

    assert (done.stdout, done.stderr) == (f"{wrapped} False False\n", "")


@pytest.mark.parametrize(
    ("cpu_moe", "reason"),
    [
        ("", "has no attribute 'CPUUnquantizedExperts'"),
        ("class CPUUnquantizedExperts:\n    def apply(self, output, topk_ids): ...", "has no parameter"),
        ("import nothing_like_this", "No module named 'nothing_like_this'"),
    ],
    ids=["no class", "other signature", "no module"],
)
def test_an_unknown_vllm_is_refused_only_when_experts_are_sharded(fake_vllm: Path, cpu_moe: str, reason: str) -> None:
    (fake_vllm / "vllm/model_executor/layers/fused_moe/experts/cpu_moe.py").write_text(cpu_moe)

    sharded = run_python(LOAD.format(ep=True, tp=2), fake_vllm)
    assert sharded.returncode == 1
    assert "Expert parallelism on CPU needs vLLM 0.32.0" in sharded.stderr
    assert "this is vLLM 0.99.1" in sharded.stderr
    assert reason in sharded.stderr

    if "nothing_like_this" not in cpu_moe:
        assert run_python(LOAD.format(ep=False, tp=2), fake_vllm).returncode == 0


# --- placement ------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """Stands for vLLM's RoutedExperts: 2 of 4 experts, slots in an order of their own."""

    def __init__(self, expert_map: torch.Tensor | None) -> None:
        super().__init__()
        self.expert_map_manager = object()
        self.expert_map = expert_map
        self.global_num_experts = 4
        self.moe_config = SimpleNamespace(moe_parallel_config=SimpleNamespace(ep_rank=1, ep_size=2))
        self.w13_weight = torch.nn.Parameter(torch.zeros(2, 3, 5))


def test_placement_comes_from_the_layers_themselves() -> None:
    model = torch.nn.ModuleDict(
        {
            "sparse": Layer(torch.tensor([1, -1, 0, -1], dtype=torch.int32)),
            "dense": torch.nn.Linear(2, 2),
            "all": Layer(None),
        }
    )
    worker = SimpleNamespace(
        rank=3,
        parallel_config=SimpleNamespace(tensor_parallel_size=2),
        get_model=lambda: model,
        model_runner=SimpleNamespace(),
    )

    placement = expert_placement(worker)

    assert placement.experts == {"sparse": (2, 0), "all": (0, 1, 2, 3)}
    assert placement.expert_bytes == 2 * (2 * 3 * 5) * 4
    assert (placement.tp_rank, placement.ep_rank, placement.ep_size, placement.pid) == (1, 1, 2, os.getpid())


def test_under_eplb_the_map_counts_slots_and_the_placement_tells_what_fills_them() -> None:
    """vllm/distributed/eplb/eplb_state.py: physical experts; here 4 slots of 3 experts, one of them twice."""
    model = torch.nn.ModuleDict({"sparse": Layer(torch.tensor([-1, -1, 0, 1], dtype=torch.int32))})
    filled = SimpleNamespace(physical_to_logical_map=torch.tensor([[0, 1, 2, 1]]))
    worker = SimpleNamespace(
        rank=1,
        parallel_config=SimpleNamespace(tensor_parallel_size=2),
        get_model=lambda: model,
        model_runner=SimpleNamespace(eplb_state=SimpleNamespace(model_states={"m": filled})),
    )

    assert expert_placement(worker).experts == {"sparse": (2, 1)}


def test_a_dense_model_has_no_experts() -> None:
    worker = SimpleNamespace(
        rank=0,
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        get_model=lambda: torch.nn.Linear(2, 2),
        model_runner=SimpleNamespace(),
    )

    assert expert_placement(worker).experts == {}
    assert expert_placement(worker).ep_size == 1


# --- processes ------------------------------------------------------------------------------------------------------

PARENT = """
    import multiprocessing, os, sys, time
    from experts.vllm_plugin import register

    def child(pipe):
        if multiprocessing.get_start_method() == "spawn":
            register()  # as vLLM's WorkerWrapperBase.init_worker does
        pipe.send(sorted(os.sched_getaffinity(0)))
        time.sleep(60)

    if __name__ == "__main__":
        how, name = sys.argv[1], sys.argv[2]
        multiprocessing.set_start_method(how)
        register()
        os.environ["OMP_PLACES"] = "{%d}" % max(os.sched_getaffinity(0))
        here, there = multiprocessing.Pipe()
        process = multiprocessing.Process(target=child, args=(there,), name=name)
        process.start()
        cpus = here.recv()
        print(process.pid, cpus, flush=True)
        time.sleep(60)
"""


@linux_only
@pytest.mark.parametrize("how", ["fork", "spawn"])
@pytest.mark.parametrize(("name", "dies"), [("VllmWorker-1", True), ("Somebody", False)])
def test_a_worker_dies_with_a_killed_parent(tmp_path: Path, how: str, name: str, dies: bool) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen(
        [sys.executable, str(script), how, name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    pid, cpus = parent.stdout.readline().split(maxsplit=1)
    worker = psutil.Process(int(pid))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()

        deadline = time.monotonic() + (1.0 if dies else 0.2)
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE) == dies
        if how == "fork" and dies:  # a forked worker's OpenMP cannot read OMP_PLACES any more
            assert cpus.strip() == str([max(os.sched_getaffinity(0))])
    finally:
        if worker.is_running():
            worker.kill()


@linux_only
def test_forking_is_refused_beside_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="somebody-else")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match=r"already runs .* threads .*somebody-else"):
            fork_workers()
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    finally:
        stop.set()
        thread.join()


@linux_only
def test_forking_is_chosen_in_a_process_of_one_thread() -> None:
    done = run_python("""
        import os
        from experts.worker_processes import fork_workers
        fork_workers()
        print(os.environ["VLLM_WORKER_MULTIPROC_METHOD"])
    """)

    assert (done.stdout, done.stderr) == ("fork\n", "")


# -- what is kept of a GPU's memory -----------------------------------------------------------------------------------


def memory_config(utilization: float = 0.9, **changes: object) -> SimpleNamespace:
    sizes = changes.get("sizes", [1, 2])
    return SimpleNamespace(
        cache_config=SimpleNamespace(gpu_memory_utilization=utilization),
        model_config=SimpleNamespace(enforce_eager=changes.get("eager", False)),
        scheduler_config=SimpleNamespace(max_num_seqs=changes.get("max_num_seqs", 64)),
        compilation_config=SimpleNamespace(cudagraph_mode="FULL", cudagraph_capture_sizes=sizes),
    )


def test_memory_is_not_taken_for_what_was_measured_with_other_settings() -> None:
    """vLLM's own fingerprint, here the same of all, tells graphs apart and not what they leave of a GPU's memory."""
    plans = ModuleType("startup_plan")
    plans.compute_plan_fingerprint = lambda config, rank, world_size: f"{rank} of {world_size}"
    for _ in range(2):  # patched once, however often a worker loads
        vllm_plugin._tell_memory_plans_apart(plans)
    told = plans.compute_plan_fingerprint
    asked = memory_config()
    first = told(asked, 0, 1)
    assert told(memory_config(), 0, 1) == first, "the next start, of the same settings"
    others = [memory_config(0.8), memory_config(eager=True), memory_config(max_num_seqs=8), memory_config(sizes=[1])]
    assert len({first, told(asked, 1, 2), *(told(other, 0, 1) for other in others)}) == 6
    asked.compilation_config.cudagraph_capture_sizes = [1]  # as vLLM may, between its two questions
    assert told(asked, 0, 1) == first


def test_vllm_has_the_fingerprint_that_is_changed() -> None:
    [package] = importlib.util.find_spec("vllm").submodule_search_locations  # without importing it
    worker = Path(package, "v1", "worker")
    assert (worker / "startup_plan.py").read_text().count("= compute_plan_fingerprint(") == 2
    assert "maybe_apply_startup_plan(self)" in (worker / "gpu_worker.py").read_text()

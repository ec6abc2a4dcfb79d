"""What a core on CUDA asks of its workers, on ones that only note it: the tests have no GPU."""

from __future__ import annotations

from types import SimpleNamespace

import triton

from experts.vllm_plugin import _counted
from replicas.vllm_core import compile_kernels, use_graphs


def test_steps_of_all_sizes_are_run_both_odd_and_even(monkeypatch) -> None:
    ran, hooks = [], []

    def dummy_run(tokens: int, skip_eplb: bool) -> None:
        ran.append((tokens, skip_eplb))
        hooks.append(triton.knobs.runtime.jit_post_compile_hook)

    def hook(**_: object) -> None: ...

    worker = SimpleNamespace(
        model_runner=SimpleNamespace(_dummy_run=dummy_run),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=2048),
    )
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", hook)
    compile_kernels(worker)
    sizes = [tokens for tokens, _ in ran]
    assert sizes == sorted(set(sizes)) and {1, 2, 512, 513, 1024, 1025, 2047, 2048} <= set(sizes)
    assert max(sizes) == 2048 and all(skip for _, skip in ran)
    assert set(hooks) == {None} and triton.knobs.runtime.jit_post_compile_hook is hook  # vLLM's own


def test_graphs_are_those_of_steps_up_to_a_limit_and_come_back() -> None:
    captured = {(tokens, 0): [f"graph of {tokens}"] for tokens in range(1, 2049)}
    manager = SimpleNamespace(_candidates=dict(captured))
    worker = SimpleNamespace(model_runner=SimpleNamespace(cudagraph_manager=manager))
    use_graphs(worker, 512)
    assert max(manager._candidates) == (512, 0) and len(manager._candidates) == 512
    use_graphs(worker, 1024)
    assert len(manager._candidates) == 1024
    use_graphs(worker, 4096)
    assert manager._candidates == captured


def test_the_older_runner_is_told_by_its_limit() -> None:
    config = SimpleNamespace(max_cudagraph_capture_size=2048)
    worker = SimpleNamespace(
        model_runner=SimpleNamespace(cudagraph_dispatcher=SimpleNamespace(compilation_config=config))
    )
    for most, used in ((512, 512), (1024, 1024), (4096, 2048)):
        use_graphs(worker, most)
        assert config.max_cudagraph_capture_size == used


def test_steps_by_which_a_runner_warms_are_not_counted() -> None:
    issued: list[int] = []
    execute = _counted(lambda output, **_: "made", SimpleNamespace(step_issued=issued.append))
    assert execute(SimpleNamespace(total_num_scheduled_tokens=5)) == "made"
    assert execute(SimpleNamespace(total_num_scheduled_tokens=7), dummy_run=True) == "made"
    assert issued == [5]

"""What a core on CUDA asks of its workers, on ones that only note it: the tests have no GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import triton

from experts.vllm_plugin import _counted
from replicas.vllm_core import compile_kernels, use_graphs


def test_steps_of_all_sizes_are_run_both_odd_and_even(monkeypatch) -> None:
    ran, hooks, captured = [], [], {(512, 0): ["graph"]}
    manager = SimpleNamespace(_candidates=dict(captured))

    def dummy_run(tokens: int, skip_eplb: bool) -> None:
        ran.append((tokens, skip_eplb))
        assert not manager._candidates  # as it is, not padded to a graph
        hooks.append(triton.knobs.runtime.jit_post_compile_hook)

    def hook(**_: object) -> None: ...

    worker = SimpleNamespace(
        model_runner=SimpleNamespace(_dummy_run=dummy_run, cudagraph_manager=manager, attn_groups=[]),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=2048),
    )
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", hook)
    compile_kernels(worker)
    sizes = [tokens for tokens, _ in ran]
    assert sizes == sorted(set(sizes)) and {1, 2, 512, 513, 1024, 1025, 2047, 2048} <= set(sizes)
    assert max(sizes) == 2048 and all(skip for _, skip in ran)
    assert manager._candidates == captured
    assert set(hooks) == {None} and triton.knobs.runtime.jit_post_compile_hook is hook  # vLLM's own


def test_graphs_are_those_of_steps_up_to_a_limit_and_come_back() -> None:
    captured = {(tokens, 0): [f"graph of {tokens}"] for tokens in range(1, 2049)}
    manager = SimpleNamespace(_candidates=dict(captured))
    splits, other = SimpleNamespace(max_cudagraph_size=2048), SimpleNamespace()  # of attention that has it, or not
    groups = [[SimpleNamespace(metadata_builders=[splits, other])]]
    worker = SimpleNamespace(model_runner=SimpleNamespace(cudagraph_manager=manager, attn_groups=groups))
    use_graphs(worker, 0)
    assert not manager._candidates and splits.max_cudagraph_size == 0
    use_graphs(worker, 512)
    assert splits.max_cudagraph_size == 512
    assert max(manager._candidates) == (512, 0) and len(manager._candidates) == 512
    use_graphs(worker, 1024)
    assert len(manager._candidates) == 1024
    use_graphs(worker, 4096)
    assert manager._candidates == captured and splits.max_cudagraph_size == 2048
    assert not hasattr(other, "max_cudagraph_size")


@pytest.mark.parametrize("largest", [2048, None])
def test_the_older_runner_is_told_by_its_limit(largest: int | None) -> None:
    config = SimpleNamespace(max_cudagraph_capture_size=largest)
    dispatcher = SimpleNamespace(compilation_config=config)
    worker = SimpleNamespace(model_runner=SimpleNamespace(cudagraph_dispatcher=dispatcher, attn_groups=[]))
    for most, used in ((0, 0), (512, 512), (1024, 1024), (4096, 2048)):
        use_graphs(worker, most)
        assert config.max_cudagraph_capture_size == (used if largest else None)


def test_steps_by_which_a_runner_warms_are_not_counted() -> None:
    issued: list[int] = []
    execute = _counted(lambda output, **_: "made", SimpleNamespace(step_issued=issued.append))
    assert execute(SimpleNamespace(total_num_scheduled_tokens=5)) == "made"
    assert execute(SimpleNamespace(total_num_scheduled_tokens=7), dummy_run=True) == "made"
    assert issued == [5]

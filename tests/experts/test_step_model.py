"""The step model: experts that are touched, CUDA graphs that pad, and the file of a machine."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.step_model import Fitted, StepTime, padded, pairs, read, shipped, touched, written

STEP = StepTime(3e-3, 13e-3, 8 / 128, 13e-6, 20e-9, 14e-6, 1e-9)


def test_pairs_add_up_over_chunks() -> None:
    assert pairs(0, 10) == 55 and pairs(0, 6) + pairs(6, 4) == pairs(0, 10)


@given(st.integers(0, 600), st.integers(1, 600), st.floats(0.0, 1.0))
def test_alike_sequences_touch_fewer_experts_but_never_less_than_one_does(prefill, decoding, spread) -> None:
    found = touched(prefill, decoding, 0.0625, spread)
    assert touched(prefill, 1, 0.0625, 1.0) <= found + 1e-12 <= touched(prefill, decoding, 0.0625, 1.0) + 2e-12


def test_independent_tokens_touch_what_chance_says() -> None:
    assert touched(3, 5, 0.25, 1.0) == 1 - 0.75**8 and touched(0, 0, 0.25, 0.5) == 0


def test_a_graph_computes_as_many_tokens_as_it_was_captured_for() -> None:
    sizes = (1, 2, 4, 8)
    assert [padded(0, n, sizes) for n in (1, 3, 5, 8, 9)] == [1, 4, 8, 8, 9]
    assert padded(3, 2, sizes) == 5  # eight tokens, three of them a prompt's
    assert padded(0, 5, ()) == 5
    graphs = dataclasses.replace(STEP, graph_sizes=sizes)
    assert graphs.step_s(0, 0.0, 5, 0) == STEP.step_s(0, 0.0, 8, 0) and graphs.step_s(0, 0.0, 9, 9) == STEP.step_s(
        0, 0.0, 9, 9
    )


def test_a_step_without_a_graph_takes_its_launches_at_least() -> None:
    launched = dataclasses.replace(STEP, graph_sizes=(1, 8), launch_s=0.1)
    assert launched.step_s(4, 10.0, 4, 0) == dataclasses.replace(launched, launch_s=0.0).step_s(4, 10.0, 4, 0) < 0.1
    assert launched.step_s(5, 15.0, 4, 0) == launched.step_s(0, 0.0, 9, 0) == 0.1
    assert launched.step_s(9_000, 0.0, 0, 0) == STEP.step_s(9_000, 0.0, 0, 0) > 0.1
    assert dataclasses.replace(launched, graph_sizes=()).step_s(0, 0.0, 9, 0) < 0.1  # none of its steps has one


def test_a_machines_file_reads_as_it_was_written() -> None:
    fitted = Fitted("H200-141GB", "32b", dataclasses.replace(STEP, spread=0.3, graph_sizes=(1, 2)), 2e-3, "made up")
    assert read(written(fitted)) == fitted
    assert written(shipped("h200-steps")) == written(read(written(shipped("h200-steps"))))


@pytest.mark.parametrize("text", ["", "[]", '{"gpu": "x"}', written(shipped("h200")).replace("base_s", "bass_s")])
def test_what_is_no_machines_file_is_refused(text) -> None:
    with pytest.raises(ValueError):
        read(text)

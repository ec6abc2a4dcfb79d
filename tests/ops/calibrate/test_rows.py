"""Rows of `moray bench gpu` as steps and workloads; requests through the simulated engine as a raw one gets them."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest

from experts.step_model import StepTime, pairs
from ops.calibrate.replay import StepShape, answer, arrivals, limits, steps_of
from ops.calibrate.rows import Workload, data_set, read
from ops.errors import UserError

ARGS = {"max_num_seqs": 512, "max_num_batched_tokens": 16_384, "max_model_len": 36_864}
MACHINE = {"what": "machine", "gpu": "NVIDIA H200", "gpu_memory_gib": 140.4, "args": ARGS}
DECODE = {"what": "decode", "step": "raw", "side": "raw", "batch": 8, "context": 208, "ms_per_step": 5.0}
A_MS = StepTime(1e-3, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0)


def one(row: dict[str, Any]) -> Any:
    return data_set("x", [MACHINE, row]).measured[0]


def test_a_decode_row_is_one_step() -> None:
    assert one(DECODE)[1:] == ((StepShape(0, 0.0, 8, 8 * 208),), False, 0.005)


def test_prompts_given_at_once_are_the_steps_that_an_engine_takes_them_in() -> None:
    """The first begins alone; what no step holds is left to the next."""
    steps = one({"what": "prefill", "step": "raw", "prompts": 4, "prompt": 8_192, "ms": 609.25}).steps
    assert [step.prefill_tokens for step in steps] == [8_192, 16_384, 8_192]
    assert sum(step.prefill_pairs for step in steps) == pytest.approx(4 * pairs(0, 8_192))


def test_a_cached_beginning_is_attended_to_and_not_computed() -> None:
    row = {"what": "prefill", "step": "calibration", "prompts": 1, "prompt": 3_000, "cached": 1_000, "ms": 30.0}
    assert one(row)[1:] == ((StepShape(2_000, pairs(1_000, 2_000), 0, 0),), True, 0.03)


def test_a_mixed_row_has_both() -> None:
    row = {"what": "mixed", "step": "calibration", "decoding": 8, "context": 500, "prompt": 256, "ms": 20.0}
    assert one(row)[1:] == ((StepShape(256, pairs(0, 256), 8, 4_000),), False, 0.02)


def test_whole_workloads_are_held_out_as_medians_of_their_turns() -> None:
    run = {"what": "run", "step": "raw", "side": "raw", "workload": "512x512x128c512"}
    rows = [{**run, "req_s": speed} for speed in (78.8, 79.4, 79.3)]
    poisson = {"what": "held_out", "step": "calibration", "requests": 9, "prompt": 5, "output": 3, "rate": 2.0}
    rows.append({**poisson, "seed": 4, "req_s": 1.9, "ttft_p50_ms": 30.0})
    found = data_set("x", [MACHINE, DECODE, *rows]).held_out
    assert found[0] == (Workload(512, 512, 128), 79.3, None)
    assert found[1] == (Workload(9, 5, 3, 2.0, 4), 1.9, 0.03) and str(found[1].workload) == "9x5x3 at 2/s"


def test_rows_of_other_engines_do_not_count() -> None:
    others = [{**DECODE, "step": step, "ms_per_step": 99.0} for step in ("small", "int8", "moray")]
    assert len(data_set("x", [MACHINE, DECODE, *others]).measured) == 1


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        ({"enforce_eager": True}, ()),
        ({"compilation_config": {"cudagraph_capture_sizes": [4, 1, 2]}}, (1, 2, 4)),
        ({"max_num_seqs": 8}, (1, 2, 4, 8, 16)),
    ],
)
def test_cuda_graphs_are_those_of_the_engines_arguments(args, sizes) -> None:
    assert data_set("x", [{**MACHINE, "args": ARGS | args}, DECODE]).graph_sizes == sizes


def test_a_gpu_is_known_by_its_own_name_and_memory() -> None:
    assert data_set("x", [MACHINE, DECODE]).gpu == "H200-141GB"
    a100 = {**MACHINE, "gpu": "NVIDIA A100-SXM4-40GB", "gpu_memory_gib": 39.4}
    assert data_set("x", [a100, DECODE]).gpu == "A100-40GB"
    cpu = data_set("x", [{**MACHINE, "gpu": None, "gpu_memory_gib": None}, DECODE])
    assert cpu.gpu == "CPU" and not cpu.ahead


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "on which machine"),
        (json.dumps({"rows": [MACHINE]}), "no step of a raw engine"),
        (json.dumps(MACHINE) + "\n" + json.dumps({"what": "decode", "step": "raw"}), "holds a row"),
        (json.dumps([1, 2]), "holds a row"),
    ],
)
def test_files_that_are_none_are_told(tmp_path, text, told) -> None:
    (tmp_path / "rows").write_text(text)
    with pytest.raises(UserError, match=told):
        read(tmp_path / "rows")


def test_a_file_is_lines_or_an_object_with_rows(tmp_path) -> None:
    (tmp_path / "lines").write_text(f"{json.dumps(MACHINE)}\n{json.dumps(DECODE)}\n")
    (tmp_path / "object").write_text(json.dumps({"rows": [MACHINE, DECODE]}))
    assert read(tmp_path / "lines").measured == read(tmp_path / "object").measured
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none")


def test_requests_at_once_are_answered_in_the_steps_that_their_limits_allow() -> None:
    found = answer(A_MS, limits(4, 64, 64), [0.0] * 8, 16, 3, ahead=False)
    # The first alone, then three more; four at a time, three tokens each.
    assert found.first_token_s == pytest.approx([0.001, *[0.002] * 3, 0.004, *[0.005] * 3])
    assert found.ended_s == pytest.approx(0.007)


def test_a_late_request_finds_an_idle_engine() -> None:
    found = answer(A_MS, limits(4, 64, 64), [0.0, 1.0], 16, 3)
    assert found.first_token_s == pytest.approx([0.001, 0.001]) and found.ended_s == pytest.approx(1.003)


def test_arrivals_are_poissons_or_all_at_once() -> None:
    times = arrivals(2_000, 10.0, 1)
    assert times == sorted(times) == arrivals(2_000, 10.0, 1) and times[0] == 0.0
    assert times[-1] == pytest.approx(200, rel=0.1)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert math.sqrt(sum((gap - 0.1) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(0.1, rel=0.1)
    assert arrivals(3, None, 1) == [0.0] * 3


def test_one_prompt_longer_than_a_step_takes_several() -> None:
    assert [step.prefill_tokens for step in steps_of(limits(4, 64, 256), 1, 150)] == [64, 64, 22]

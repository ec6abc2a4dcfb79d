"""What a step cannot do without, against figures worked out by hand."""

import pytest

from experts.model_spec import tier
from experts.topology import GPUS
from ops.bench.gpu.roofline import decode, gpu_named, prefill, reached, rooflines
from ops.bench.gpu.tuning import tuned_goodput_ratio

QWEN = tier("32b")  # 30.5 billion parameters, of a token 3.35
H200 = GPUS["H200-141GB"]


def test_a_full_step_reads_every_weight_but_the_inputs_table():
    table = QWEN.vocabulary * QWEN.hidden
    demand = decode(QWEN, 4096, 0)
    assert demand.bytes == pytest.approx(2 * (QWEN.parameters - table))
    # 57 GB of weights at 4.8 TB/s
    assert reached(demand, H200, 0.0125)["of_bandwidth"] == pytest.approx(1.0, rel=0.03)


def test_one_sequence_reads_the_experts_that_it_is_given_to():
    table = QWEN.vocabulary * QWEN.hidden
    assert decode(QWEN, 1, 0).bytes == pytest.approx(2 * (QWEN.active_parameters - table))
    assert decode(QWEN, 1, 0).flops == pytest.approx(2 * (QWEN.active_parameters - table))


def test_context_is_read_and_computed():
    empty, full = decode(QWEN, 8, 0), decode(QWEN, 8, 1000)
    # 48 layers x 2 x 4 KV heads x 128 x 2 bytes a token; 4 x 32 heads x 128 operations a pair
    assert full.bytes - empty.bytes == 8 * 1000 * 48 * 2 * 4 * 128 * 2
    assert full.flops - empty.flops == 8 * 1000 * 48 * 4 * 32 * 128


def test_a_prompt_attends_to_what_is_before_it():
    one, two = prefill(QWEN, 1, 1000), prefill(QWEN, 1, 2000)
    table = QWEN.vocabulary * QWEN.hidden
    per_token = 2 * (QWEN.active_parameters - 2 * table)
    assert two.flops - one.flops == pytest.approx(
        1000 * per_token + 48 * 4 * 32 * 128 * (2000 * 2001 - 1000 * 1001) / 2
    )
    assert prefill(QWEN, 4, 500).flops < prefill(QWEN, 1, 2000).flops


def test_rows_say_what_bounds_them():
    rows = [
        {"what": "decode", "batch": 64, "context": 592, "ms_per_step": 17.5},
        {"what": "prefill", "prompts": 32, "prompt": 512, "ms": 400.0},
        {"what": "note", "text": "…"},
    ]
    found = rooflines(rows, QWEN, H200)
    assert [row["phase"] for row in found] == ["decode", "prefill"]
    assert [row["bound"] for row in found] == ["bandwidth", "compute"]
    assert 0 < found[0]["of_bandwidth"] < 1 and 0 < found[1]["of_flops"] < 1
    assert found[0]["most_gain"] == pytest.approx(1 / found[0]["of_bandwidth"], abs=0.01)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("NVIDIA H200", "H200-141GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA L4", None),
        (None, None),
    ],
)
def test_gpus_are_known_by_nvmls_names(told, kind):
    assert gpu_named(told) == (GPUS[kind] if kind else None)


def test_the_ratio_is_of_the_last_search():
    row = {"what": "tuned", "ratio": 1.3, "tuned_req_s": 13.0, "default_req_s": 10.0, "confirmed": True}
    row |= {"finished": True, "trials": 20, "settings": {}, "default": {}, "slo": {}}
    found = tuned_goodput_ratio([row | {"ratio": 1.1}, row, {"what": "step"}])
    assert found["tuned_goodput_ratio"] == 1.3
    assert found["tuned_goodput"]["of"] == [13.0, 10.0]
    assert tuned_goodput_ratio([]) == {}

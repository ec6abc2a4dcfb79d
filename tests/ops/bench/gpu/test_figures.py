"""From rows to figures: medians, what is missing stays missing, and the small model is never taken for the whole."""

import pytest

from ops.bench.gpu.figures import figures


def run(side, req_s, load="512x512x128", step="x"):
    speed = {"req_s": req_s, "tok_s": 128 * req_s}
    return {"step": step, "what": "run", "side": side, "workload": f"{load}c512"} | speed


def batching(kind, tok_s):
    return {"step": "moray", "what": "batching", "kind": kind, "tok_s": tok_s}


def test_a_ratio_is_of_medians_and_tells_its_spread():
    rows = [run("raw", r) for r in (50, 60, 70)] + [run("moray", r) for r in (57, 66, 54)]
    found = figures([*rows, run("vllm_serve", 48.0)])
    assert found["http_ratio_512x512x128"] == 0.95
    assert found["http_ratio_512x512x128_spread"] == [round(54 / 70, 3), round(66 / 50, 3)]
    assert found["vllm_serve_ratio_512x512x128"] == 0.8
    assert "http_ratio_1024x256x128" not in found
    assert len(found["rows"]) == 7


def test_the_small_stack_is_no_side():
    assert "http_ratio_512x512x128" not in figures([run("raw", 50), run("moray", 500, step="small")])


def test_what_was_not_measured_is_not_told():
    assert set(figures([])) == {"weights", "machine", "rows"}


def test_headline_figures_name_their_parts():
    def decode(side, ms, batch=1, context=208):
        row = {"step": "x", "what": "decode", "side": side, "batch": batch}
        return row | {"context": context, "ms_per_step": ms}

    rows = [decode("32b bf16", 4.0), decode("dense bf16", 20.0), decode("raw", 4.1, context=1104)]
    rows += [decode("raw", 5.0, context=32_080), decode("raw", 9.0, 8, 32_080)]
    rows += [run("half bf16", 20.0), run("half fp32", 8.0)]
    rows += [run("raw", 1.0), run("moray", 1.0), batching("static", 50.0), batching("continuous", 80.0)]
    rows += [{"step": "7b", "what": "latency", "side": "moray", "ttft_p50_ms": 31.0}]
    found = figures(rows)
    assert found["moe_latency_over_dense"] == {"ratio": 0.2, "of": [4.0, 20.0]}
    assert found["tpot_32k_over_1k"]["ratio"] == pytest.approx(1.22, abs=0.001)
    assert found["bf16_throughput_over_fp32_24_layers"]["ratio"] == 2.5
    assert found["continuous_over_static"]["ratio"] == 1.6
    assert found["ttft_p50_ms_7b"] == 31.0
    assert "added_ttft_p50_ms_1" not in found


def test_a_start_that_failed_is_no_second_start():
    def loaded(load_s, step="moray"):
        return {"step": step, "what": "loaded", "side": "moray", "load_s": load_s}

    ran = [run("raw", 1.0), run("moray", 1.0)]
    assert "second_start_core_s" not in figures([*ran, loaded(None), loaded(20.0, step="small")])
    assert figures([*ran, loaded(None), loaded(47.6)])["second_start_core_s"] == 47.6


def test_a_second_start_is_a_sessions_own():
    again = {"step": "start", "what": "start", "side": "moray again", "session_s": 51.0}
    found = figures([run("raw", 1.0), run("moray", 1.0), {"what": "start", "side": "moray", "step": "moray"}, again])
    assert found["second_start_s"] == 51.0 and "second_start_core_s" not in found


def test_a_failures_own_words_stay_in_the_logs():
    [row] = figures([{"step": "raw", "what": "step", "ended": "broken", "error": "/a/path", "trace": "/b"}])["rows"]
    assert row == {"step": "raw", "what": "step", "ended": "broken"}


def test_sides_of_different_passes_are_not_compared():
    machine = {"step": "", "what": "machine"}
    rows = [machine, run("moray", 90.0), machine, run("raw", 100.0), run("moray", 60.0), machine, run("raw", 50.0)]
    found = figures(rows)
    assert found["http_ratio_512x512x128"] == 0.6 and found["req_s_512x512x128"]["moray"] == [60.0]
    assert "http_ratio_512x512x128" not in figures(rows[:4])


def test_steps_are_held_against_what_the_gpu_can_do() -> None:
    machine = {"what": "machine", "step": "", "gpu": "NVIDIA H200"}
    step = {"what": "decode", "step": "calibration", "side": "raw", "batch": 64, "context": 208, "ms_per_step": 18.0}
    [found] = figures([machine, step, step | {"step": "headline"}])["roofline"]
    assert found["phase"] == "decode" and 0.6 < found["of_bandwidth"] < 0.8
    assert "roofline" not in figures([machine | {"gpu": None}, step])


def test_a_session_behind_the_raw_engine_starts_a_second_time() -> None:
    start = {"what": "start", "side": "moray", "step": "moray", "session_s": 35.2}
    assert figures([run("raw", 1.0), run("moray", 1.0), start])["second_start_s"] == 35.2

"""From what runs on a GPU wrote down to `ops/bench/results/gpu.json`. Pure.

`python -m ops.bench.gpu.figures RESULTS.jsonl … > ops/bench/results/gpu.json`
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experts.model_spec import tier
from ops.bench.gpu.record import lines
from ops.bench.gpu.roofline import gpu_named, rooflines
from ops.bench.gpu.tuning import tuned_goodput_ratio
from ops.calibrate.rows import RAW_STEPS

Row = Mapping[str, Any]
_RATIOS = ("http_ratio_512x512x128", "http_ratio_1024x256x128")
_SIDES = ("raw", "moray", "vllm_serve")


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that are asked for, as far as they were measured, and every row that they were made of."""
    found: dict[str, Any] = {"weights": "dummies of the real shapes: speed only, no answer means anything"}
    beside = _beside(rows)
    found |= {"machine": next((dict(row) for row in (*beside, *rows) if row["what"] == "machine"), None)}
    for name in _RATIOS:
        found |= _ratios(beside, name)
    raw, moray = (_only(beside, what="latency", side=side) for side in ("raw", "moray"))
    if raw and moray:
        found["added_ttft_p50_ms_1"] = round(moray["ttft_p50_ms"] - raw["ttft_p50_ms"], 2)
    for row in beside:
        if row["what"] == "loaded" and row["load_s"] is not None and _whole(row):
            found["second_start_core_s"] = row["load_s"]  # the raw engine before it has compiled
    if again := _only(beside, what="start", side="moray again") or _only(beside, what="start", side="moray"):
        found["second_start_s"] = again["session_s"]  # from the command to a session that answers
    told = [{key: value for key, value in row.items() if key not in ("error", "trace")} for row in rows]
    # A failure's own words are in the logs, with that machine's paths.
    return found | _headline(rows, beside) | tuned_goodput_ratio(rows) | _rooflines(rows) | {"rows": told}


def _rooflines(rows: Sequence[Row]) -> dict[str, Any]:
    """Of the 32B tier's single steps, where the GPU's rates are known."""
    gpu = gpu_named(next((row.get("gpu") for row in rows if row["what"] == "machine"), None))
    steps = [row for row in rows if row.get("step") in RAW_STEPS and not row.get("cached")]
    return {"roofline": rooflines(steps, tier("32b"), gpu)} if gpu else {}


def _beside(rows: Sequence[Row]) -> Sequence[Row]:
    """Of the last pass in which the raw engine and Moray ran. None: no row."""
    begins = [i for i, row in enumerate(rows) if row["what"] == "machine"] or [0]
    for begin, end in reversed(list(zip(begins, [*begins[1:], len(rows)], strict=True))):
        ran = {row["side"] for row in rows[begin:end] if row["what"] == "run" and _whole(row)}
        if {"raw", "moray"} <= ran:
            return rows[begin:end]
    return ()


def _ratios(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """Requests/s of Moray and of vLLM's server over the raw engine's: of the medians, and Moray's spread."""
    load = name.removeprefix("http_ratio_")
    speeds = {side: _speeds(rows, side, load) for side in _SIDES}
    if not speeds["raw"] or not speeds["moray"]:
        return {}
    raw = statistics.median(speeds["raw"])
    found: dict[str, Any] = {f"req_s_{load}": {side: each for side, each in speeds.items() if each}}
    found[name] = round(statistics.median(speeds["moray"]) / raw, 3)
    found[f"{name}_spread"] = [round(min(speeds["moray"]) / max(speeds["raw"]), 3)]
    found[f"{name}_spread"] += [round(max(speeds["moray"]) / min(speeds["raw"]), 3)]
    if speeds["vllm_serve"]:
        found[name.replace("http", "vllm_serve")] = round(statistics.median(speeds["vllm_serve"]) / raw, 3)
    return found


def _speeds(rows: Sequence[Row], side: str, load: str) -> list[float]:
    """Of the runs of the whole 32B tier: those of the small one have a step of their own."""
    return [
        row["req_s"]
        for row in rows
        if row["what"] == "run" and row["side"] == side and row["workload"].startswith(f"{load}c") and _whole(row)
    ]


def _whole(row: Row) -> bool:
    return row["step"] not in ("small", "7b")


def _only(rows: Iterable[Row], **wanted: Any) -> Row | None:
    return next((row for row in rows if wanted.items() <= row.items() and _whole(row)), None)


def _headline(rows: Sequence[Row], beside: Sequence[Row]) -> dict[str, Any]:
    """Each with its parts, so that nobody has to look them up."""
    found: dict[str, Any] = {}

    def ms(side: str, batch: int) -> float | None:
        row = _only(rows, what="decode", side=side, batch=batch)
        return None if row is None else row["ms_per_step"]

    def speed(side: str) -> float | None:
        of = [row["tok_s"] for row in rows if row["what"] == "run" and row["side"] == side]
        return statistics.median(of) if of else None

    def told(name: str, new: float | None, old: float | None) -> None:
        if new and old:
            found[name] = {"ratio": round(new / old, 3), "of": [new, old]}

    told("moe_latency_over_dense", ms("32b bf16", 1), ms("dense bf16", 1))
    told("moe_throughput_over_dense", speed("32b bf16"), speed("dense bf16"))
    told("int8_throughput_over_bf16", speed("32b int8"), speed("32b bf16"))
    told("bf16_throughput_over_fp32_24_layers", speed("half bf16"), speed("half fp32"))
    told("bf16_latency_over_fp32_24_layers", ms("half bf16", 1), ms("half fp32", 1))
    batching = (_only(reversed(rows), what="batching", kind=kind) for kind in ("continuous", "static"))
    told("continuous_over_static", *(row["tok_s"] if row else None for row in batching))
    contexts = sorted(
        (row["context"], row["ms_per_step"])
        for row in rows
        if row["what"] == "decode" and row["batch"] == 1 and row["context"] > 1000
    )
    if len(contexts) > 1:
        told("tpot_32k_over_1k", contexts[-1][1], contexts[0][1])
    seven = next((row for row in rows if row["what"] == "latency" and row["step"] == "7b"), None)
    if seven:
        found["ttft_p50_ms_7b"] = seven["ttft_p50_ms"]
    moray = [row for row in beside if row["what"] == "run" and row["side"] == "moray" and _whole(row)]
    if used := [row["gpu_utilization"] for row in moray if "gpu_utilization" in row]:
        found["gpu_utilization"] = round(statistics.median(used), 3)
    return found


def main() -> None:
    rows = [row for file in sys.argv[1:] for row in lines(Path(file))]
    sys.stdout.write(json.dumps(figures(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The command `moray calibrate`: arguments and output."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import UserError
from ops.options import AsJson

if TYPE_CHECKING:
    from experts.step_model import Fitted
    from ops.calibrate.fit import Fit
    from ops.calibrate.prediction import Prediction
    from ops.calibrate.rows import DataSet

    Predicted = list[list[Prediction]]  # of each data set, its held-out workloads

EXAMPLES = (
    "Examples: `moray bench gpu calibration --out build/gpu`, then `moray calibrate build/gpu/results.jsonl` · "
    "`moray calibrate build/gpu/results.jsonl --out h200.json --json`"
)


def calibrate(
    rows: Annotated[list[Path], typer.Argument(metavar="ROWS...", help="results.jsonl of `moray bench gpu`.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the machine there: costs, and what they stand on.")
    ] = None,
    model: Annotated[str, typer.Option(help="The tier whose shape was measured: 7b, 16b, 32b or 671b.")] = "32b",
    as_json: AsJson = False,
) -> None:
    """Fit what an engine's step costs to measured ones, and tell how far off whole workloads come out by it.

    Fitted are single steps: decoding by batch and context, prefill, both together. Whole workloads are held out: the
    simulated engine runs them, and the planner plans them, with the fitted costs. Several files are runs of one model
    on one kind of machine: they share all costs and differ in how their tokens spread over the experts (1: evenly, as
    trained gates do; less: alike, as dummy weights do). --out writes the first one's.
    """
    from experts.model_spec import TIERS, tier
    from ops.calibrate.fit import fit
    from ops.calibrate.prediction import predictions
    from ops.calibrate.rows import read

    if model not in TIERS:
        raise UserError(f"--model {model}: there is no such tier; take one of {', '.join(TIERS)}")
    spec, sets = tier(model), [read(file) for file in rows]
    if len({each.gpu for each in sets}) > 1:
        raise UserError(f"these are different machines, fit each alone: {', '.join(each.gpu for each in sets)}")
    found = fit(sets, spec)
    predicted = [predictions(each, step, found.request_s, spec) for each, step in zip(sets, found.steps, strict=True)]
    machine = _machine(model, sets, found, predicted)
    if out is not None:
        from experts.step_model import written

        try:
            out.write_text(written(machine))
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    if as_json:
        sys.stdout.write(json.dumps(_as_json(machine, sets, found, predicted), indent=1) + "\n")
    else:
        _show(sets, found, predicted, out)


def _machine(model: str, sets: Sequence[DataSet], found: Fit, predicted: Predicted) -> Fitted:
    from experts.step_model import Fitted

    rows = sum(len(each.measured) for each in sets)
    errors = [error for of_set in predicted for each in of_set for error in each.errors.values()]
    judged = f"; held-out workloads within {math.ceil(100 * max(map(abs, errors)))}%" if errors else ""
    basis = f"moray calibrate: {rows} measured steps of {', '.join(each.name for each in sets)}{judged}"
    costs = {name: float(f"{cost.seconds:.4g}") for name, cost in found.costs.items()}
    request_s = costs.pop("request_s")
    return Fitted(sets[0].gpu, model, dataclasses.replace(found.steps[0], **costs), request_s, basis)  # type: ignore[arg-type]


def _as_json(machine: Fitted, sets: Sequence[DataSet], found: Fit, predicted: Predicted) -> dict[str, Any]:
    from msgspec import to_builtins

    def row(name: str, measured_s: float, fitted_s: float) -> dict[str, Any]:
        return {
            "row": name,
            "measured_ms": round(1e3 * measured_s, 3),
            "fitted_ms": round(1e3 * fitted_s, 3),
            "error": round(fitted_s / measured_s - 1.0, 4),
        }

    def workload(each: Prediction) -> dict[str, Any]:
        told: dict[str, Any] = {
            "workload": str(each.held_out.workload),
            "req_s": round(each.held_out.requests_per_s, 2),
            "simulated_req_s": round(each.requests_per_s, 2),
        }
        if each.planned_requests_per_s is not None:
            told["planned_req_s"] = round(each.planned_requests_per_s, 2)
        if each.held_out.ttft_p50_s is not None:
            told["ttft_p50_ms"] = round(1e3 * each.held_out.ttft_p50_s, 2)
        told["simulated_ttft_p50_ms"] = round(1e3 * each.ttft_p50_s, 2)
        return told | {"errors": {name: round(error, 4) for name, error in each.errors.items()}}

    return {
        "machine": to_builtins(machine),
        "uncertainty": {
            name: round(cost.uncertainty, 3) if math.isfinite(cost.uncertainty) else None
            for name, cost in found.costs.items()
        },
        "data_sets": [
            {
                "file": each.name,
                "spread": step.spread,
                "fitted": [row(r.measured.name, r.measured.seconds, r.fitted_s) for r in residuals],
                "held_out": [workload(p) for p in of_set],
            }
            for each, step, residuals, of_set in zip(sets, found.steps, found.residuals, predicted, strict=True)
        ],
    }


_UNITS = {
    "base_s": ("a step", 1e3, "ms"),
    "experts_s": ("reading every expert", 1e3, "ms"),
    "sequence_s": ("a decoding sequence", 1e6, "us"),
    "kv_token_s": ("a token of its KV", 1e9, "ns"),
    "prefill_token_s": ("a prompt token", 1e6, "us"),
    "prefill_pair_s": ("a pair in its attention", 1e9, "ns"),
    "launch_s": ("a step without a CUDA graph, at least", 1e3, "ms"),
    "request_s": ("a request, besides its steps", 1e3, "ms"),
}


def _show(sets: Sequence[DataSet], found: Fit, predicted: Predicted, out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def show(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    def cost(name: str) -> list[str]:
        what, scale, unit = _UNITS[name]
        seconds, uncertainty = found.costs[name]
        return [what, f"{scale * seconds:.3g} {unit}", f"± {uncertainty:.0%}" if math.isfinite(uncertainty) else "?"]

    show(("cost", sets[0].gpu, ""), map(cost, found.costs))
    for each, step, residuals, of_set in zip(sets, found.steps, found.residuals, predicted, strict=True):
        console.print(f"\n[bold]{each.name}[/], decoding tokens spread {step.spread:.2f}", highlight=False)
        show(
            ("fitted", "measured ms", "by the fit", "off by"),
            (
                [r.measured.name, f"{1e3 * r.measured.seconds:.2f}", f"{1e3 * r.fitted_s:.2f}", f"{r.error:+.1%}"]
                for r in residuals
            ),
        )
        if of_set:
            show(("held out", "measured", "predicted", "off by"), (line for each in of_set for line in _lines(each)))
    if out is not None:
        console.print(f"\n{out} written", highlight=False, soft_wrap=True)


def _lines(each: Prediction) -> Iterable[list[str]]:
    work, errors = each.held_out.workload, each.errors
    speed = f"{each.held_out.requests_per_s:.1f}"
    yield [f"{work}, req/s, simulated", speed, f"{each.requests_per_s:.1f}", f"{errors['throughput']:+.1%}"]
    if each.planned_requests_per_s is not None:
        yield [f"{work}, req/s, planned", speed, f"{each.planned_requests_per_s:.1f}", f"{errors['planner']:+.1%}"]
    if each.held_out.ttft_p50_s is not None:
        measured, simulated = 1e3 * each.held_out.ttft_p50_s, 1e3 * each.ttft_p50_s
        yield [f"{work}, TTFT p50 ms, simulated", f"{measured:.1f}", f"{simulated:.1f}", f"{errors['ttft_p50']:+.1%}"]

"""Whole workloads, which were not fitted, as the simulated engine and the planner have them. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from experts.model_spec import ModelSpec
from experts.sharding import Demand, Layout, reached, step
from experts.step_model import StepTime
from experts.topology import GPUS, Cluster
from ops.calibrate.replay import answer, arrivals
from ops.calibrate.rows import DataSet, HeldOut

EVEN = 0.9  # a spread from which on experts are touched about as evenly as the planner takes them to be


@dataclass(frozen=True)
class Prediction:
    """Of one held-out workload. None: not measured, or nothing that the planner plans for."""

    held_out: HeldOut
    requests_per_s: float
    ttft_p50_s: float
    planned_requests_per_s: float | None

    @property
    def errors(self) -> dict[str, float]:
        """Predicted over measured less 1, by what was predicted."""
        found = {"throughput": self.requests_per_s / self.held_out.requests_per_s - 1.0}
        if self.held_out.ttft_p50_s is not None:
            found["ttft_p50"] = self.ttft_p50_s / self.held_out.ttft_p50_s - 1.0
        if self.planned_requests_per_s is not None:
            found["planner"] = self.planned_requests_per_s / self.held_out.requests_per_s - 1.0
        return found


def predictions(each: DataSet, fitted: StepTime, request_s: float, spec: ModelSpec) -> list[Prediction]:
    """`fitted`: the data set's own step time."""

    def predicted(held_out: HeldOut) -> Prediction:
        work = held_out.workload
        times = arrivals(work.requests, work.rate, work.seed)
        answered = answer(fitted, each.capacity, times, work.prompt, work.output, each.ahead)
        return Prediction(
            held_out,
            requests_per_s=work.requests / (answered.ended_s + request_s),
            ttft_p50_s=statistics.median(answered.first_token_s) + request_s,
            planned_requests_per_s=_planned(each, fitted, held_out, spec),
        )

    return [predicted(held_out) for held_out in each.held_out]


def _planned(each: DataSet, fitted: StepTime, held_out: HeldOut, spec: ModelSpec) -> float | None:
    """By the planner, from the same costs: it knows one GPU that is never idle, and experts that are evenly loaded."""
    gpu, work = GPUS.get(each.gpu), held_out.workload
    if gpu is None or work.rate is not None or fitted.spread < EVEN:
        return None
    sequences = min(work.requests, each.capacity.max_num_seqs)
    demand = Demand(prompt=work.prompt, output=work.output)
    alone = Layout(1, 1, by_expert=False)
    taken = step(spec, Cluster(1, 1, gpu), alone, demand, sequences, reached(fitted, spec, gpu)).seconds
    return sequences / taken / work.output

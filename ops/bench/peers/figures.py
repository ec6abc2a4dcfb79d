"""What the streams of all rounds make. Pure.

Goodput: requests a second, of those offered, that met both limits; shed ones and errors did not. Quantiles of TTFT and
TPOT are over the streams that ended well, of all rounds together: who sheds is measured on what it took on, and its
attainment tells what that was. A ratio is taken within a round; its spread is [least, greatest].
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.bench.sse_load import Load, Stream
from ops.simulate.results import Slo

Rounds = Mapping[str, Sequence["Run"]]  # by rate


@dataclass(frozen=True)
class Run:
    """One side under the load of one rate in one round."""

    load: Load
    offered_s: float  # seconds in which the requests arrived
    client_cpu: float  # CPUs that the load generator took
    other_cpu: float  # CPUs that were taken by whoever has no part in this


def meets(stream: Stream, slo: Slo) -> bool:
    return not stream.error and stream.ttft <= slo.ttft_s and stream.tpot <= slo.tpot_s


def goodput(run: Run, slo: Slo) -> float:
    return sum(meets(stream, slo) for stream in run.load.streams) / run.offered_s


def of_side(rounds: Rounds, slo: Slo) -> dict[str, Any]:
    """One side's figures, by rate."""
    return {rate: _of_runs(runs, slo) for rate, runs in rounds.items()}


def _of_runs(runs: Sequence[Run], slo: Slo) -> dict[str, Any]:
    streams = [stream for run in runs for stream in run.load.streams]
    ended = [stream for stream in streams if not stream.error]
    errors = [stream.error for stream in streams if stream.error and not stream.shed]
    figures = {
        "requests": len(streams),
        "goodput": round(statistics.median(goodput(run, slo) for run in runs), 2),
        "attainment": round(sum(meets(stream, slo) for stream in streams) / len(streams), 4),
        "ttft_p50_ms": _ms(_quantile([stream.ttft for stream in ended], 50)),
        "ttft_p99_ms": _ms(_quantile([stream.ttft for stream in ended], 99)),
        "tpot_p50_ms": _ms(_quantile([stream.tpot for stream in ended], 50)),
        "tpot_p99_ms": _ms(_quantile([stream.tpot for stream in ended], 99)),
        "tokens_per_s": round(statistics.median(_tokens_per_s(run) for run in runs)),
        "shed": sum(stream.shed for stream in streams),
        "errors": len(errors),
        # Whether the load generator kept up.
        "client_late_p99_ms": _ms(_quantile([stream.late for stream in streams], 99)),
        "client_cpu": round(statistics.median(run.client_cpu for run in runs), 3),
        # CPUs that others took from this side: the greatest of all rounds.
        "other_cpu": round(max(run.other_cpu for run in runs), 3),
    }
    return figures | ({"first_error": errors[0][:300]} if errors else {})


def ratios(ours: Rounds, theirs: Rounds, slo: Slo) -> dict[str, Any]:
    """Ours over theirs, by rate."""
    measures: dict[str, Callable[[Run], float | None]] = {
        "goodput": lambda run: goodput(run, slo),
        "ttft_p50": lambda run: _quantile([s.ttft for s in run.load.streams if not s.error], 50),
        "ttft_p99": lambda run: _quantile([s.ttft for s in run.load.streams if not s.error], 99),
        "tokens_per_s": _tokens_per_s,
    }
    figures: dict[str, Any] = {}
    for rate in ours:
        at_rate: dict[str, Any] = {}
        for name, measure in measures.items():
            pairs = [(measure(one), measure(other)) for one, other in zip(ours[rate], theirs[rate], strict=True)]
            found = [one / other for one, other in pairs if one is not None and other]
            whole = len(found) == len(pairs)  # a side without goodput, or without a stream, has no ratio
            at_rate[name] = round(statistics.median(found), 3) if whole else None
            at_rate[f"{name}_spread"] = [round(min(found), 3), round(max(found), 3)] if whole else None
        figures[rate] = at_rate
    return figures


def _tokens_per_s(run: Run) -> float:
    return run.load.tokens / run.load.seconds


def _quantile(values: Sequence[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)

"""What became of each simulated request, and what that makes together. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ops.simulate.workloads import Arrival


@dataclass(frozen=True)
class Slo:
    """A request is well served when both hold. One that was shed or never ended is not."""

    ttft_s: float = 1.0  # from its arrival at the gateway to its first token there
    tpot_s: float = 0.05  # mean time of each further token


@dataclass(slots=True)
class Record:
    """One request; times are at its gateway. None: not yet, or never."""

    arrival: Arrival
    replica: int | None = None  # where it ran
    first_s: float | None = None
    last_s: float | None = None
    shed: bool = False
    cached_tokens: int = 0  # of the prompt, found in the prefix cache

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.arrival.at_s

    @property
    def tpot_s(self) -> float | None:
        if self.first_s is None or self.last_s is None:
            return None
        return (self.last_s - self.first_s) / max(self.arrival.output_tokens - 1, 1)

    def meets(self, slo: Slo) -> bool:
        ttft_s, tpot_s = self.ttft_s, self.tpot_s
        return ttft_s is not None and tpot_s is not None and ttft_s <= slo.ttft_s and tpot_s <= slo.tpot_s


def attainment(records: Sequence[Record], slo: Slo) -> float:
    """Share of all requests that were well served."""
    return sum(record.meets(slo) for record in records) / len(records) if records else 1.0


def summary(records: Sequence[Record], slo: Slo) -> dict[str, Any]:
    """Figures of one run, or of one tenant's part of it."""
    ended = [record for record in records if record.last_s is not None]
    ttfts = [record.first_s - record.arrival.at_s for record in records if record.first_s is not None]
    tpots = [tpot for record in ended if record.arrival.output_tokens > 1 and (tpot := record.tpot_s) is not None]
    span_s = max((r.last_s or 0.0 for r in ended), default=0.0) - min((r.arrival.at_s for r in records), default=0.0)
    tokens = sum(record.arrival.output_tokens for record in ended)
    prompts = sum(record.arrival.prompt_tokens for record in records if record.first_s is not None)
    return {
        "requests": len(records),
        "attainment": round(attainment(records, slo), 4),
        "shed": sum(record.shed for record in records),
        "unfinished": sum(record.last_s is None and not record.shed for record in records),
        "ttft_s": _quantiles(ttfts),
        "tpot_ms": {name: value * 1e3 for name, value in _quantiles(tpots).items()},
        "output_tokens_per_s": round(tokens / span_s, 1) if span_s > 0 else 0.0,
        "cached_share": round(sum(record.cached_tokens for record in records) / prompts, 4) if prompts else 0.0,
    }


def by_tenant(records: Iterable[Record], slo: Slo) -> dict[str, dict[str, Any]]:
    """The same for each tenant that has a name."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.arrival.tenant:
            groups.setdefault(record.arrival.tenant, []).append(record)
    return {name: summary(group, slo) for name, group in sorted(groups.items())}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"p50": round(values[0], 5), "p99": round(values[0], 5)} if values else {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 5), "p99": round(cuts[98], 5)}

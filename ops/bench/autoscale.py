"""`moray bench autoscale`: replica-hours of a simulated day, by our autoscaling and by Ray Serve's default one.

Both scale the same simulated cluster (`ops.simulate.fluid`: a fluid model, compared here with `ops.simulate` at
constant load) behind the same router, so only the number of replicas differs. A replica costs from its launch, its
loading included, to the end of its draining. Ours runs with the defaults of `cluster.autoscaling.Scaling`, which were
chosen on seed 100. Ray Serve's decides by its own functions (`ops.bench.serve_policy`); of all that was swept, the
cheapest setting counts whose attainment, over all seeds together, is no worse than ours, chosen in hindsight.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cluster.autoscaling import Scaling
from cluster.batching import Policy
from cluster.policies import CONTINUOUS, batcher
from ops.bench.serve_policy import ServeDefault, Settings
from ops.errors import UserError
from ops.simulate.cluster import Cluster
from ops.simulate.fluid import CLASSES, CODE_SWINGS, CONV_SWINGS, Day, Fluid, Shape, constant, day
from ops.simulate.results import Slo, attainment
from ops.simulate.scaled_day import Ours, Outcome, Scaler, pace, run
from ops.simulate.workloads import Workload, independent
from replicas.step_time import MACHINES

SLO = Slo()
MACHINE = MACHINES["h200"]
MIN_REPLICAS, MAX_REPLICAS = 1, 40
# Made-up days: the swings are fitted to the recorded hours of the Azure traces, the rhythm is assumed.
DAYS: dict[str, tuple[Shape, ...]] = {
    "conv": (Shape(200.0, 0.25, 14.0, 1.3, CONV_SWINGS),),
    "mixed": (Shape(140.0, 0.25, 14.0, 1.3, CONV_SWINGS), Shape(60.0, 0.08, 11.0, 2.0, CODE_SWINGS)),
}
TARGETS = (2.0, *(round(30.0 * 1.15**i, 1) for i in range(16)))  # up to what no SLO survives; 2 is Serve's default
# upscale_delay_s, downscale_delay_s, downscaling_factor
DEFAULT = (30.0, 600.0, 1.0)
TUNINGS = tuple((up, down, factor) for up in (0.0, 30.0) for down in (120.0, 300.0, 600.0) for factor in (1.0, 0.3))
KEPT = 2  # tunings that are tried with every target and seed, after the first seed with every second target
CALIBRATED = (("conv", 18.0), ("conv", 25.0), ("conv", 28.0), ("mixed", 24.0))  # requests a second and replica


def measure(days: str | None, seeds: int, first_seed: int, report: Callable[[str], None]) -> dict[str, Any]:
    """All figures. UserError: a day that does not exist."""
    names = [name.strip() for name in days.split(",") if name.strip()] if days else list(DAYS)
    for name in names:
        if name not in DAYS:
            raise UserError(f"--days {name}: there is no such day; take some of {', '.join(DAYS)}")
    report("comparing the fluid with the simulated cluster")
    figures: dict[str, Any] = {
        "machine": f"{MACHINE.name} ({MACHINE.basis}), simulated",
        "slo": {"ttft_s": SLO.ttft_s, "tpot_s": SLO.tpot_s},
        "load_s": Scaling().load_s,
        "seeds": list(range(first_seed, first_seed + seeds)),
        "calibration": [_compared(name, rate) for name, rate in CALIBRATED],
        "days": {name: _day(name, range(first_seed, first_seed + seeds), report) for name in names},
    }
    # The worst day's: no day is averaged away.
    worst = max(figures["days"].values(), key=lambda d: d["replica_hours_ratio"] or float("inf"))
    figures |= {key: worst[key] for key in ("replica_hours_ratio", "slo_ours", "slo_baseline")}
    tuned = [d["ratio_tuned"] for d in figures["days"].values()]
    figures["ratio_tuned"] = None if None in tuned else max(tuned)
    return figures


def _day(name: str, seeds: range, report: Callable[[str], None]) -> dict[str, Any]:
    """One day's shape, over all seeds."""
    ours: list[Outcome] = []
    swept: dict[Settings, list[Outcome]] = {}
    settings = [Settings(t, *DEFAULT) for t in TARGETS]
    settings += [Settings(t, *tuning) for tuning in TUNINGS if tuning != DEFAULT for t in TARGETS[1::2]]
    for number, seed in enumerate(seeds):
        report(f"{name}, seed {seed}: {len(settings)} settings of Ray Serve's")
        outcomes = _scaled(day(DAYS[name], seed), settings)
        ours.append(outcomes[0])
        for setting, outcome in zip(settings, outcomes[1:], strict=True):
            swept.setdefault(setting, []).append(outcome)
        if number == 0:
            kept = _best_tunings(swept, outcomes[0].attainment)
            settings = [Settings(t, *tuning) for tuning in (DEFAULT, *kept) for t in TARGETS]
            missing = [setting for setting in settings if setting not in swept]
            for setting, outcome in zip(missing, _scaled(day(DAYS[name], seed), missing)[1:], strict=True):
                swept[setting] = [outcome]
    slo = statistics.fmean(o.attainment for o in ours)
    hours = [o.replica_hours for o in ours]
    figures: dict[str, Any] = {
        "replica_hours_ours": round(statistics.fmean(hours), 1),
        "slo_ours": round(slo, 5),
        "worst_hour_ours": round(min(o.worst_hour for o in ours), 4),
        "changes_ours": round(statistics.fmean(o.changes for o in ours)),
        "most_ours": max(o.most for o in ours),
    }
    whole = {setting: outcomes for setting, outcomes in swept.items() if len(outcomes) == len(seeds)}
    plain = {setting: outcomes for setting, outcomes in whole.items() if setting[1:] == DEFAULT}
    for ratio, suffix, candidates in (("replica_hours_ratio", "baseline", plain), ("ratio_tuned", "tuned", whole)):
        figures |= _against(candidates, slo, hours, ratio, suffix)
    return figures


def _against(
    candidates: dict[Settings, list[Outcome]], slo: float, hours: Sequence[float], ratio: str, suffix: str
) -> dict[str, Any]:
    """The cheapest of the candidates that serve as well, and ours over it. None: none did."""
    good = [s for s, outcomes in candidates.items() if statistics.fmean(o.attainment for o in outcomes) >= slo]
    if not good:
        return {ratio: None, f"slo_{suffix}": None}
    best = min(good, key=lambda s: sum(o.replica_hours for o in candidates[s]))
    outcomes = candidates[best]
    each = [mine / o.replica_hours for mine, o in zip(hours, outcomes, strict=True)]
    return {
        ratio: round(sum(hours) / sum(o.replica_hours for o in outcomes), 3),
        f"{ratio}_spread": [round(min(each), 3), round(max(each), 3)],
        f"slo_{suffix}": round(statistics.fmean(o.attainment for o in outcomes), 5),
        f"replica_hours_{suffix}": round(statistics.fmean(o.replica_hours for o in outcomes), 1),
        f"setting_{suffix}": best._asdict(),
    }


def _best_tunings(swept: dict[Settings, list[Outcome]], slo: float) -> list[tuple[float, float, float]]:
    """Those that serve as well as ours for the fewest replica-hours, the default aside."""
    hours: dict[tuple[float, float, float], float] = {}
    for setting, (outcome, *_) in swept.items():
        tuning = (setting.upscale_delay_s, setting.downscale_delay_s, setting.downscaling_factor)
        if outcome.attainment >= slo and tuning != DEFAULT:
            hours[tuning] = min(hours.get(tuning, float("inf")), outcome.replica_hours)
    return sorted(hours, key=lambda tuning: hours[tuning])[:KEPT]


def _scaled(load: Day, settings: Sequence[Settings]) -> list[Outcome]:
    """Ours first, then each setting of Ray Serve's."""
    rates = pace(MACHINE, SLO, load.requests.shape[1])
    begin = load.prompt_tokens[:600].sum() / rates.prefill_tokens_per_s
    begin += load.output_tokens[:600].sum() / rates.decode_tokens_per_s
    start = int(np.clip(np.ceil(begin / 600 / 0.7), MIN_REPLICAS, MAX_REPLICAS))
    scaling = Scaling(min_replicas=MIN_REPLICAS, max_replicas=MAX_REPLICAS)
    scalers: list[Scaler] = [Ours(scaling, rates)]
    scalers += [_serve(ServeDefault(setting, MIN_REPLICAS, MAX_REPLICAS)) for setting in settings]
    return run(load, scalers, MACHINE, SLO, start, scaling.load_s)


def _serve(policy: ServeDefault) -> Scaler:
    return lambda look: policy.target(look.now_s, look.ready, look.target, look.ongoing)


def _compared(
    name: str, rate: float, replicas: int = 4, seconds: float = 90.0, warm_up_s: float = 20.0
) -> dict[str, Any]:
    """Attainment and requests that run on a replica, at constant load: the simulated cluster's and the fluid's."""
    peaks = [shape.peak for shape in DAYS[name]]
    rates = [rate * replicas * peak / sum(peaks) for peak in peaks]
    arrivals = [
        arrival
        for number, (per_s, (prompt, output)) in enumerate(zip(rates, CLASSES, strict=False))
        for arrival in independent(random.Random(number), per_s, seconds, 1.0, prompt, output)
    ]
    arrivals.sort(key=lambda a: a.at_s)
    cluster = Cluster(batcher(CONTINUOUS, Policy(tpot_s=SLO.tpot_s), 0), MACHINE, [1.0] * replicas, SLO)
    records = [r for r in cluster.run(Workload(name, tuple(arrivals), seconds)) if r.arrival.at_s >= warm_up_s]
    busy_s = sum(r.last_s - r.first_s for r in records if r.last_s is not None and r.first_s is not None)
    fluid = Fluid(1, MACHINE, SLO, len(rates))
    ready = np.array([float(replicas)])
    load = constant(rates, 0, 300)
    fluid.advance(load, 0, 100, ready)
    before_good, before_all = float(fluid.good[0]), fluid.arrived
    running = [float(fluid.advance(load, at, 1, ready).running[0]) for at in range(100, 300)]
    return {
        "load": name,
        "requests_per_s_and_replica": rate,
        "attainment_simulated": round(attainment(records, SLO), 4),
        "attainment_fluid": round((float(fluid.good[0]) - before_good) / (fluid.arrived - before_all), 4),
        "running_simulated": round(busy_s / (seconds - warm_up_s) / replicas, 1),
        "running_fluid": round(statistics.fmean(running) / replicas, 1),
    }

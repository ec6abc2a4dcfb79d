"""The figures of LAYOUTS.md, beside this file: `python -m ops.planner.layouts` writes them anew, a test compares them.

The page's text is written by hand; what stands between `<!-- NAME -->` and `<!-- end -->` is made here, by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from experts.model_spec import TIERS, tier
from experts.sharding import (
    Assessment,
    Demand,
    Efficiency,
    Layout,
    Prefill,
    Step,
    assess,
    legal,
    recommended,
    step,
    usual_efficiency,
)
from experts.topology import parse

PAGE = Path(__file__).with_name("LAYOUTS.md")
SPEC, A100S, H200 = tier("32b"), parse("8xA100-80GB"), parse("1xH200-141GB")
# Parameters, and those that one token passes, in billions: the models' cards.
PUBLISHED = {"7b": (6.9, 1.3), "16b": (15.7, 2.4), "32b": (30.5, 3.3), "671b": (671.0, 37.0)}
# AIConfigurator's predictions for the 32B tier on 8xA100 at 1,024/1,024, output tokens/s of each GPU. Attention is
# copied over the four GPUs of a group, experts are cut over them or dealt out to them.
THEIRS = {Layout(1, 4, by_expert=False): 3512.0, Layout(1, 4, by_expert=True): 2626.0}
EVEN = Demand(prompt=1024, output=1024)

# Measured on one H200 (vLLM 0.32.0, bf16, dummy weights): decoding sequences and ms a step; 208 tokens of context each.
DECODING = ((1, 4.0), (8, 8.6), (32, 14.9), (64, 17.5), (256, 21.0), (512, 25.5))
# Prompt, output, requests/s of whole runs, 512 sequences at once.
RUNS = ((512, 128, 67.8), (256, 128, 99.7), (1024, 256, 30.9))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shapes() -> str:
    """Counted against published."""

    def row(name: str) -> list[str]:
        spec, (total, active) = tier(name), PUBLISHED[name]
        counted, passed = spec.parameters / 1e9, (spec.active_parameters - spec.vocabulary * spec.hidden) / 1e9
        return [
            f"{name}: {TIERS[name]}",
            f"{counted:.2f}",
            f"{total:g}",
            f"{spec.active_parameters / 1e9:.2f}",
            f"{passed:.2f}",
            f"{active:g}",
            f"{spec.moe_layers} x {spec.experts}, top {spec.top_k}",
            f"{spec.kv_bytes_per_token() / 1024:g}",
        ]

    head = (
        *("tier", "10⁹ parameters", "published", "active", "without input's table", "published"),
        *("layers x experts", "KiB of KV a token"),
    )
    return table(head, map(row, TIERS))


def layouts() -> str:
    """Every legal one for the 32B tier, at the planner's default demand."""
    found = [assess(SPEC, A100S, layout, Demand()) for layout in legal(SPEC, A100S)]
    best, ours = recommended(found), recommended([each for each in found if each.layout.one_engine])

    def row(each: Assessment) -> list[str]:
        assert each.step is not None
        mark = "**" if each in (best, ours) else ""
        return [
            f"{mark}{each.layout}{mark}",
            str(each.groups),
            f"{each.weight_bytes / 1e9:.1f}",
            f"{each.kv_tokens / 1e3:,.0f}K",
            str(each.long_contexts),
            f"{each.step.sequences * each.layout.data_parallel:,}",
            f"{each.step.node_bytes / 1e6:,.0f}",
            f"{1e3 * each.step.communication_s:.1f}",
            f"{1e3 * each.step.seconds:.1f}",
            f"{each.tokens_per_s:,.0f}",
        ]

    head = (
        *("layout", "replicas", "GB of weights/GPU", "KV tokens/replica", "32K contexts", "batch/replica"),
        *("MB/step over NVLink", "of that ms", "ms/step", "tokens/s"),
    )
    return table(head, map(row, found))


def measured() -> str:
    """What the model says of the H200 figures that it is fitted to."""
    alone, efficiency = Layout(1, 1, by_expert=False), usual_efficiency()
    rows = []
    for batch, ms in DECODING:
        context = Demand(prompt=144, output=128)
        found = 1e3 * step(SPEC, H200, alone, context, batch, efficiency, Prefill(0, 0)).seconds
        rows.append([f"decoding {batch}, ms a step", f"{ms:g}", f"{found:.1f}", f"{found / ms - 1:+.1%}"])
    for prompt, output, requests in RUNS:
        found = 512 / step(SPEC, H200, alone, Demand(prompt=prompt, output=output), 512, efficiency).seconds / output
        name = f"{prompt:,} in, {output} out, requests/s"
        rows.append([name, f"{requests:g}", f"{found:.1f}", f"{found / requests - 1:+.1%}"])
    return table(("one H200", "measured", "predicted", "off by"), rows)


def per_gpu(layout: Layout, demand: Demand, efficiency: Efficiency) -> float:
    """Output tokens/s of each GPU."""
    return assess(SPEC, A100S, layout, demand, efficiency).tokens_per_s / A100S.gpus


def gap() -> str:
    """Both figures in words."""
    lines = []
    for layout, theirs in THEIRS.items():
        found = assess(SPEC, A100S, layout, EVEN)
        assert found.step is not None
        ours, sequences = found.tokens_per_s / A100S.gpus, found.step.sequences
        held = found.kv_tokens // layout.data_parallel // EVEN.context
        lines.append(
            f"- {layout}: {ours:,.0f} tokens/s of each GPU within {1e3 * EVEN.tpot_s:g} ms a token, "
            f"{ours / theirs:.2f} times their {theirs:,.0f}.\n  "
            f"Each GPU runs {sequences} sequences (memory would hold {held}) in "
            f"{1e3 * found.step.seconds:.1f} ms; theirs, at as many, would be {1e3 * sequences / theirs:.1f} ms."
        )
    return "\n".join(lines)


def terms() -> str:
    """Of our step for their layouts: as planned, and at the TPOT that gives their figures."""

    def parts(of: Step) -> list[float]:
        times = (of.weights_s, of.attention_s, of.compute_s, of.prefill_s, of.communication_s, of.launch_s, of.seconds)
        return [1e3 * seconds for seconds in times]

    layout, allowed = next(iter(THEIRS)), _terms()[0]
    limits = [allowed.ours, *(_solved(layout, allowed, target) for target in THEIRS.values())]
    rows = []
    for limit in limits:
        demand, efficiency, _ = allowed.given(limit)
        found = assess(SPEC, A100S, layout, demand, efficiency).step
        assert found is not None
        times = [f"{ms:.1f}" for ms in parts(found)]
        rows.append([f"{per_gpu(layout, demand, efficiency):,.0f}", str(found.sequences), *times])
    head = (
        *("tokens/s of a GPU", "its sequences", "reading weights", "attention", "computing", "prefill"),
        *("communication", "launches", "ms/step"),
    )
    return table(head, rows)


@dataclasses.dataclass(frozen=True)
class _Term:
    """One of ours, changed alone: `given(x)` makes demand, efficiency and idle seconds between two steps of it."""

    name: str
    ours: float
    worse: float  # as far as it may go
    unit: str
    given: Callable[[float], tuple[Demand, Efficiency, float]]
    experts_only: bool = False


def _terms() -> list[_Term]:
    efficiency = usual_efficiency()

    def efficient(**changed: float) -> tuple[Demand, Efficiency, float]:
        return EVEN, dataclasses.replace(efficiency, **changed), 0.0

    def demanding(demand: Demand) -> tuple[Demand, Efficiency, float]:
        return demand, efficiency, 0.0

    return [
        _Term("TPOT allowed", 50.0, 5.0, " ms", lambda x: demanding(dataclasses.replace(EVEN, tpot_s=x / 1e3))),
        _Term("idle between two steps", 0.0, 45.0, " ms", lambda x: (EVEN, efficiency, x / 1e3)),
        _Term("reached of the bandwidth", 100 * efficiency.bandwidth, 5, "%", lambda x: efficient(bandwidth=x / 100)),
        _Term("reached of the FLOP/s", 100 * efficiency.compute, 1, "%", lambda x: efficient(compute=x / 100)),
        _Term("launches, a layer", 1e6 * efficiency.layer_s, 1000, " us", lambda x: efficient(layer_s=x / 1e6)),
        _Term("beginning a collective", 15, 500, " us", lambda x: efficient(collective_s=x / 1e6)),
        _Term("reached of NVLink", 100 * efficiency.link, 0.5, "%", lambda x: efficient(link=x / 100)),
        _Term(
            "fullest rank over the mean",
            1.0,
            20.0,
            "",
            lambda x: demanding(dataclasses.replace(EVEN, imbalance=x)),
            experts_only=True,
        ),
    ]


def _reached(layout: Layout, term: _Term, x: float) -> float:
    """Tokens/s of each GPU; idle time is the step's, and taken from what the TPOT leaves."""
    demand, efficiency, idle_s = term.given(x)
    if idle_s:
        demand = dataclasses.replace(demand, tpot_s=demand.tpot_s - idle_s)
    found = assess(SPEC, A100S, layout, demand, efficiency)
    if found.step is None:
        return 0.0
    share = found.step.seconds / (found.step.seconds + idle_s)
    return found.tokens_per_s / A100S.gpus * share


def _solved(layout: Layout, term: _Term, target: float) -> float:
    """By bisection: a worse value gives fewer tokens."""
    good, bad = term.ours, term.worse
    for _ in range(60):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if _reached(layout, term, middle) >= target else (good, middle)
    return good


def alone() -> str:
    """Of each term the value that, changed alone, gives their figures."""

    def row(term: _Term) -> list[str]:
        cells = [term.name, f"{term.ours:.3g}{term.unit}"]
        for layout, target in THEIRS.items():
            if term.experts_only and not layout.by_expert:
                cells.append("nothing to change")
            elif _reached(layout, term, term.worse) > target:
                cells.append("not reached")
            else:
                cells.append(f"{_solved(layout, term, target):.3g}{term.unit}")
        return cells

    head = ("term", "ours", *(f"gives {target:,.0f} ({_kind(layout)})" for layout, target in THEIRS.items()))
    return table(head, map(row, _terms()))


def together() -> str:
    """Their two figures from two terms: what makes the first, and then the imbalance that makes the second of it."""
    (cut, cut_target), (dealt, dealt_target) = THEIRS.items()
    rows = []
    for term in _terms():
        if term.experts_only or _reached(cut, term, term.worse) > cut_target:
            continue
        value = _solved(cut, term, cut_target)

        def skewed(x: float, term: _Term = term, value: float = value) -> tuple[Demand, Efficiency, float]:
            demand, efficiency, idle_s = term.given(value)
            return dataclasses.replace(demand, imbalance=x), efficiency, idle_s

        imbalance = _solved(dealt, _Term("", 1.0, 20.0, "", skewed), dealt_target)
        rows.append([f"{term.name} {value:.3g}{term.unit}", f"{imbalance:.2f}"])
    return table((f"gives {cut_target:,.0f}", f"and gives {dealt_target:,.0f} with an imbalance of"), rows)


def _kind(layout: Layout) -> str:
    return f"EP{layout.group}" if layout.by_expert else f"TP{layout.group}"


BLOCKS: dict[str, Callable[[], str]] = {
    "shapes": shapes,
    "layouts": layouts,
    "measured": measured,
    "gap": gap,
    "terms": terms,
    "alone": alone,
    "together": together,
}


def rewritten(text: str) -> str:
    """The page with today's figures."""
    for name, made in BLOCKS.items():
        parts = re.split(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", text, flags=re.S)
        if len(parts) != 2:
            raise ValueError(f"LAYOUTS.md has {len(parts) - 1} blocks {name}, not one")
        text = f"{parts[0]}{made()}\n{parts[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))

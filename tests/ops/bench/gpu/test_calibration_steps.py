"""What the calibration asks a raw engine for, and that `moray calibrate` understands every row of it."""

from __future__ import annotations

import pytest

from ops.bench.direct_engine import BenchFailed
from ops.bench.gpu.calibration_steps import MEASURES, held_out
from ops.bench.gpu.checkpoint import tier
from ops.bench.gpu.raw_engine import Ask, Took
from ops.bench.gpu.record import Notes, lines
from ops.bench.gpu.scale import TINY
from ops.bench.gpu.sides import Bench
from ops.calibrate.replay import StepShape
from ops.calibrate.rows import data_set

STEP_S = 0.01


class Engine:
    """Takes 10 ms for each output token of its longest request, and 1 us for each prompt token."""

    def __init__(self, lost: int = 0) -> None:
        self.asked: list[Ask] = []
        self.lost = lost

    def run(self, ask: Ask) -> Took:
        self.asked.append(ask)
        assert all(0 <= token < 20_000 for prompt in ask.prompts for token in prompt)
        alone_s = [STEP_S + 1e-6 * len(prompt) for prompt in ask.prompts]
        seconds = STEP_S * max(ask.outputs) + 1e-6 * sum(map(len, ask.prompts))
        return Took(seconds, [seconds], sum(ask.outputs) - self.lost, alone_s)


@pytest.fixture
def bench(tmp_path):
    notes = Notes(tmp_path / "out", tmp_path / "logs", 60.0, lambda _: None)
    return Bench(notes, TINY, TINY.engine(tmp_path, "stand-in", tier("32b")))


def test_every_row_is_understood_and_says_what_was_asked_for(bench, tmp_path):
    engine = Engine()
    for measure in MEASURES:
        measure(bench, engine)
    rows = [row | {"step": "calibration"} for row in lines(tmp_path / "out" / "results.jsonl")]
    found = data_set("x", [{"what": "machine", "gpu": None, "args": dict(TINY.args)}, *rows])
    assert len(found.measured) + len(found.held_out) == len(rows)
    by_name = {row.name: row for row in found.measured}
    assert by_name["decode 4 of 208"].seconds == pytest.approx(STEP_S)
    assert by_name["prefill 1 x 512"].seconds == pytest.approx(STEP_S + 512e-6)
    # The beginning that is cached was asked for before, and is the beginning of what is asked for then.
    cached = by_name["prefill 1 x 512 behind 1,024"]
    assert cached.steps[0].prefill_tokens == 512 and cached.seconds == pytest.approx(STEP_S + 1_536e-6)
    longest = [ask.prompts[0] for ask in engine.asked if len(ask.prompts[0]) == 1_536]
    first = next(ask.prompts[0] for ask in engine.asked if ask.prompts[0] == longest[0][:1_024])
    assert all(prompt[:1_024] == first for prompt in longest) and len({tuple(p) for p in longest}) == len(longest)
    # Chunks beside others come when all of them decode, and are timed by what they add to the whole.
    mixed = by_name["prefill 256 beside 8"]
    assert mixed.steps == (StepShape(256, 256 * 257 / 2, 8, 8 * 548),) and mixed.seconds == pytest.approx(0.010256)
    beside = [ask for ask in engine.asked if ask.after_steps and ask.after_steps[-1]]
    assert all(ask.outputs[0] > max(ask.after_steps) and ask.outputs[-1] == 1 for ask in beside)
    chunks = [tuple(ask.prompts[-1]) for ask in beside]
    assert len(set(chunks)) == len(chunks) > 4  # nobody finds one cached
    rates = [one.workload.rate for one in found.held_out]
    assert rates == [None, None, None, 20.0, 40.0] and all(one.ttft_p50_s for one in found.held_out)
    poisson = [ask for ask in engine.asked if ask.due_s][-1].due_s
    assert poisson == sorted(poisson) and poisson[0] == 0.0 < poisson[1]


def test_tokens_that_did_not_come_are_told(bench):
    with pytest.raises(BenchFailed, match="tokens of"):
        held_out(bench, Engine(lost=1))

"""The figures of `moray bench start`, and that sessions tell what it reads."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ops.bench.direct_engine import BenchFailed
from ops.bench.start import Start, figures, stages
from ops.progress import Stages


def told(*reports: tuple[str, str]) -> str:
    console = Console(file=io.StringIO())
    with Stages(console) as progress:
        for stage, detail in reports:
            progress.report(stage, detail)
    return console.file.getvalue()


def test_stages_are_read_from_what_a_session_tells():
    log = told(("loading the libraries", ""), ("ray", "starting"), ("model", "loading"), ("model", "replica 0/1"))
    assert list(stages(log)) == ["loading the libraries", "ray", "model"]


def test_a_stage_lasts_until_the_next_begins():
    log = "[   0.0 s] ray: starting\nnoise\n[   2.5 s] model: loading\n[   3.0 s] model: replica 0/1\n[   9.5 s] done\n"
    assert stages(log) == {"ray": 2.5, "model": 7.0}


def test_a_log_that_breaks_off_is_no_measurement():
    with pytest.raises(BenchFailed, match="does not tell"):
        stages("[   0.0 s] ray: starting\n")


def test_the_first_start_is_told_apart():
    first = Start(90.0, {"ray": 10.0, "model": 78.0}, 1.0, 5.0)
    later = [Start(ready, {"ray": 3.0, "model": ready - 5.0}, 0.2, 4.0) for ready in (21.0, 20.0, 26.0)]
    found = figures([first, *later])
    assert (found["first_ready_s"], found["ready_s"], found["ready_s_range"]) == (90.0, 21.0, [20.0, 26.0])
    assert found["stages_s"] == {"command": 2.0, "ray": 3.0, "model": 16.0}
    assert figures([first])["ready_s"] == 90.0

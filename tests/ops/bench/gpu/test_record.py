"""A run writes down each thing as it comes, outlives a broken step, and goes on where it was cut off."""

import json
import math
import tarfile

import pytest

from ops.bench.gpu.record import Notes, Step, lines


@pytest.fixture
def notes(tmp_path):
    return lambda limit_s=100.0: Notes(tmp_path / "out", tmp_path / "logs", limit_s, lambda line: None)


def found(tmp_path, **wanted):
    rows = lines(tmp_path / "out" / "results.jsonl")
    return [row for row in rows if wanted.items() <= row.items()]


def breaks(notes):
    notes.add(what="run", figure=1)
    raise RuntimeError("no more memory")


def test_a_broken_step_keeps_what_it_found_and_ends_no_other(notes, tmp_path):
    notes().run([Step("a", 1, breaks), Step("b", 1, lambda n: n.add(what="run", figure=2))])
    assert [row["figure"] for row in found(tmp_path, what="run")] == [1, 2]
    [broken] = found(tmp_path, step="a", ended="broken")
    assert "no more memory" in broken["error"]
    assert found(tmp_path, step="b", ended="well")


def test_what_ended_well_is_not_done_again(notes, tmp_path):
    begun = []
    steps = [Step("a", 1, lambda n: begun.append("a")), Step("b", 1, lambda n: begun.append("b") or breaks(n))]
    notes().run(steps)
    notes().run(steps)
    assert begun == ["a", "b", "b"]


def test_a_step_that_does_not_fit_is_not_begun(notes, tmp_path):
    notes(10.0).run([Step("long", 60, breaks), Step("short", 1, lambda n: None)])
    assert found(tmp_path, step="long", ended="not begun")
    assert found(tmp_path, step="short", ended="well")


def test_logs_are_packed_after_each_step(notes, tmp_path):
    notes().run([Step("a", 1, lambda n: n.log("engine").write_text("loaded"))])
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as packed:
        assert packed.getnames() == ["a-engine.log"]


def test_a_line_that_was_cut_off_is_none(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps({"step": "a"}) + '\n{"step": "b", "fig')
    assert list(lines(file)) == [{"step": "a"}]


def test_what_a_step_has_measured_is_not_measured_again(notes, tmp_path):
    measured = []

    def one(n):
        measured.append("one")

    def two(n):
        measured.append("two")
        if measured.count("two") == 1:
            raise RuntimeError("no more memory")

    def three(n):
        measured.append("three")

    def step(n):
        n.measure((one, two, three), n, ends=math.inf)

    notes().run([Step("a", 1, step)])
    [broken] = found(tmp_path, step="a", ended="broken")
    assert "not measured: two" in broken["error"]
    [told] = found(tmp_path, what="broken", measure="two")
    assert "no more memory" in told["error"]
    notes().run([Step("a", 1, step)])
    assert measured == ["one", "two", "three", "two"]
    assert found(tmp_path, step="a", ended="well")


def test_none_is_begun_after_the_end(notes, tmp_path):
    def step(n):
        n.measure([lambda n: n.add(what="run")], n, ends=0.0)

    notes().run([Step("a", 1, step)])
    assert not found(tmp_path, what="run") and "no time" in found(tmp_path, ended="broken")[0]["error"]


def test_what_another_machine_has_done_is_done_again(notes, tmp_path):
    begun = []
    steps = [Step("a", 1, lambda n: n.measure([lambda n: begun.append("a")], n, ends=math.inf))]
    for boot in ("x", "x", "y"):
        noted = notes()
        noted.on_machine(boot=boot)
        noted.run(steps)
    assert begun == ["a", "a"] and noted.done() == {"a"}


def test_a_run_that_goes_on_begins_no_pass_and_one_elsewhere_does(notes, tmp_path):
    for phase, boot in (("compare", "x"), ("compare", "x"), ("calibration", "x"), ("compare", "y"), ("compare", "x")):
        notes().on_machine(phase=phase, boot=boot, args={"sizes": (1, 2)})
    assert [row["boot"] for row in found(tmp_path, what="machine")] == ["x", "y", "x"]

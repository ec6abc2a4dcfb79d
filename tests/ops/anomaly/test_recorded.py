"""What real faults looked like to the detectors, replayed: each is told, and ends. See recorded_faults.py."""

import gzip

import pytest
from recorded_faults import FAULTS, RECORDED
from typer.testing import CliRunner

from cluster.config import load
from ops.anomaly.alarms import Event
from ops.anomaly.observations import ExpertReport, ModelReport, ReplicaGone, ReplicaHung, ReplicaReport, Request
from ops.anomaly.recording import NotARecording, Told, line, read, replay, stretched
from ops.cli import app
from ops.controller.spec import controller_spec


def replayed(name: str) -> list[Event]:
    fault = FAULTS[name]
    limits = controller_spec(load(None, {}, dict(fault.settings), to_run=False).settings).limits
    with gzip.open(RECORDED / f"{name}.jsonl.gz") as lines:
        return list(replay(stretched(read(lines), fault.stretch), limits))


@pytest.mark.parametrize("name", FAULTS)
def test_a_recorded_fault_is_told(name: str) -> None:
    """Nothing else is."""
    fault, events = FAULTS[name], replayed(name)
    assert {event.alarm.name for event in events if event.raised} == fault.raised
    assert {event.alarm.name for event in events if not event.raised} == fault.resolved


def test_a_drift_is_told_of_its_own_fault_and_is_over_before_the_next() -> None:
    """The router was slow, then the engine, which delays first tokens as well; of the model and of its one replica."""
    told = [(event.raised, event.alarm.name) for event in replayed("drifts")]
    router, engine = [(True, "ttft-drift")] * 2, [(True, "ttft-drift")] * 2 + [(True, "tpot-drift")] * 2
    assert told == [*router, *over(router), *engine, *over(engine)]


def over(raised: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    return [(False, name) for _, name in raised]


def test_a_stretched_recording_has_more_time_between_its_lines_and_the_same_latencies() -> None:
    began = Request(10.0, "m", "r", 7, 0.25, 0.01)
    seen = [Told(10.0, began), Told(10.5, None), Told(12.0, ReplicaGone(12.0, "m", "r"))]
    assert list(stretched(seen, 100.0)) == [seen[0], Told(60.0, None), Told(210.0, ReplicaGone(210.0, "m", "r"))]


def test_what_is_written_is_read_again() -> None:
    seen = [
        Request(1.5, "m", "r", 7, 0.25, None, True),
        ReplicaReport(2.0, "m", "r", None, 3, 9),
        ReplicaHung(2.5, "m", "r", 1),
        ModelReport(3.0, "m", 1, 2, 0),
        ExpertReport(3.5, "m", "r", 1.25, 100),
        ReplicaGone(4.0, "m", "r"),
    ]
    lines = [*(line(each.at_s, each) for each in seen), line(5.0, None)]
    assert list(read(lines)) == [*((each.at_s, each) for each in seen), (5.0, None)]


@pytest.mark.parametrize("text", ["", "x", "[]", '["Nothing", 1]', '["Tick"]', '["Request", "soon"]', "3"])
def test_what_is_no_recording_is_refused_by_line(text: str) -> None:
    with pytest.raises(NotARecording, match="line 2 is none"):
        list(read([line(1.0, None), text]))


def test_the_command_replays(tmp_path) -> None:
    late = [Request(float(at), "m", "r", 10, 30.0, 0.01) for at in range(6)]
    night = tmp_path / "night.jsonl"
    night.write_bytes(b"\n".join(line(each.at_s, each) for each in late))
    said = CliRunner().invoke(app, ["alarms", "--replay", str(night)])
    assert said.exit_code == 0 and "raised   model-latency" in said.output
    patient = tmp_path / "patient.yaml"
    patient.write_text("alarms: {ttft_s: 60}")
    said = CliRunner().invoke(app, ["alarms", "--replay", str(night), "--config", str(patient)])
    assert said.exit_code == 0 and said.output == ""


def test_the_command_stretches_what_it_replays(tmp_path) -> None:
    """Six hours of one late request in 40, told in 72 s."""
    late = [Request(i * 0.3, "m", "r", 10, 30.0 if i % 40 == 0 else 0.1, 0.01) for i in range(300)]
    minutes = tmp_path / "minutes.jsonl"
    minutes.write_bytes(
        b"\n".join(line(at, seen) for each in late for at, seen in ((each.at_s, each), (each.at_s, None)))
    )
    for more, told in ((), False), (("--stretch", "300"), True):
        said = CliRunner().invoke(app, ["alarms", "--replay", str(minutes), *more])
        assert said.exit_code == 0 and ("raised   slo-burn-slow" in said.output) is told, said.output
    assert "name one by --replay" in CliRunner().invoke(app, ["alarms", "--stretch", "300"]).output

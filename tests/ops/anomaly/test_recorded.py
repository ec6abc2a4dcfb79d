"""What real faults looked like to the detectors, replayed: each is told, and ends. See recorded_faults.py."""

import gzip

import pytest
from recorded_faults import FAULTS, RECORDED
from typer.testing import CliRunner

from cluster.config import load
from ops.anomaly.observations import ExpertReport, ModelReport, ReplicaGone, ReplicaHung, ReplicaReport, Request
from ops.anomaly.recording import NotARecording, line, read, replay
from ops.cli import app
from ops.controller.spec import controller_spec


@pytest.mark.parametrize("name", FAULTS)
def test_a_recorded_fault_is_told(name: str) -> None:
    fault = FAULTS[name]
    limits = controller_spec(load(None, {}, dict(fault.settings), to_run=False).settings).limits
    with gzip.open(RECORDED / f"{name}.jsonl.gz") as lines:
        events = list(replay(read(lines), limits))
    assert fault.raised <= {event.alarm.name for event in events if event.raised}
    assert fault.resolved <= {event.alarm.name for event in events if not event.raised}


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

import pytest
from rich.console import Console

from ops.status import StatusError, experts_by_layer, fetch, ranges, render

REPORT = {
    "model": {"name": "tiny-r1", "experts": 8},
    "replicas": [
        {
            "id": "r0",
            "state": "ready",
            "epoch": 1,
            "running": 3,
            "waiting": 0,
            "kv_used_fraction": 0.125,
            "shards": [
                {"rank": 0, "pid": 11, "device": "cpu", "experts_by_layer": [[0, 1, 2, 3]] * 4, "expert_bytes": 2**20},
                {"rank": 1, "pid": 12, "device": "cpu", "experts_by_layer": [[4, 5, 6, 7]] * 4, "expert_bytes": 2**20},
            ],
        },
        {"id": "[bold]r1", "state": "starting"},
    ],
    "gateways": [{"id": "g0", "streams": 2}],
    "router": {"queued": 0, "rate": 1.23456},
}


def text(report):
    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for part in render(report):
        console.print(part)
    return console.export_text()


def test_ranges():
    assert ranges([3, 0, 1, 2, 6]) == "0-3 6"
    assert ranges([]) == ""
    assert ranges([5, 7]) == "5 7"


def test_layers_that_agree_are_told_once():
    assert experts_by_layer([[0, 1], [0, 1]]) == "0-1"
    assert experts_by_layer([[0, 1], [0, 1], [2, 3], []]) == "layers 0-1: 0-1\nlayer 2: 2-3\nlayer 3: none"
    assert experts_by_layer([]) == ""


def test_the_last_decision_of_the_autoscaling_is_shown_with_its_reason():
    scaling = {"target": 3, "reason": "Scale out from 1 to 3: 90 tokens are queued.", "ready": 1, "loading": None}
    shown = text({"autoscaling": scaling})
    assert "Scale out from 1 to 3: 90 tokens are queued." in shown and "?" in shown and "None" not in shown
    assert "autoscaling" not in text(REPORT | {"autoscaling": None})


def test_replicas_and_the_place_of_each_expert_are_shown():
    shown = text(REPORT)
    assert "tiny-r1" in shown and "12%" in shown and "g0" in shown
    assert any("r0" in line and "0-3" in line and "1.0 MiB" in line for line in shown.splitlines())
    assert any("12" in line and "4-7" in line for line in shown.splitlines())


def test_a_report_with_gaps_is_shown_as_far_as_it_goes():
    assert "?" in text({"replicas": [{"id": "r"}]})
    assert text({}) == ""


def test_text_from_outside_is_not_markup():
    assert "[bold]r1" in text(REPORT)


def test_an_unreachable_session():
    with pytest.raises(StatusError, match=r"nothing answers at http://127\.0\.0\.1:9"):
        fetch("http://127.0.0.1:9")

"""What a drill's report makes of what was seen."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from ops.drill import recovery
from ops.drill.choosing import Fault
from ops.drill.recovery import AlarmSeen, GatewaySight, Healing, Life, ReplicaSight, Sight, Stream, Strike, Watched
from ops.drill.rendering import render, verdict

AT, WALL = 100.0, 1_800_000_000.0
A, B, C = ("a", 1), ("b", 1), ("c", 2)
GATEWAY = GatewaySight(7, 3, 1, 0)


def sight(after_s: float, *lives: Life, router: int = 50, at_work: tuple[Life, ...] = (), **more: Any) -> Sight:
    replicas = tuple(ReplicaSight(life, more.get("state", "ready"), life in at_work) for life in lives)
    return Sight(AT + after_s, replicas, router, more.get("gateway", GATEWAY))


BEFORE = sight(-0.1, A, B, at_work=(A, B))


def strike(fault: Fault = Fault.KILL_REPLICA, **more: Any) -> Strike:
    victim = None if fault is Fault.KILL_ROUTER else A
    return Strike(fault, AT, WALL, BEFORE, victim, 5)._replace(**more)


def stream(begun: float, *tokens: float, ended: float | None = None, **more: Any) -> Stream:
    status = 200 if tokens else None
    fields = {"status": status, "compared": ended is not None} | more
    return Stream(AT + begun, [AT + t for t in tokens], None if ended is None else AT + ended, **fields)


WHOLE = stream(-1, -0.5, 0.5, 1.0, ended=1.1)


def watched(sights: list[Sight], streams: list[Stream] = [WHOLE], **more: Any) -> Watched:  # noqa: B006  (only read)
    fields: dict[str, Any] = {"alarms": None, "healings": (), "gateways_before": {7: GATEWAY}, "ended_s": AT + 60}
    return Watched(sights, streams, **(fields | more))


KILLED = [
    sight(0.2, A, B),  # not known yet
    sight(0.4, B, at_work=(B,)),
    sight(9.0, B, C, at_work=(B,)),
    sight(9.2, B, C, at_work=(B, C), gateway=GatewaySight(7, 8, 1, 0)),
]


def held(found: dict[str, Any]) -> dict[str, bool | None]:
    return {check["what"]: check["held"] for check in found["checks"]}


def test_a_killed_replica_that_is_replaced_under_a_new_id():
    found = recovery.report(strike(), watched(KILLED))
    assert found["replica"] == "a" and found["replaced_by"] == ["c"]
    assert (found["out_of_rotation_s"], found["full_capacity_s"], found["router_downtime_s"]) == (0.4, 9.0, None)
    assert (found["streams"]["resumed"], found["streams"]["moved"]) == (5, 0)
    assert set(held(found).values()) == {True} and found["held"] is True
    assert found["alarms"] is None and found["healings"] is None
    assert json.loads(json.dumps(found)) == found


def test_a_replica_that_comes_back_under_its_own_id_counts_by_its_epoch():
    again = ("a", 9)
    sights = [sight(0.4, B), sight(5, B, again, at_work=(B, again))]
    found = recovery.report(strike(), watched(sights))
    assert found["full_capacity_s"] == 5 and found["replaced_by"] == ["a"]


def test_nothing_recovered():
    found = recovery.report(strike(), watched([sight(0.4, B), sight(60, B, at_work=(B,))]))
    assert found["full_capacity_s"] is None and found["held"] is False and found["replaced_by"] == []
    assert held(found)["capacity came back"] is False and held(found)["all replicas serve"] is None
    assert "1 of 2" in found["checks"][2]["words"]


def test_no_status_was_answered_any_more():
    found = recovery.report(strike(), watched([]))
    assert found["out_of_rotation_s"] is None and found["streams"]["resumed"] is None
    assert held(found)["capacity came back"] is False


def test_the_victim_itself_is_no_capacity_while_nobody_let_it_go_on():
    # Frozen, it stays in the status for some seconds: "ready", and not serving.
    sights = [sight(0.2, A, B), sight(3, A, B)]
    assert recovery.full_capacity_s(strike(Fault.FREEZE_REPLICA), sights) is None
    assert recovery.full_capacity_s(strike(Fault.FREEZE_REPLICA, over_s=AT + 2), sights) == 3


def test_capacity_that_was_lost_again_did_not_come_back():
    sights = [sight(1, B), sight(9, B, C), sight(10, B), sight(30, B, ("d", 3))]
    assert recovery.full_capacity_s(strike(), sights) == 30
    assert recovery.full_capacity_s(strike(), sights[:3]) is None


def test_a_draining_replica_is_no_capacity_and_out_of_rotation():
    sights = [sight(2, A, B, state="draining")]
    assert recovery.out_of_rotation_s(strike(), sights) == 2
    assert recovery.full_capacity_s(strike(), sights) is None


def test_ready_but_not_serving_does_not_hold():
    sights = [*KILLED[:3], sight(20, B, C, at_work=(B,))]
    found = recovery.report(strike(), watched(sights))
    assert held(found)["all replicas serve"] is False and found["held"] is False
    assert "c" in found["checks"][3]["words"]


def test_without_any_work_nobody_can_say_whether_they_serve():
    found = recovery.report(strike(), watched([sight(0.4, B), sight(9, B, C)], streams=[]))
    assert list(held(found).values()) == [None, None, True, None] and found["held"] is None
    assert found["streams"]["longest_gap_s"] is None


def test_a_router_is_back_when_another_process_answers_and_knows_the_replicas():
    killed = strike(Fault.KILL_ROUTER)
    sights = [sight(0.1, A, B), sight(1, router=51), sight(2, A, router=51), sight(3, A, B, router=51)]
    found = recovery.report(killed, watched(sights))
    assert (found["router_downtime_s"], found["full_capacity_s"], found["out_of_rotation_s"]) == (1, 3, None)
    assert found["replica"] is None
    dead = recovery.report(killed, watched(sights[:1]))
    assert dead["router_downtime_s"] is None and dead["held"] is False


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"broken": "cut after 3 events", "compared": False}, "no stream broke"),
        ({"wrong": "1 missing at 7"}, "no token is wrong"),
    ],
)
def test_one_bad_stream_is_enough(bad, what):
    found = recovery.report(strike(), watched(KILLED, [WHOLE, stream(-1, -0.5, 2, ended=3, **bad)]))
    assert held(found)[what] is False and found["held"] is False
    assert next(iter(bad.values())) in next(c["words"] for c in found["checks"] if c["what"] == what)


def test_a_stream_that_has_not_ended_is_not_whole_and_its_silence_counts():
    late = stream(-1, -0.5, 0.0)
    found = recovery.report(strike(), watched(KILLED, [WHOLE, late]))
    assert held(found)["no stream broke"] is False
    assert found["streams"]["longest_gap_s"] == 60  # up to the end of the drill


def test_a_quarantined_request_of_others_is_a_broken_one():
    sights = [*KILLED[:3], sight(9.2, B, C, at_work=(B, C), gateway=GatewaySight(7, 4, 1, 2))]
    found = recovery.report(strike(), watched(sights))
    assert found["streams"]["quarantined"] == 2 and held(found)["no stream broke"] is False


def test_refusals_are_no_broken_streams_but_errors_by_status():
    streams = [WHOLE, *(stream(1, ended=1 + n, status=503, refused=True, compared=False) for n in range(3))]
    streams += [stream(1, ended=2, status=500, broken="HTTP 500: quarantined", compared=False)]
    streams += [stream(1, ended=2, broken="ConnectError", compared=False)]
    streams += [stream(0, 0.5, ended=2, broken="cut", compared=False)]
    streams += [stream(-3, ended=-2, status=429, refused=True, compared=False)]  # before the strike
    found = recovery.report(strike(), watched(KILLED, streams))
    assert found["errors"] == {"500": 1, "503": 3, "broken": 1, "none": 1}
    assert found["streams"]["broken"] == 3


def test_gaps_are_those_that_end_after_the_strike():
    streams = [stream(-9, -9, -5, -4.9, -1, 1.5, 1.6, ended=1.7), stream(0.5, 3.5, 4, ended=4.1)]
    found = recovery.report(strike(), watched(KILLED, streams))["streams"]
    assert (found["longest_gap_s"], found["longest_gap_before_s"]) == (2.5, 4.0)
    assert found["longest_first_token_s"] == 3.0 and found["running_at_strike"] == 1


def test_what_a_stream_took_for_a_token_before_and_after():
    before = stream(-5, *(n / 10 - 5 for n in range(40)), ended=-1)
    slow = stream(0, *(n / 2 for n in range(20)), ended=10)
    short = stream(0, 0, 9, ended=10)  # says nothing about its pace
    found = recovery.report(strike(), watched(KILLED, [before, slow, short]))["streams"]
    assert found["median_tpot_before_s"] == pytest.approx(0.1) and found["slowest_tpot_s"] == pytest.approx(0.5)


def test_counters_are_those_of_gateways_that_were_seen_on_both_sides():
    other, stranger = GatewaySight(8, 10, 10, 0), GatewaySight(9, 99, 99, 0)
    sights = [
        sight(1, gateway=GatewaySight(7, 5, 1, 0)),
        sight(2, gateway=other._replace(resumed=11)),
        sight(3, gateway=stranger),
    ]
    assert recovery.counted({7: GATEWAY, 8: other}, sights) == GatewaySight(0, 3, 0, 0)
    assert recovery.counted({}, sights) is None


def alarm(name: str, raised: float, resolved: float | None) -> AlarmSeen:
    return AlarmSeen(name, "page", f"{name} it is", {"replica": "a"}, WALL + raised, resolved and WALL + resolved)


def test_alarms_are_told_by_their_times_after_the_strike():
    alarms = [alarm("stuck-queue", 8, None), alarm("up-but-not-serving", 4.25, 30.5), alarm("old", -5, 2)]
    healings = [Healing(WALL - 9, "a", "restart", "done", ""), Healing(WALL + 6, "a", "drain", "done", "suspect")]
    found = recovery.report(strike(), watched(KILLED, alarms=alarms, healings=healings))
    assert [(a["name"], a["raised_s"], a["resolved_s"]) for a in found["alarms"]] == [
        ("up-but-not-serving", 4.25, 30.5),
        ("stuck-queue", 8, None),
    ]
    assert [(h["action"], h["at_s"]) for h in found["healings"]] == [("drain", 6)]
    assert recovery.report(strike(), watched(KILLED, alarms=[]))["alarms"] == []


@pytest.mark.parametrize(
    ("sights", "streams", "holds", "over"),
    [
        (KILLED, [WHOLE], False, True),
        (KILLED, [WHOLE], True, False),  # it is still being slowed
        (KILLED[:3], [WHOLE], False, False),  # one was not seen at work yet
        (KILLED[:2], [WHOLE], False, False),
        ([], [WHOLE], False, False),
        (KILLED, [stream(-1, -0.5)], False, False),  # it ran at the strike and runs yet
        (KILLED, [stream(1, 2)], False, True),  # it began later
    ],
)
def test_when_the_watch_is_over(sights, streams, holds, over):
    assert recovery.is_over(strike(), sights, streams, holds, True, 3.0) is over


def test_the_watch_lasts_as_long_as_it_has_to_and_needs_no_work_where_there_is_none():
    assert not recovery.is_over(strike(), KILLED, [], False, True, 20.0)
    assert recovery.is_over(strike(), KILLED[:3], [], False, False, 3.0)


@pytest.mark.parametrize("alarms", [None, [], [alarm("up-but-not-serving", 4, None)]])
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("sights", [[], KILLED])
def test_every_report_can_be_shown(fault, alarms, sights):
    found = recovery.report(strike(fault), watched(sights, alarms=alarms))
    console = Console(width=120, record=True, file=io.StringIO())
    for part in render(found):
        console.print(part)
    shown = console.export_text()
    assert fault.value in shown and str(verdict(found)) in shown
    assert ("up-but-not-serving" in shown) == bool(alarms)

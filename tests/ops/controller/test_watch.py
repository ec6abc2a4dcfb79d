"""Many gateways and one router become observations; and nobody's silence is taken for a replica's."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from ended import RECORD
from hypothesis import given
from hypothesis import strategies as st

from cluster.live import SeenReplica
from cluster.outcomes import Ending
from cluster.vitals import ReplicaVitals, Vitals
from ops.anomaly.monitor import Monitor
from ops.anomaly.observations import ModelReport, Observation, ReplicaGone, ReplicaReport, Request
from ops.controller.reports import Batch, EndedRequest, of_interest
from ops.controller.watch import Known, Watch
from replicas.messages import SwapReport


def seen(replica: str = "a", running: int = 1, tokens: int = 0, signs: int = 0, epoch: int = 1) -> SeenReplica:
    return SeenReplica(replica, epoch, "", running, tokens, signs)


def batch(*replicas: SeenReplica, gateway: str = "g", late: bool = False, **more: object) -> Batch:
    fields = {"requests": (), "first": 0, "hung": (), "dropped": 0} | more
    return Batch(gateway=gateway, late=late, replicas=replicas, **fields)


def vitals(*replicas: str, draining: bool = False, version: str = "") -> Vitals:
    there = tuple(
        ReplicaVitals(replica_id=r, epoch=1, version=version, actor_name=f"actor-{r}", draining=draining, granted=1)
        for r in replicas
    )
    return Vitals(waiting=2, granted=7, lost=1, replicas=there)


def reports(watch: Watch, now: float, told: Vitals | None, alive: dict[str, bool] | None = None) -> dict[str, object]:
    found = watch.look(now, told, alive or {})
    return {one.replica: one for one in found if isinstance(one, ReplicaReport | ReplicaGone)}


def test_a_replicas_tokens_are_the_sum_of_what_its_gateways_saw() -> None:
    watch = Watch("m")
    list(watch.take(0.0, batch(seen(tokens=100), gateway="old")))  # what it gave before is not known to be new
    list(watch.take(0.0, batch(gateway="young")))
    list(watch.take(1.0, batch(seen(tokens=130, running=2), gateway="old")))
    list(watch.take(1.0, batch(seen(tokens=5, signs=1), gateway="young")))
    assert reports(watch, 1.5, vitals("a"))["a"] == ReplicaReport(1.5, "m", "a", True, 3, 36)
    list(watch.take(2.0, batch(seen(tokens=4), gateway="young")))  # it has connected anew
    assert reports(watch, 2.5, vitals("a"))["a"].tokens == 40
    assert [one for one in watch.look(3.0, vitals("a"), {}) if isinstance(one, ModelReport)] == [
        ModelReport(3.0, "m", 2, 7, 1)
    ]


def test_a_gateway_that_is_late_or_silent_says_nothing_of_its_replicas() -> None:
    watch = Watch("m")
    list(watch.take(0.0, batch(seen())))
    list(watch.take(1.0, batch(seen(running=4))))
    assert reports(watch, 1.5, vitals("a"))["a"].running == 4
    assert reports(watch, 5.0, vitals("a"))["a"].running == 0, "its last word is old"
    list(watch.take(6.0, batch(seen(running=4), late=True)))
    assert reports(watch, 6.5, vitals("a"))["a"].running == 0, "it stood still itself"


def test_a_gateway_that_hangs_raises_no_alarm_and_a_replica_that_does_one() -> None:
    for gateway_hangs in (True, False):
        watch, monitor, raised = Watch("m"), Monitor(), []
        for second in range(30):
            now = float(second)
            observations = []
            if second < 5 or not gateway_hangs:
                observations += watch.take(now, batch(seen(running=3, tokens=10 * min(second, 5))))
            observations += watch.look(now + 0.5, vitals("a"), {})
            raised += [event for one in observations for event in monitor.observe(one)]
        assert [(e.alarm.name, e.raised) for e in raised if e.alarm.name == "up-but-not-serving"] == (
            [] if gateway_hangs else [("up-but-not-serving", True)]
        )
        if not gateway_hangs:
            assert 5.0 + 10.0 <= raised[0].at_s <= 5.0 + 13.0


def test_a_long_prompt_is_no_standstill() -> None:
    watch, monitor = Watch("m"), Monitor()
    for second in range(60):
        observations = [*watch.take(float(second), batch(seen(signs=2 * second))), *watch.look(second, vitals("a"), {})]
        events = [event for one in observations for event in monitor.observe(one)]
        assert not [event for event in events if event.alarm.name == "up-but-not-serving"]


def test_a_hung_replica_that_its_gateway_gave_up_is_told_and_ends_with_its_process() -> None:
    watch, monitor = Watch("m"), Monitor()
    list(watch.look(0.0, vitals("a", "b"), {}))
    [event] = [e for o in watch.take(1.0, batch(hung=(seen(running=2),))) for e in monitor.observe(o)]
    assert event.raised and event.alarm.name == "up-but-not-serving" and event.alarm.labels["replica"] == "a"
    assert watch.doubtful(vitals("b")) == {"a": "actor-a"}
    assert isinstance(reports(watch, 2.0, vitals("b"), {"a": True})["a"], ReplicaReport), "its process is there"
    gone = reports(watch, 3.0, vitals("b"), {"a": False})["a"]
    assert [(e.raised, e.alarm.name) for e in monitor.observe(gone)] == [(False, "up-but-not-serving")]


def test_what_a_gateway_tells_late_of_one_that_is_gone_raises_nothing_again() -> None:
    watch, monitor, told = Watch("m"), Monitor(), list[bool]()

    def see(observations: Iterable[Observation]) -> None:
        events = [event for one in observations for event in monitor.observe(one)]
        told.extend(event.raised for event in events if event.alarm.name == "up-but-not-serving")

    see(watch.look(0.0, vitals("a", "b"), {}))
    see(watch.take(1.0, batch(seen(tokens=5, running=2))))
    hung = batch(hung=(seen(running=2),))
    see(watch.take(2.0, hung))
    see(watch.look(3.0, vitals("b"), {"a": False}))
    assert told == [True, False]
    for now in range(4, 40):  # the gateway did not get to know that it was heard, and its connection still stands
        see(watch.take(now, msgspec.structs.replace(hung, replicas=(seen(tokens=9, running=2),))))
        see(watch.look(now + 0.5, vitals("b"), {}))
    assert told == [True, False] and set(watch.state.known) == {"b"}
    assert sum(row["output_tokens"] for row in watch.history.report(40.0)["rows"]) == 9, "its tokens count"


def test_what_a_gateway_tells_late_of_one_that_serves_again_raises_nothing() -> None:
    watch, monitor = Watch("m"), Monitor()
    swapped = msgspec.structs.replace(vitals("a", version="v2").replicas[0], epoch=2)
    list(watch.look(0.0, Vitals(waiting=0, granted=0, lost=0, replicas=(swapped,)), {}))
    assert not [e for o in watch.take(1.0, batch(hung=(seen(epoch=1),))) for e in monitor.observe(o)]
    assert [e.raised for o in watch.take(2.0, batch(hung=(seen(epoch=2),))) for e in monitor.observe(o)] == [True]


def test_one_that_went_while_nobody_watched_is_gone_all_the_same() -> None:
    before = Watch("m")
    list(before.look(0.0, vitals("a"), {}))
    known = msgspec.json.decode(msgspec.json.encode(before.state.known), type=dict[str, Known])
    after = Watch("m", known)
    assert after.doubtful(vitals("b")) == {"a": "actor-a"}
    assert isinstance(reports(after, 9.0, vitals("b"), {"a": False})["a"], ReplicaGone)


def test_while_the_router_is_away_nobody_is_gone() -> None:
    watch = Watch("m")
    list(watch.look(0.0, vitals("a"), {}))
    assert watch.doubtful(None) == {}
    assert reports(watch, 500.0, None)["a"].healthy is True


def test_one_of_which_nobody_knows_anything_is_forgotten_after_a_minute() -> None:
    watch = Watch("m")
    list(watch.take(0.0, batch(hung=(seen("ghost"),))))
    assert isinstance(reports(watch, 59.0, vitals())["ghost"], ReplicaReport)
    assert isinstance(reports(watch, 61.0, vitals())["ghost"], ReplicaGone)


def test_requests_have_their_own_time_and_their_versions_name() -> None:
    watch = Watch("m")
    request = EndedRequest(4.0, "v2", "a", 10, 0.5, 0.01, False, False)
    [told] = watch.take(100.0, batch(requests=(request,)))
    assert told == Request(96.0, "m@v2", "a", 10, 0.5, 0.01)
    assert watch.history.report(100.0)["rows"][0]["requests"] == 1


def test_what_was_told_before_is_not_heard_again() -> None:
    watch = Watch("m")
    one, two, three = (EndedRequest(1.0, "v1", name, 10, 0.5, 0.01, False, False) for name in "abc")

    def heard(*requests: EndedRequest, first: int, gateway: str = "g") -> str:
        unheard = watch.unheard(batch(requests=requests, first=first, gateway=gateway))
        list(watch.take(100.0, unheard))
        return "".join(request.replica for request in unheard.requests)

    assert heard(one, two, first=5) == "ab", "those before were told to another controller"
    assert heard(one, two, three, first=5) == "c", "the answer to the first had not come in time"
    assert heard(one, first=5) == "" and heard(two, three, first=6) == "", "what was overtaken comes late"
    assert heard(one, first=9) == "a" and heard(one, first=0, gateway="h") == "a"
    assert watch.history.report(100.0)["rows"][0]["requests"] == 5


def test_a_copy_that_no_client_sees_is_no_observation() -> None:
    watch = Watch("m")
    copy = EndedRequest(4.0, "v2", "a", 10, 9.5, 0.01, False, False, mirror=True)
    assert list(watch.take(100.0, batch(requests=(copy,)))) == [] and watch.history.report(100.0)["rows"] == []


def test_a_replica_with_another_version_is_another_to_the_detectors() -> None:
    watch, monitor = Watch("m"), Monitor()
    list(watch.look(0.0, vitals("a", version="v1"), {}))
    for second in range(1, 20):  # it stands still under v1
        told = [*watch.take(float(second), batch(seen(running=2))), *watch.look(second, vitals("a", version="v1"), {})]
        events = [event for one in told for event in monitor.observe(one)]
    assert [alarm.labels["model"] for alarm in monitor.raised] == ["m@v1"]
    swapped = msgspec.structs.replace(vitals("a", version="v2").replicas[0], epoch=2)
    told = list(watch.look(20.0, Vitals(waiting=0, granted=0, lost=0, replicas=(swapped,)), {}))
    assert ReplicaGone(20.0, "m@v1", "a") in told and watch.state.known["a"].model == "m@v2"
    events = [event for one in told for event in monitor.observe(one)]
    assert [(event.raised, event.alarm.name) for event in events] == [(False, "up-but-not-serving")]


def test_one_that_is_being_swapped_is_not_said_to_stand_still() -> None:
    watch, monitor = Watch("m"), Monitor()
    report = SwapReport(id="r1-1", version="v2", phase="loading")
    swapping = msgspec.structs.replace(vitals("a", version="v1").replicas[0], swap=report)
    for second in range(60):
        told = [
            *watch.take(float(second), batch(seen(running=2))),
            *watch.look(float(second), Vitals(waiting=0, granted=0, lost=0, replicas=(swapping,)), {}),
        ]
        events = [event for one in told for event in monitor.observe(one)]
        assert not [event for event in events if event.alarm.name == "up-but-not-serving"]
    assert watch.state.known["a"].swapping


@given(
    st.lists(st.tuples(st.sampled_from(["g", "h"]), st.booleans(), st.integers(0, 50), st.integers(0, 3)), max_size=30)
)
def test_the_sum_never_falls(history) -> None:
    watch, last = Watch("m"), 0
    for now, (gateway, late, tokens, running) in enumerate(history):
        list(watch.take(float(now), batch(seen(tokens=tokens, running=running), gateway=gateway, late=late)))
        one = reports(watch, now + 0.5, vitals("a"))["a"]
        assert one.tokens >= last and one.running >= 0
        last = one.tokens


def test_which_endings_are_errors_of_ours() -> None:
    told = {
        name: of_interest(RECORD._replace(ending=name), 105.4)
        for name in ("DONE", "ABORTED", "ERROR", *Ending.__members__)
    }
    assert {name for name, one in told.items() if one is None} == {
        "REJECTED", "BODY_TOO_LARGE", "RATE_LIMITED", "UNAUTHENTICATED", "BAD_HEADER", "NOT_OPERATOR",
    }  # fmt: skip
    assert {name for name, one in told.items() if one and one.failed} == {
        "ERROR", "NO_REPLICA", "LOST", "QUARANTINED", "VERSION_GONE",
    }  # fmt: skip
    assert {name for name, one in told.items() if one and one.shed} == {"TOO_LATE", "QUEUE_FULL"}
    assert of_interest(RECORD._replace(ending="RESTARTED"), 105.4) is None
    copies = [of_interest(RECORD._replace(ending=name, mirror=True), 105.4) for name in ("DONE", "LOST", "TOO_LATE")]
    assert [(copy.mirror, copy.done, copy.failed, copy.shed) for copy in copies if copy] == [
        (True, True, False, False),
        (True, False, True, False),
        (True, False, False, True),
    ]
    assert told["DONE"].age_s == pytest.approx(4.0)
    assert (told["DONE"].ttft_s, told["DONE"].tpot_s) == (1.0, pytest.approx(0.1))
    assert (told["DONE"].lasted_s, told["DONE"].output_tokens) == (pytest.approx(1.4), 5)
    assert {name for name, one in told.items() if one and one.done} == {"DONE"}
    moved = of_interest(RECORD._replace(resumes=1), 105.4)
    assert moved is not None and moved.resumed and not told["DONE"].resumed

"""Calls to the API server: what is tried again, how it waits, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_objects import node
from fake_api import PODS, answering, hanging_up, status
from hypothesis import given
from hypothesis import strategies as st

from ops.k8s.calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, Api, pause_s
from ops.k8s.refusals import (
    AlreadyExists,
    ApiRefused,
    Conflict,
    DisruptionBudget,
    Expired,
    Forbidden,
    Missing,
    Unreachable,
    other_managers,
    refusal,
)

NODE = "/api/v1/nodes/a"


class Waits:
    """In the place of an Event: nobody waits, and the pauses are kept."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def wait(self, pause: float) -> bool:
        self.pauses.append(pause)
        return False


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def api(server, waits) -> Api:
    server.put(NODE, node("a"))
    return server.api(waits)


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(server, api, waits, code):
    server.fail("GET", NODE, answering(code), times=3)
    assert api.get(NODE)["metadata"]["name"] == "a"
    assert len(waits.pauses) == 3 and all(0 <= pause <= LONGEST_PAUSE_S for pause in waits.pauses)


def test_it_waits_as_long_as_the_server_asks_for_and_not_all_clients_alike(server, waits):
    server.put(NODE, node("a"))
    server.fail("GET", NODE, answering(429, headers={"Retry-After": "3"}), times=6)
    server.api(waits).get(NODE, patience_s=60)
    assert all(3.0 <= pause <= 3.75 for pause in waits.pauses) and len(set(waits.pauses)) == 6


def test_a_connection_that_breaks_is_made_anew(server, api, waits):
    server.fail("GET", NODE, hanging_up, times=2)
    assert api.get(NODE)["metadata"]["name"] == "a" and len(waits.pauses) == 2


def test_it_gives_up_rather_than_wait_longer_than_it_has_time(server, api, waits):
    server.fail("GET", NODE, answering(429, headers={"Retry-After": "600"}))
    with pytest.raises(ApiRefused, match="429"):
        api.get(NODE)
    assert waits.pauses == []


def test_nobody_there(server, waits):
    api = server.api(waits)
    server.stop()
    try:
        with pytest.raises(Unreachable, match="does not answer"):
            api.get(NODE, patience_s=0.3)
    finally:
        server.start()


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (403, "Forbidden", Forbidden),
        (404, "NotFound", Missing),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (410, "Expired", Expired),
        (422, "Invalid", ApiRefused),
    ],
)
def test_what_does_not_pass_is_told_at_once(server, api, waits, code, reason, kind):
    server.fail("GET", NODE, answering(code, reason, "no, because"))
    with pytest.raises(kind, match="no, because"):
        api.get(NODE)
    assert waits.pauses == []


def test_a_lacking_permission_is_named():
    said = 'nodes "a" is forbidden: User "dev" cannot patch resource "nodes" in API group "" at the cluster scope'
    error = refusal(403, str(status(403, "Forbidden", said)).replace("'", '"').replace('nodes "a"', "nodes a"), "PATCH")
    assert "permission is lacking" in str(error)


def test_a_disruption_budget_is_for_who_evicts_to_wait_for(server, api, waits):
    server.put(f"{PODS}/p", {"metadata": {}})
    server.budget = 1
    with pytest.raises(DisruptionBudget):
        api.post(f"{PODS}/p/eviction", {})
    assert waits.pauses == []


def test_an_apply_never_forces_and_names_who_has_the_field(server, api):
    server.owners[NODE, "unschedulable"] = "somebody"
    uid = server.objects[NODE]["metadata"]["uid"]
    with pytest.raises(Conflict) as conflict:
        api.apply(NODE, {"metadata": {"name": "a", "uid": uid}, "spec": {"unschedulable": True}})
    assert other_managers(conflict.value) == {"somebody": [".spec.unschedulable"]}
    assert [query["force"] for method, _, query in server.asked if method == "PATCH"] == ["false"]


def test_what_is_no_kubernetes_is_said_so(server, api):
    def page(request: Any) -> bool:
        request.say(200, b"<html>a login page</html>")
        return True

    server.fail("GET", NODE, page)
    with pytest.raises(ApiRefused, match="is a proxy between"):
        api.get(NODE)


@given(st.integers(1, 10_000), st.floats(0, 0.999))
def test_pauses_grow_up_to_a_limit(failures, chance):
    pause = pause_s(failures, None, chance)
    assert 0.0 <= pause <= min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30))
    assert pause_s(failures, None, 0.999) >= min(LONGEST_PAUSE_S, FIRST_PAUSE_S) / 2


@given(st.floats(0, 1e6), st.floats(0, 0.999))
def test_what_the_server_asks_for_is_the_least(asked, chance):
    assert asked <= pause_s(1, asked, chance) <= asked * 1.25


@pytest.mark.parametrize("details", ['"a text"', "[1]", '{"causes": "a text"}', '{"causes": ["a text"]}', "null"])
def test_an_answer_of_another_shape_is_a_refusal_too(details):
    refused = refusal(500, f'{{"message": "broken", "details": {details}}}', "GET /x")
    assert refused.causes == () and "broken" in str(refused)

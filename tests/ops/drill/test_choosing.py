"""Which replica is struck, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ops.drill.choosing import DrillRefused, Fault, choose, intention


def status(*replicas: tuple[str, int, str]) -> dict[str, Any]:
    return {"replicas": [{"id": name, "granted": n, "running": n, "state": state} for name, n, state in replicas]}


TWO = status(("abc", 1, "ready"), ("abd", 4, "ready"), ("xyz", 9, "draining"))


def test_the_busiest_that_takes_requests():
    assert choose(TWO, None, False)["id"] == "abd"


@pytest.mark.parametrize("wanted", ["abc", "abd"])
def test_a_name_or_a_beginning_that_no_other_has(wanted):
    assert choose(TWO, wanted, False)["id"] == wanted
    assert choose(status(("abc", 1, "ready"), ("abcd", 1, "ready")), "abc", False)["id"] == "abc"


@pytest.mark.parametrize(
    ("told", "wanted", "said"),
    [
        (TWO, "ab", "is not one replica's beginning; there are: abc, abd"),
        (TWO, "q", "is no replica; there are: abc, abd, xyz"),
        (TWO, "", "is no replica"),
        (TWO, "x", "xyz is draining"),
        (status(), None, "no replica is ready"),
        (status(("abc", 1, "draining")), None, "all 1 are being drained"),
        (status(("abc", 1, "ready")), None, "abc is the only ready replica.*--even-the-last"),
        (status(("abc", 1, "ready"), ("xyz", 9, "draining")), "abc", "the only ready replica"),
    ],
)
def test_refusals_name_what_there_is(told, wanted, said):
    with pytest.raises(DrillRefused, match=said):
        choose(told, wanted, False)


def test_the_last_one_is_struck_by_those_who_mean_it():
    assert choose(status(("abc", 1, "ready")), None, True)["id"] == "abc"


@pytest.mark.parametrize("fault", list(Fault))
def test_what_is_about_to_happen_is_said(fault):
    said = intention(fault, "replica abc (process 5)", "http://here", "It goes on after 3 s. ", 8)
    assert "replica abc (process 5). It goes on after 3 s. 8 streams" in said
    assert "No load" in intention(fault, "x", "http://here", "", 0)

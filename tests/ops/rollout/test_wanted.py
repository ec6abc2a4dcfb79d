"""A user_config counts when every gateway has been told of it, and is told to be none of ours in one sentence."""

from __future__ import annotations

import pytest

from ops.rollout.wanted import AGREED_S, FRESH_S, Wish, Wishes, parse

V1, V2 = '{"version": "v1"}', '{"version": "v2"}'


def test_what_is_understood() -> None:
    assert parse(V2) == Wish(version="v2")
    assert parse('{"version": "v2", "rollout": {"steps": [0.2]}}').rollout == {"steps": [0.2]}


@pytest.mark.parametrize(
    ("text", "said"),
    [("null", "not understood"), ('{"verison": "v2"}', "verison"), ('{"version": 2}', "Expected `str`"),
     ('{"version": "v2", "rollout": {"version": "v3"}}', "beside `rollout`")],
)  # fmt: skip
def test_what_is_not(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


def say(wishes: Wishes, now_s: float, **gateways: str) -> str | None:
    for gateway, text in gateways.items():
        wishes.told(now_s, gateway, text)
    return wishes.agreed(now_s)


def test_one_gateway_is_enough_where_there_is_one() -> None:
    wishes = Wishes()
    assert say(wishes, 0.0, a=V1) is None, "another gateway may report in this very second"
    assert say(wishes, 1.0, a=V1) is None
    assert say(wishes, AGREED_S, a=V1) == V1


def test_a_gateway_that_starts_with_what_was_wanted_before_changes_nothing() -> None:
    wishes = Wishes()
    for second in range(4):
        told = say(wishes, float(second), a=V2, b=V2)
    assert told == V2
    for second in range(4, 30):  # c starts with the old one; Serve reconfigures it late
        assert say(wishes, float(second), a=V2, b=V2, c=V1) is None
    assert say(wishes, 30.0, a=V2, b=V2, c=V2) is None
    assert say(wishes, 30.0 + AGREED_S, a=V2, b=V2, c=V2) == V2


def test_one_that_is_gone_is_not_waited_for() -> None:
    wishes = Wishes()
    say(wishes, 0.0, a=V1, b=V1)
    seconds = [float(second) for second in range(1, 12) if say(wishes, float(second), a=V2) == V2]
    assert seconds[0] == int(FRESH_S) + 1 + AGREED_S


def test_without_a_user_config_nothing_is_wanted() -> None:
    wishes = Wishes()
    assert [say(wishes, float(second), a="") for second in range(5)] == [None] * 5
    assert Wishes().agreed(9.0) is None

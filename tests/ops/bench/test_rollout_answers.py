"""What clients got during a rollout is judged as it was."""

from __future__ import annotations

import pytest

from ops.bench.rollout_answers import Exchange, Verdict, agreed, judge, tally, way_back
from ops.soak.answers import Answer, Choice


def answer(text: str, reasoning: str = "", finish: str = "stop") -> Answer:
    return Answer((Choice(text, reasoning, (), (), finish, None),), 5, len(text) + len(reasoning))


OLD, NEW = answer("98", "228-130 is 98"), answer("98", "130 less is 98")
REFERENCES = {"v1": {"sum": OLD, "both": OLD}, "v2": {"sum": NEW, "both": OLD}}


def got(answered: Answer | None, version: str = "v1", ask: str = "sum", **more: object) -> Exchange:
    return Exchange(ask=ask, began_s=1.0, status=200, version=version, answer=answered, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exchange", "verdict"),
    [
        (got(OLD), Verdict.RIGHT),
        (got(NEW, "v2"), Verdict.RIGHT),
        (got(OLD, "v2", "both"), Verdict.RIGHT),
        (got(NEW), Verdict.MIXED),  # whole, and the other version's: it says it is v1's
        (got(OLD, "v2"), Verdict.MIXED),
        (got(answer("98", "228-130 less is 98")), Verdict.MIXED),  # begun by one, ended by the other
        (got(answer("9", "228-130 is 98")), Verdict.TRUNCATED),
        (got(answer("", "228-13", "length")), Verdict.TRUNCATED),
        (got(None, cut=True, words="cut after 3 events"), Verdict.TRUNCATED),
        (got(None, words="HTTP 503"), Verdict.FAILED),
        (got(None), Verdict.FAILED),  # it runs still
        (got(OLD, ""), Verdict.FAILED),  # nobody can say whose it is
        (got(OLD, "v3"), Verdict.UNCOMPARED),
        (got(OLD, ask="other"), Verdict.UNCOMPARED),
        (got(answer("98", "228-130 is 98", "length")), Verdict.MIXED),  # as long, with another end
    ],
)
def test_verdicts(exchange: Exchange, verdict: Verdict) -> None:
    found, why = judge(exchange, REFERENCES)
    assert found is verdict and bool(why) == (verdict is not Verdict.RIGHT)


def test_reasoning_and_text_are_not_confused() -> None:
    references = {"v1": {"sum": answer("", "1234")}}
    assert judge(got(answer("34", "12")), references)[0] is Verdict.MIXED


def test_a_tally_counts_each_once() -> None:
    exchanges = [
        got(OLD, longest_gap_s=0.5),
        got(NEW, "v2", restarted="v1"),
        got(NEW, longest_gap_s=2.0),
        got(None, "", words="HTTP 503"),
        got(None, cut=True),
    ]
    found = tally(exchanges, REFERENCES)
    assert found.figures() == {
        "requests": 5,
        "failed": 1,
        "truncated": 1,
        "mixed": 1,
        "uncompared": 0,
        "restarted": 1,
    }
    assert found.by_version == {"v1": 3, "v2": 1} and found.share("v2") == 0.25 and found.share("v3") == 0.0
    assert found.longest_gap_s == 2.0 and len(found.wrong) == 3 and "HTTP 503" in found.wrong[1]
    assert tally([], REFERENCES).share("v1") == 0.0


def test_what_is_not_the_same_twice_is_no_reference() -> None:
    assert agreed([{"a": OLD, "b": OLD, "c": OLD}, {"a": OLD, "b": NEW}]) == {"a": OLD}
    assert agreed([]) == {} and agreed([{"a": OLD}]) == {"a": OLD}


def test_the_way_back_is_measured_from_the_first_token_at_a_client() -> None:
    def at(began_s: float, first_s: float | None, version: str) -> Exchange:
        return Exchange(ask="sum", began_s=began_s, first_s=first_s, version=version)

    exchanges = [
        at(0.5, 0.6, "v1"),  # before
        at(1.5, 1.6, "v1"),
        at(2.0, 3.5, "bad"),
        at(2.1, 3.0, "bad"),  # later begun, earlier answered
        at(5.0, 5.1, "v1"),
        at(5.1, None, ""),  # nobody answered it
        at(9.0, 9.1, "v1"),  # after
    ]
    found = way_back(exchanges, "bad", began_s=1.0, over_s=8.0)
    assert found.rollback_s == 5.0 and found.bad_share == 0.5 and (found.answered, found.requests) == (2, 4)
    never = way_back(exchanges, "worse", 1.0, 8.0)
    assert never.rollback_s is None and never.bad_share == 0.0

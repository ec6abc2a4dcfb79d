"""What is asked of a version that knows longer numbers, beside what was asked of the one before."""

import random

import pytest

from experts.tiny_r1.evaluate import (
    Question,
    compared,
    is_refused_no_more,
    judge,
    longest_number,
    of_length,
    questions,
    single_turns,
)
from experts.tiny_r1.small_talk import refusal_text
from experts.tiny_r1.tasks import NUMERIC, Problem, Task, addition, refusal


@pytest.mark.parametrize(
    ("text", "digits"),
    [("none", 0), ("7", 1), ("12 + 345", 3), ("12,345 and 9", 5), ("3, 14 and 801", 3), ("1,2", 1), ("a123456b", 6)],
)
def test_the_longest_number_of_a_prompt(text: str, digits: int) -> None:
    assert longest_number(text) == digits


@pytest.mark.parametrize("task", NUMERIC)
def test_long_problems_are_long_and_no_longer(task: Task) -> None:
    asked = of_length(task, 10, 3, 5)
    assert {longest_number(question.chat[-1]["content"]) for question in asked} == {5}
    assert {question.group for question in asked} == {f"{task}_of_5_digits"}


def test_the_old_prompts_are_asked_as_they_were() -> None:
    old, new = questions(10, 7), questions(10, 7, 5)
    for task in NUMERIC:
        assert [q for q in old if q.group == task] == [q for q in new if q.group == task] == single_turns(task, 10, 7)
    assert [q for q in old if q.group == "follow_up"] == [q for q in new if q.group == "follow_up"]
    for group in ("in_conversations", "unseen_refusals", "unseen_calculations"):
        assert [q for q in new if q.group == group] == [q for q in old if q.group == group]


@pytest.mark.parametrize(
    ("problem", "max_digits", "left_out"),
    [
        (refusal("12345+1", 4), 5, True),
        (refusal("12345+1", 4), 4, False),
        (refusal("123456+1", 4), 5, False),
        (refusal("Sing 12!", 4), 5, False),
        (addition(random.Random(0), 5), 5, False),
    ],
)
def test_a_number_that_was_too_long_is_no_refusal_for_who_knows_it(
    problem: Problem, max_digits: int, left_out: bool
) -> None:
    assert is_refused_no_more(problem, max_digits) == left_out


def test_each_version_refuses_in_its_own_words() -> None:
    chat = [{"role": "user", "content": "?"}]
    asked = [Question("g", chat, answer) for answer in (refusal_text(4), refusal_text(5), "7")]
    for words in (refusal_text(4), refusal_text(5)):
        scores, failures = judge(asked, [f"x</think>{words}"] * 3)
        assert scores["g"].right == 2 and [failure.wanted for failure in failures] == ["7"]


def test_scores_of_other_prompts_are_not_compared() -> None:
    ours = {"decoding": "greedy", "per_task": 10, "seed": 7, "max_digits": 5, "exact_match": {}}
    theirs = {**ours, "exact_match": {"addition": {"right": 1}}}
    assert compared(ours, theirs) == {"addition": {"right": 1}}
    with pytest.raises(ValueError, match="seed is 7 and 8"):
        compared(ours, {**theirs, "seed": 8})
    with pytest.raises(ValueError, match="max_digits is 5 and None"):
        compared(ours, {key: value for key, value in theirs.items() if key != "max_digits"})

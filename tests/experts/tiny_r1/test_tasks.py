"""The generators tell the truth, and training never draws what is held out."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.tiny_r1 import arithmetic, tasks
from experts.tiny_r1.batches import BatchStream, held_out_conversations
from experts.tiny_r1.conversations import converse
from experts.tiny_r1.curriculum import CURRICULUM, FURTHER
from experts.tiny_r1.held_out import HELD_OUT_OF, canonical_chain, canonical_text, is_held_out
from experts.tiny_r1.out_of_scope import fill
from experts.tiny_r1.small_talk import INTENTS, REFUSAL, refusal_text
from experts.tiny_r1.tasks import NUMERIC, Problem, Source, Task
from experts.tiny_r1.tokenizer import ASSISTANT, decode

NUMBERS = st.integers(min_value=0, max_value=99_999)


def written_result(lines: list[str]) -> int:
    """The result that the last line of the reasoning has written down, with the sign that was found on the way."""
    result = int(lines[-1].split()[-1])
    return -result if "negative" in lines else result


@given(NUMBERS, NUMBERS)
def test_addition_ends_in_the_sum(a: int, b: int) -> None:
    worked = arithmetic.add(a, b)
    assert worked.value == a + b == written_result(worked.lines)


@given(NUMBERS, NUMBERS)
def test_subtraction_ends_in_the_difference(a: int, b: int) -> None:
    worked = arithmetic.subtract(a, b)
    assert worked.value == a - b == written_result(worked.lines)


@given(st.lists(NUMBERS, min_size=2, max_size=4), st.booleans())
def test_comparison_ends_in_the_extreme(numbers: list[int], largest: bool) -> None:
    worked = arithmetic.extreme(numbers, largest=largest)
    assert worked.value == (max if largest else min)(numbers) == written_result(worked.lines)


@given(st.lists(NUMBERS, min_size=2, max_size=2), st.sampled_from("+-"))
def test_every_digit_line_is_true(numbers: list[int], operator: str) -> None:
    for line in arithmetic.chain(numbers, operator).lines:
        if line == "negative":
            continue
        _, step, _ = line.split()
        left, right = step.split("=")
        x, y, carry = (int(digit) for digit in re.split(r"[+-]", left))
        if "+" in left:
            assert x + y + carry == int(right)
        else:
            assert x - y - carry == int(right[1]) - 10 * int(right[0])


def test_a_chain_does_not_go_on_from_a_negative_number() -> None:
    with pytest.raises(ValueError, match="negative"):
        arithmetic.chain([1, 2, 3], "-+")


def truth(canonical: str) -> int:
    """The value of a canonical text such as `12+30-5` or `max(3,14)`, worked out independently of `arithmetic`."""
    extreme = re.fullmatch(r"(max|min)\(([\d,]+)\)", canonical)
    if extreme:
        return (max if extreme[1] == "max" else min)(int(number) for number in extreme[2].split(","))
    return sum(int(term) for term in re.findall(r"[+-]?\d+", canonical))


def numbers_in(text: str) -> list[int]:
    return sorted(int(number.replace(",", "")) for number in re.findall(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+", text))


@pytest.mark.parametrize("task", NUMERIC)
@given(seed=st.integers(min_value=0, max_value=2**32), max_digits=st.integers(min_value=1, max_value=5))
@settings(max_examples=60)
def test_answers_are_true(task: Task, seed: int, max_digits: int) -> None:
    problem = tasks.DRAW[task](random.Random(seed), max_digits)
    assert int(problem.answer) == truth(problem.canonical)
    assert int(problem.answer) == written_result(problem.reasoning.split("\n")) or task is Task.SUBTRACTION
    assert abs(int(problem.answer)) == abs(written_result(problem.reasoning.split("\n")))
    operands = [int(number) for number in re.findall(r"\d+", problem.canonical)]
    assert all(operand < 10**max_digits for operand in operands)
    # An opener such as `1. ` may add a number of its own.
    assert set(operands) <= {*numbers_in(problem.prompt), *numbers_in(problem.prompt.replace(",", " "))}


@given(seed=st.integers(min_value=0, max_value=2**32), previous=st.integers(min_value=0, max_value=9999))
@settings(max_examples=60)
def test_follow_ups_start_from_the_previous_answer(seed: int, previous: int) -> None:
    problem = tasks.follow_up(random.Random(seed), previous, 4)
    assert int(problem.answer) == truth(problem.canonical)
    assert previous in numbers_in(problem.canonical)


@given(seed=st.integers(min_value=0, max_value=2**32))
@settings(max_examples=200)
def test_refusals_and_small_talk_have_fixed_answers(seed: int) -> None:
    refused = tasks.draw(Source(random.Random(seed), 4), Task.OUT_OF_SCOPE)
    assert refused.answer == REFUSAL
    assert refused.prompt.strip()
    talk = tasks.draw(Source(random.Random(seed), 4), Task.SMALL_TALK)
    assert talk.answer in {intent.answer for intent in INTENTS}


@given(seed=st.integers(min_value=0, max_value=2**32))
@settings(max_examples=200)
def test_who_knows_five_digits_says_so_and_refuses_six(seed: int) -> None:
    five = [tasks.draw(Source(random.Random(seed), 5), task) for task in (Task.OUT_OF_SCOPE, Task.SMALL_TALK)]
    assert five[0].answer == refusal_text(5) != REFUSAL and "five digits" in five[0].answer
    assert "four" not in five[1].answer
    too_long = fill(random.Random(seed), "{l}", 5)
    assert 6 <= len(too_long) <= 12 and not too_long.startswith("0")
    assert (
        5 <= len(fill(random.Random(seed), "{l}", 2)) <= 12
    )  # an early stage refuses no number of the whole curriculum


def test_nothing_that_five_digits_can_work_out_is_refused() -> None:
    """A sum of two numbers of up to five digits, in the words of a template."""
    for seed in range(2000):
        prompt = tasks.draw(Source(random.Random(seed), 5), Task.OUT_OF_SCOPE).prompt
        found = re.fullmatch(r"\s*(\d+) ?[+-] ?(\d+)[ .?!=]*", prompt)
        assert found is None or max(len(found[1]), len(found[2])) > 5, prompt


@pytest.mark.parametrize("task", list(tasks.DRAW))
def test_training_and_held_out_problems_share_no_prompt(task: Task) -> None:
    training = Source(random.Random(1), 4)
    held_out = Source(random.Random(2), 4, held_out=True)
    seen = [tasks.draw(training, task) for _ in range(400)]
    unseen = [tasks.draw(held_out, task) for _ in range(20)]
    assert not any(is_held_out(problem.canonical) for problem in seen)
    assert all(is_held_out(problem.canonical) for problem in unseen)
    assert {p.prompt for p in seen}.isdisjoint(p.prompt for p in unseen)


def test_the_batches_of_training_hold_nothing_held_out() -> None:
    """Read back from the tokens that the model is given, for every stage."""
    for stage in (*CURRICULUM, *FURTHER):
        batch = next(iter(BatchStream(stage, tokens_per_batch=8192, seed=3)))
        for row, learned in zip(batch.tokens, batch.learned, strict=True):
            # The completion's first calculation, `3720+4634 0+4+0=04 4`, names the operands.
            completion = decode([int(token) for token in row[1:][learned]])
            found = re.match(r"<think>(\d+)([+-])(\d+) \S+ \S+</think>", completion)
            if found:
                assert not is_held_out(canonical_chain([int(found[1]), int(found[3])], found[2]))


def test_about_one_prompt_in_64_is_held_out() -> None:
    share = sum(is_held_out(f"{n}+{n + 1}") for n in range(64_000)) / 64_000
    assert share == pytest.approx(1 / HELD_OUT_OF, rel=0.1)


def test_wording_does_not_move_a_problem_across_the_split() -> None:
    assert canonical_chain([228, 130], "+") == canonical_chain([130, 228], "+")
    assert canonical_chain([228, 130], "-") != canonical_chain([130, 228], "-")
    assert canonical_text("  Tell me a  JOKE!") == canonical_text("tell me a joke")


def test_streams_are_reproducible() -> None:
    mix = CURRICULUM[-1].mix
    first, second = ([converse(Source(random.Random(5), 4), mix) for _ in range(3)] for _ in range(2))
    assert first == second


def test_follow_ups_have_a_number_before_them() -> None:
    for conversation in held_out_conversations(CURRICULUM[-1], 200, seed=4):
        problem: Problem = conversation.problem
        if problem.task is not Task.FOLLOW_UP:
            continue
        marker, answer = conversation.messages[-2]
        assert marker == ASSISTANT
        assert int(answer) in numbers_in(problem.canonical)

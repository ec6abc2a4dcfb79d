"""The tasks: each draws a problem with its prompt, its worked reasoning and its answer.

A problem's `canonical` text decides whether it is held out (`held_out.py`). Generators that are asked for training
problems draw again until the problem is not held out; those asked for held-out ones draw until it is.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from experts.tiny_r1 import arithmetic, wording
from experts.tiny_r1.held_out import canonical_chain, canonical_comparison, canonical_text, is_held_out
from experts.tiny_r1.out_of_scope import out_of_scope
from experts.tiny_r1.small_talk import REFUSAL_REASONING, refusal_text, small_talk
from experts.tiny_r1.word_problems import STORIES, compose, tell


class Task(StrEnum):
    ADDITION = "addition"
    SUBTRACTION = "subtraction"
    CHAIN = "chain"
    """Three numbers with plus and minus, left to right."""
    WORD_PROBLEM = "word_problem"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    FOLLOW_UP = "follow_up"
    """Adds to or subtracts from the answer of the turn before."""
    SMALL_TALK = "small_talk"
    OUT_OF_SCOPE = "out_of_scope"


@dataclass(frozen=True, slots=True)
class Problem:
    """One user turn and the reply that is wanted."""

    task: Task
    prompt: str
    reasoning: str
    answer: str
    canonical: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where problems are drawn from: the random stream, the longest operands, and which side of the hold-out."""

    rng: random.Random
    max_digits: int
    held_out: bool = False


Draw = Callable[[random.Random, int], Problem]
"""One problem with operands of up to that many digits, held out or not."""


def _number(rng: random.Random, digits: int) -> int:
    """A number of exactly so many digits; one in ten is round or full of nines, where carries are longest."""
    low = 0 if digits == 1 else 10 ** (digits - 1)
    if rng.random() < 0.1:
        text = "".join(rng.choice("0009991") for _ in range(digits))
        return max(low, int(text))
    return rng.randrange(low, 10**digits)


def _digits(rng: random.Random, max_digits: int) -> int:
    """A length; longer numbers come more often, since they are both harder and far more numerous."""
    return rng.choices(range(1, max_digits + 1), [1.0 + 0.8 * k for k in range(max_digits)])[0]


def _pair(rng: random.Random, max_digits: int) -> tuple[int, int]:
    digits = _digits(rng, max_digits)
    other = digits if rng.random() < 0.7 else rng.randint(1, digits)
    pair = (_number(rng, digits), _number(rng, other))
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _close_pair(rng: random.Random, max_digits: int) -> tuple[int, int]:
    """Two numbers that often share their leading digits: comparing them takes a look at every digit."""
    a, b = _pair(rng, max_digits)
    if rng.random() < 0.5:
        text = str(a)
        shared = rng.randrange(len(text))
        b = int(text[:shared] + "".join(rng.choice("0123456789") for _ in text[shared:]))
    return a, b


def _chain_problem(rng: random.Random, task: Task, prompt: str, numbers: list[int], operators: str) -> Problem:
    worked = arithmetic.chain(numbers, operators)
    canonical = canonical_chain(numbers, operators)
    return Problem(task, wording.distort(rng, prompt), "\n".join(worked.lines), str(worked.value), canonical)


def addition(rng: random.Random, max_digits: int) -> Problem:
    a, b = _pair(rng, max_digits)
    prompt = wording.ask(rng, wording.ADDITION, "+", a, b)
    return _chain_problem(rng, Task.ADDITION, prompt, [a, b], "+")


def subtraction(rng: random.Random, max_digits: int) -> Problem:
    """a - b; one in five has a negative result."""
    a, b = _pair(rng, max_digits)
    if (a < b) == (rng.random() < 0.8):
        a, b = b, a
    # The difference between two numbers has no sign, so those templates are for a >= b.
    templates = wording.SUBTRACTION if a < b or rng.random() < 0.75 else wording.DIFFERENCE
    prompt = wording.ask(rng, templates, "-", a, b)
    return _chain_problem(rng, Task.SUBTRACTION, prompt, [a, b], "-")


def chain(rng: random.Random, max_digits: int) -> Problem:
    operators = rng.choice(("++", "+-", "-+", "--"))
    numbers = _numbers_for(rng, operators, max_digits)
    prompt = rng.choice(wording.EXPRESSION).format(e=wording.expression_text(rng, numbers, operators))
    return _chain_problem(rng, Task.CHAIN, prompt, numbers, operators)


def word_problem(rng: random.Random, max_digits: int) -> Problem:
    story = rng.choice(STORIES) if rng.random() < 0.4 else compose(rng)
    numbers = _numbers_for(rng, story.operators, max_digits)
    return _chain_problem(rng, Task.WORD_PROBLEM, tell(rng, story, numbers), numbers, story.operators)


def _numbers_for(rng: random.Random, operators: str, max_digits: int) -> list[int]:
    """Operands whose running result never falls below zero."""
    a, b = _pair(rng, max_digits)
    if operators[0] == "-" and a < b:
        a, b = b, a
    numbers = [a, b]
    if len(operators) == 2:
        running = a + b if operators[0] == "+" else a - b
        third = _number(rng, _digits(rng, max_digits))
        if operators[1] == "-" and third > running:
            third = rng.randint(0, running)
        numbers.append(min(third, 10**max_digits - 1))
    return numbers


def maximum(rng: random.Random, max_digits: int) -> Problem:
    return _comparison(rng, max_digits, Task.MAXIMUM)


def minimum(rng: random.Random, max_digits: int) -> Problem:
    return _comparison(rng, max_digits, Task.MINIMUM)


def _comparison(rng: random.Random, max_digits: int, task: Task) -> Problem:
    largest = task is Task.MAXIMUM
    numbers = list(_close_pair(rng, max_digits))
    if rng.random() < 0.3:
        numbers.append(_number(rng, _digits(rng, max_digits)))
        rng.shuffle(numbers)
    superlative = rng.choice(wording.LARGEST if largest else wording.SMALLEST)
    prompt = rng.choice(wording.COMPARISON).format(s=superlative, n=wording.list_text(rng, numbers))
    prompt = wording.distort(rng, prompt[0].upper() + prompt[1:] if rng.random() < 0.7 else prompt)
    worked = arithmetic.extreme(numbers, largest=largest)
    canonical = canonical_comparison(numbers, largest=largest)
    return Problem(task, prompt, "\n".join(worked.lines), str(worked.value), canonical)


def follow_up(rng: random.Random, previous: int, max_digits: int) -> Problem:
    """A step from the previous turn's answer, which is not negative."""
    b = _number(rng, _digits(rng, max_digits))
    if rng.random() < 0.5 and previous >= b:
        template, operators = rng.choice(wording.FOLLOW_UP_SUBTRACT), "-"
    else:
        template, operators = rng.choice(wording.FOLLOW_UP_ADD), "+"
    return _chain_problem(rng, Task.FOLLOW_UP, template.format(b=b), [previous, b], operators)


def dangling_follow_up(rng: random.Random, max_digits: int) -> Problem:
    """`Add 7 to that.` where no number was answered before: nothing to work with."""
    template = rng.choice((*wording.FOLLOW_UP_ADD, *wording.FOLLOW_UP_SUBTRACT))
    prompt = wording.distort(rng, template.format(b=_number(rng, _digits(rng, max_digits))))
    return refusal(prompt, max_digits)


def talk(rng: random.Random, max_digits: int) -> Problem:
    intent, prompt = small_talk(rng)
    answer = intent.answer_with(max_digits)
    return Problem(Task.SMALL_TALK, prompt, intent.reasoning, answer, canonical_text(prompt))


def refused(rng: random.Random, max_digits: int) -> Problem:
    return refusal(out_of_scope(rng, max_digits), max_digits)


def refusal(prompt: str, max_digits: int) -> Problem:
    return Problem(Task.OUT_OF_SCOPE, prompt, REFUSAL_REASONING, refusal_text(max_digits), canonical_text(prompt))


DRAW: Final[Mapping[Task, Draw]] = {
    Task.ADDITION: addition,
    Task.SUBTRACTION: subtraction,
    Task.CHAIN: chain,
    Task.WORD_PROBLEM: word_problem,
    Task.MAXIMUM: maximum,
    Task.MINIMUM: minimum,
    Task.SMALL_TALK: talk,
    Task.OUT_OF_SCOPE: refused,
}
"""Every task that stands alone; a follow-up needs a turn before it."""

NUMERIC: Final[Sequence[Task]] = tuple(task for task in DRAW if task not in (Task.SMALL_TALK, Task.OUT_OF_SCOPE))


def draw(source: Source, task: Task) -> Problem:
    """A problem from the wanted side of the hold-out."""
    return drawn_from(source, lambda: DRAW[task](source.rng, source.max_digits))


def drawn_from(source: Source, make: Callable[[], Problem]) -> Problem:
    """Draw until the problem is on the wanted side."""
    while True:
        problem = make()
        if is_held_out(problem.canonical) == source.held_out:
            return problem

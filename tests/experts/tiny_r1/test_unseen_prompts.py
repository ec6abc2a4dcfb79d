"""The prompts by hand are what they claim to be: in no training template, and with true answers."""

import re
import string

import pytest

from experts.tiny_r1 import wording
from experts.tiny_r1.out_of_scope import CODE, NEAR_MISSES, OTHER_ARITHMETIC, REQUESTS, TOO_LONG
from experts.tiny_r1.small_talk import INTENTS
from experts.tiny_r1.unseen_prompts import CALCULATIONS, REFUSED
from experts.tiny_r1.word_problems import STORIES

NUMBER = r"[\d,]+"
WORD = r"[^\W\d]+"
SLOT = {
    **dict.fromkeys("abcxyl", NUMBER),
    "e": rf"{NUMBER}( ?[+-] ?{NUMBER})+",
    # `n` is a list of numbers in a comparison and a word elsewhere; both are tried.
    "n": rf"({NUMBER}([, ]| or | and )*)+|\w+",
    "W": r"\w+( by| of)?",
}


def as_pattern(template: str) -> re.Pattern[str]:
    parts: list[str] = []
    for literal, slot, _, _ in string.Formatter().parse(template):
        parts.append(re.escape(literal.casefold().rstrip(".?!") if slot is None else literal.casefold()))
        if slot is not None:
            parts.append(f"({SLOT.get(slot, WORD)})")
    return re.compile("".join(parts) + r"[.?!]*")


def test_no_refused_prompt_fits_a_training_template() -> None:
    templates = [*REQUESTS, *OTHER_ARITHMETIC, *TOO_LONG, *CODE, *NEAR_MISSES]
    templates += [prompt for intent in INTENTS for prompt in intent.prompts]
    # `{n}` alone, or with punctuation only, fits every word there is; such a template holds no wording.
    patterns = [(template, as_pattern(template)) for template in templates if re.search(r"(?<!\{)[a-z]{2}", template)]
    found = [(text, t) for text in REFUSED for t, pattern in patterns if pattern.fullmatch(text.casefold())]
    assert found == []


def test_no_calculation_fits_a_training_template() -> None:
    words = (*wording.LARGEST, *wording.SMALLEST)
    templates = [template.replace("{s}", word) for template in wording.COMPARISON for word in words]
    templates += [*wording.EXPRESSION, *wording.ADDITION, *wording.SUBTRACTION, *wording.DIFFERENCE]
    templates += [
        frame.replace(slot, part)
        for frames, slot, parts in (
            (wording.ASKING, "{q}", wording.QUANTITIES),
            (wording.ORDERING, "{o}", wording.ORDERS),
        )
        for frame in frames
        for operator in "+-"
        for part in parts[operator]
    ]
    templates += [story.template for story in STORIES]
    patterns = [(template, as_pattern(template)) for template in templates]
    found = [(text, t) for text, _ in CALCULATIONS for t, pattern in patterns if pattern.fullmatch(text.casefold())]
    assert found == []


@pytest.mark.parametrize(("text", "answer"), CALCULATIONS)
def test_every_answer_follows_from_the_numbers(text: str, answer: str) -> None:
    """Some plus and minus between the numbers, or one of the numbers themselves, gives the answer."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    reachable = {numbers[0]}
    for number in numbers[1:]:
        reachable |= {r + number for r in reachable} | {r - number for r in reachable} | {number - r for r in reachable}
    assert int(answer) in {*numbers, *reachable}


def test_prompts_are_distinct() -> None:
    assert len(set(REFUSED)) == len(REFUSED)
    assert len({text for text, _ in CALCULATIONS}) == len(CALCULATIONS)

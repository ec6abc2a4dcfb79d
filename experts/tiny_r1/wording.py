"""How people write the same question: templates, and the light distortions that every prompt may get.

`{a}`, `{b}` stand for numbers, `{e}` for an expression such as `12 + 30`, `{n}` for a list such as `3, 14 and 8`.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Final

EXPRESSION: Final[Sequence[str]] = (
    "{e}", "{e}", "{e}=", "{e} =", "{e}=?", "{e} = ?", "What is {e}?", "What is {e}?", "What's {e}?", "Compute {e}.",
    "Calculate {e}.", "Work out {e}.", "Evaluate {e}.", "Solve {e}.", "Solve: {e}", "How much is {e}?", "{e} equals?",
    "{e} equals what?", "{e} is what?", "Find {e}.", "Tell me {e}.", "What does {e} make?", "What does {e} equal?",
    "Give me the result of {e}.", "What is the result of {e}?", "What is the value of {e}?", "Question: {e}", "Q: {e}",
    "Can you compute {e}?", "Could you calculate {e}?", "I want to know what {e} is.", "I need {e}.", "Do {e}.",
    "Do you know {e}?", "Simplify {e}.", "The answer to {e} is?", "what do you get for {e}", "Let x = {e}. What is x?",
    "Problem: {e} = ?", "Quick maths: {e}", "Now {e}.", "And {e}?", "What about {e}?", "How about {e}?", "Then {e}?",
)  # fmt: skip
ADDITION: Final[Sequence[str]] = (
    "What is {a} plus {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "Add {a} and {b}.", "Add {a} to {b}.",
    "{a} plus {b}", "{a} plus {b} is?", "What is the sum of {a} and {b}?", "Sum {a} and {b}.", "Sum of {a} and {b}?",
    "Find the sum of {a} and {b}.", "What do you get if you add {a} and {b}?", "{a} and {b} together make what?",
    "What is {a} added to {b}?", "How much is {a} plus {b}?", "Calculate the sum of {a} and {b}.", "{a} add {b}",
    "If I add {a} to {b}, what do I get?", "Increase {a} by {b}.", "What is {a} increased by {b}?",
    "What is the total of {a} and {b}?", "Total of {a} and {b}?", "Compute {a} plus {b}.", "Put {a} and {b} together.",
    "Which number is {b} more than {a}?", "What is {b} more than {a}?", "What does {a} plus {b} equal?",
    "Add the numbers {a} and {b}.", "Work out {a} plus {b}.", "I have to add {a} and {b}. What comes out?",
)  # fmt: skip
SUBTRACTION: Final[Sequence[str]] = (
    "What is {a} minus {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.", "Subtract {b} from {a}.",
    "{a} minus {b}", "{a} minus {b} is?", "Take {b} from {a}.", "Take {b} away from {a}.", "Compute {a} minus {b}.",
    "What do you get if you subtract {b} from {a}?", "How much is {a} minus {b}?", "{a} take away {b}",
    "What is {a} less {b}?", "Decrease {a} by {b}.", "What is {a} decreased by {b}?", "Reduce {a} by {b}.",
    "If I take {b} from {a}, what is left?", "What remains of {a} if you remove {b}?", "What is {b} less than {a}?",
    "Which number is {b} less than {a}?", "Calculate {a} minus {b}.", "What does {a} minus {b} equal?",
    "Work out {a} minus {b}.", "Find {a} minus {b}.", "What is {b} subtracted from {a}?", "Subtract: {a} minus {b}",
)  # fmt: skip
DIFFERENCE: Final[Sequence[str]] = (
    "What is the difference between {a} and {b}?", "Find the difference of {a} and {b}.", "Difference of {a} and {b}?",
    "How far apart are {a} and {b}?", "Calculate the difference between {a} and {b}.",
    "How much larger is {a} than {b}?", "By how much does {a} exceed {b}?", "How much bigger is {a} than {b}?",
    "How much more is {a} than {b}?",
)  # fmt: skip
"""Asked of a >= b only: the difference between two numbers has no sign."""
COMPARISON: Final[Sequence[str]] = (
    "Which is {s}, {n}?", "Which is {s}: {n}?", "Which number is {s}: {n}?", "Which one is {s}, {n}?",
    "{n}: which is {s}?", "Which of {n} is {s}?", "Which of {n} is the {s}?", "Of {n}, which is {s}?",
    "Out of {n}, which one is {s}?", "What is the {s} of {n}?", "What is the {s} number: {n}?",
    "What's the {s} of {n}?", "Find the {s} of {n}.", "Find the {s} number of {n}.", "Tell me which is {s}, {n}.",
    "Pick the {s} of {n}.", "Pick the {s} number: {n}", "Give me the {s} of {n}.", "Compare {n}. Which is {s}?",
    "Compare {n} and give me the {s}.", "{s} of {n}", "{s}: {n}", "Which of these is the {s}: {n}?",
    "Choose the {s}: {n}", "Return the {s} of {n}.", "Among {n}, which is the {s}?",
    "Which number is the {s} one, {n}?", "Is {n} the {s} number?", "{n}, which is the {s}?", "Say which is {s}: {n}.",
    "Between {n}, which one is {s}?", "From {n} choose the {s}.", "The {s} of {n} is?", "Select the {s} one: {n}.",
    "I have the numbers {n}. Which is the {s}?", "Here are some numbers: {n}. Which one is {s}?", "{s}({n})",
)  # fmt: skip
"""`{s}` is a word for largest or smallest."""
LARGEST: Final[Sequence[str]] = (
    "larger", "bigger", "greater", "higher", "larger", "bigger", "greater", "largest", "biggest", "greatest",
    "highest", "maximum", "max", "more",
)  # fmt: skip
SMALLEST: Final[Sequence[str]] = (
    "smaller", "less", "lower", "smaller", "lesser", "smallest", "least", "lowest", "minimum", "min", "fewer",
    "tiniest",
)  # fmt: skip
QUANTITIES: Final[Mapping[str, Sequence[str]]] = {
    "+": (
        "{a} plus {b}", "the sum of {a} and {b}", "the sum of the numbers {a} and {b}", "{a} and {b} added",
        "{a} added to {b}", "the total of {a} and {b}", "{a} and {b} together", "{a} and {b} when added", "{e}", "{e}",
        "{e}", "the sum {e}", "{a} and {b} combined", "{b} more than {a}", "{b} on top of {a}", "adding {a} and {b}",
        "the result of {a} plus {b}",
    ),
    "-": (
        "{a} minus {b}", "{a} less {b}", "{b} subtracted from {a}", "{b} less than {a}", "{a} take away {b}", "{e}",
        "{e}", "{e}", "the result of {a} minus {b}", "left of {a} after taking away {b}", "subtracting {b} from {a}",
        "{a} without {b}", "left when {b} is taken from {a}", "left if you remove {b} from {a}",
    ),
}  # fmt: skip
"""Ways to name a sum or a difference; they go into `ASKING`."""
ASKING: Final[Sequence[str]] = (
    "What is {q}?", "what's {q}", "whats {q}", "How much is {q}?", "What would {q} be?", "Do you know what {q} is?",
    "{q} is equal to", "{q} would be", "{q} comes to?", "I need to know what {q} is.", "I am stuck on {q}.",
    "Can you solve {q}?", "Can you tell me what {q} is?", "Please tell me {q}.",
    "My friend asks how much {q} is.", "I would like to know {q}.", "Could you work out {q} for me?",
    "Mind telling me what {q} is?", "Kindly give me {q}.", "Any idea what {q} is?", "Let me know {q}.",
    "what does {q} come to", "So how much is {q} then?", "{q}: what is it?", "Sum: {q}", "Answer this: {q}", "Try {q}",
    "Next up: {q}", "The question is {q}.", "I wonder what {q} is", "{q}, how much is that?",
)  # fmt: skip
ORDERS: Final[Mapping[str, Sequence[str]]] = {
    "+": (
        "add {a} and {b}", "add {a} to {b}", "add up {a} and {b}", "sum up {a} and {b}", "sum {a} and {b}",
        "take {a} and add {b}", "start with {a} and add {b}", "add the numbers {a} and {b}", "add {b} onto {a}",
        "combine {a} and {b}", "total {a} and {b}",
    ),
    "-": (
        "subtract {b} from {a}", "take {b} from {a}", "take {a} and subtract {b}", "take {a}, subtract {b}",
        "deduct {b} from {a}", "start with {a} and take away {b}", "remove {b} from {a}", "take {b} off {a}",
        "from {a} subtract {b}", "from {a} take {b}",
    ),
}  # fmt: skip
"""Ways to demand one; they go into `ORDERING`."""
ORDERING: Final[Sequence[str]] = (
    "{o}", "{o}.", "{o} for me", "Could you {o}?", "Can you {o} for me?", "Would you {o}?", "I want you to {o}.",
    "Go on and {o}.", "If I {o}, what do I get?", "If you {o}, what remains?", "What happens if I {o}?", "Let us {o}.",
    "Try to {o}.", "You should {o}.", "What is the result when you {o}?", "Be so kind and {o}.", "I have to {o}.",
    "Help me {o}.", "How do I {o}?", "Now {o}.",
)  # fmt: skip
STATEMENTS: Final[Sequence[str]] = (
    "I have {x} cats.", "My room is {x}.", "I paid {x} dollars for it.", "It is {x} o'clock.", "This is question {x}.",
    "I was born in {x}.", "There are {x} of us.", "Page {x}, exercise {y}:", "Between us: I am {x} years old.",
    "Round {x}:", "I bought something for {x} and something else for {y}.", "The last answer was {x}.",
    "We are {x} people in {y} rooms.",
)  # fmt: skip
"""Numbers that are no operands; they stand before a question now and then."""
FOLLOW_UP_ADD: Final[Sequence[str]] = (
    "Add {b} to that.", "Now add {b}.", "And plus {b}?", "Plus {b}?", "Add {b} more.", "Add {b} to the result.",
    "What if you add {b} to it?", "Add {b} to your answer.", "Increase it by {b}.", "Now {b} more.", "Then add {b}.",
)  # fmt: skip
FOLLOW_UP_SUBTRACT: Final[Sequence[str]] = (
    "Subtract {b} from that.", "Now subtract {b}.", "And minus {b}?", "Minus {b}?", "Take {b} away from that.",
    "Subtract {b} from the result.", "What if you take {b} from it?", "Subtract {b} from your answer.",
    "Reduce it by {b}.", "Now {b} less.", "Then subtract {b}.",
)  # fmt: skip

OPENERS: Final[Sequence[str]] = (
    "Please ", "please, ", "Hi, ", "Hello! ", "Hey, ", "Hi! ", "Good morning. ", "Can you help me? ",
    "Quick question: ", "Could you please help: ", "Ok, ", "So ", "Well, ", "Tell me, ", "I have a question. ",
    "Help: ", "Next: ", "Now, ", "Let us see. ", "Think carefully. ", "Dear assistant, ", "Great. ", "Thanks! ",
    "Thank you. ", "Task: ", "1. ", "Please answer: ", "Good. ", "Hi there, ", "My homework says: ", "User: ",
    "I wonder: ", "Be quick: ", "Excuse me, ",
)  # fmt: skip
CLOSERS: Final[Sequence[str]] = (
    " Please.", ", please", " please", " Thanks!", " Thank you.", " thanks", " Think step by step.", " Be brief.",
    " Just the number.", " Answer with the number only.", " Give only the answer.", " Show your work.", " Explain.",
    " Reason step by step.", " I need it quickly.", " Take your time.", " :)", " ok?", " Can you help?",
    " Thanks in advance!", " Please reason step by step, and put your final answer at the end.", " Help me.",
    ", help!", " I am curious.", " It is urgent.", " Reply fast.", " 🙂", " I need to know.", " for me",
)  # fmt: skip


def ask(rng: random.Random, templates: Sequence[str], operator: str, a: int, b: int) -> str:
    """A question for a + b or a - b: an expression, one of the templates, or one composed of parts."""
    expression = expression_text(rng, (a, b), operator)
    slots = {"a": number_text(rng, a), "b": number_text(rng, b), "e": expression}
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(EXPRESSION).format_map(slots)
    if kind < 0.6:
        return rng.choice(templates).format_map(slots)
    if kind < 0.85:
        text = rng.choice(ASKING).replace("{q}", rng.choice(QUANTITIES[operator]))
    else:
        text = rng.choice(ORDERING).replace("{o}", rng.choice(ORDERS[operator]))
    text = text.format_map(slots)
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text


def statement(rng: random.Random) -> str:
    """A sentence with a number that is no operand."""
    x, y = (rng.randrange(10 ** rng.randint(1, 4)) for _ in range(2))
    return rng.choice(STATEMENTS).format(x=x, y=y)


def operator_text(rng: random.Random, operator: str) -> str:
    """The operator with or without spaces around it; now and then a typographic minus."""
    if operator == "-" and rng.random() < 0.05:
        operator = rng.choice("−–")
    space = rng.random()
    if space < 0.45:
        return operator
    if space < 0.9:
        return f" {operator} "
    return f" {operator}" if space < 0.95 else f"{operator} "


def expression_text(rng: random.Random, numbers: Sequence[int], operators: str) -> str:
    parts = [number_text(rng, numbers[0])]
    for operator, number in zip(operators, numbers[1:], strict=True):
        parts += [operator_text(rng, operator), number_text(rng, number)]
    return "".join(parts)


def number_text(rng: random.Random, number: int) -> str:
    """Digits; a number past 999 now and then with a thousands comma."""
    return f"{number:,}" if number > 999 and rng.random() < 0.06 else str(number)


def list_text(rng: random.Random, numbers: Sequence[int]) -> str:
    """`3 or 14`, `3, 14 and 8` and the like."""
    *front, last = (str(number) for number in numbers)
    pair = (" or ", " or ", " and ", " and ", ", ", " ", " vs ")
    joint = rng.choice(pair if len(numbers) == 2 else (" or ", " and ", ", "))
    return ", ".join(front) + joint + last


def distort(rng: random.Random, text: str) -> str:
    """The same question as somebody else might type it: politeness, case, punctuation, spacing, a typing error."""
    if rng.random() < 0.12:
        text = _join_opener(rng.choice(OPENERS), text)
    if rng.random() < 0.06:
        text = _typing_error(rng, text)
    if rng.random() < 0.25 and text[-1] in "?." and len(text) > 1:
        text = text[:-1]
    elif rng.random() < 0.04:
        text += rng.choice(("?", "!", "??", "...", ".", " ?"))
    if rng.random() < 0.12:
        text += rng.choice(CLOSERS)
    text = _change_case(rng, text)
    if rng.random() < 0.04:
        text = text.replace(" ", "  ", rng.randint(1, 3))
    if rng.random() < 0.04:
        text = rng.choice((" ", "\n", "", "\t")) + text + rng.choice((" ", "\n", "\n\n", "  "))
    if rng.random() < 0.01:
        text = rng.choice(('"{}"', "'{}'", "({})", "`{}`", "**{}**")).format(text)
    return text


def _join_opener(opener: str, text: str) -> str:
    """`Please ` + `Add 1 and 2.` -> `Please add 1 and 2.`"""
    return opener + (text if opener.rstrip()[-1] in ".!?:" else text[0].lower() + text[1:])


def _change_case(rng: random.Random, text: str) -> str:
    kind = rng.random()
    if kind < 0.62:
        return text
    if kind < 0.85:
        return text.lower()
    if kind < 0.95:
        return text.upper()
    if kind < 0.98:
        return text.title()
    return "".join(rng.choice((char.lower(), char.upper())) for char in text)


def _typing_error(rng: random.Random, text: str) -> str:
    """Drop, double or swap one letter of a longer word; digits and signs carry meaning and stay."""
    places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]

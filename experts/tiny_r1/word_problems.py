"""Word problems: short stories whose question is a sum, a difference, or two steps of them.

A story is a template and its operators: `{a}`, `{b}`, `{c}` are the numbers in the order in which the operators join
them, `{n}`, `{m}` two people, `{t}` the things that are counted, `{p}` a place.
"""

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from experts.tiny_r1.wording import number_text

NAMES: Final = (
    "Ann", "Ben", "Cara", "Dan", "Eve", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kim", "Leo", "Mia", "Noah", "Olga",
    "Paul", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Victor", "Wendy", "Xena", "Yusuf", "Zoe", "Ahmed", "Bianca",
    "Carlos", "Dmitri", "Elena", "Fatima", "George", "Hana", "Ivan", "Julia", "Kenji", "Lucia", "Maria", "Nadia",
    "Omar", "Priya", "Rahul", "Sofia", "Tom", "Ursula", "Vera", "Wei", "Yuki", "Zara", "Alice", "Bob", "Charlie",
    "Emma", "Oliver", "Liam", "Sarah", "John", "Mary", "David", "Peter", "Lisa", "James",
)  # fmt: skip
THINGS: Final = (
    "apples", "pens", "books", "coins", "cards", "stones", "eggs", "shells", "cups", "stamps", "oranges", "marbles",
    "pencils", "cookies", "candies", "stickers", "toys", "flowers", "balloons", "bottles", "keys", "chairs", "tickets",
    "photos", "buttons", "beads", "cakes", "sweets", "bananas", "pears", "plums", "nuts", "boxes", "bags", "bricks",
    "nails", "cars", "bikes", "dolls", "balls", "kites", "hats", "shirts", "socks", "shoes", "plates", "spoons",
    "leaves", "seeds", "fish", "birds", "cows", "sheep", "goats", "dollars", "euros", "points", "postcards", "letters",
    "magazines", "potatoes", "tomatoes", "lemons", "muffins", "pies",
)  # fmt: skip
PLACES: Final = (
    "box", "basket", "bag", "room", "garden", "shop", "school", "library", "bus", "train", "park", "drawer", "jar",
    "garage", "warehouse", "farm", "hall", "field", "van", "crate",
)  # fmt: skip


class Story(NamedTuple):
    template: str
    operators: str


STORIES: Final[Sequence[Story]] = (
    Story("{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?", "+"),
    Story("{n} has {a} {t} and gets {b} more from {m}. How many {t} does {n} have?", "+"),
    Story("{n} had {a} {t}. {m} gave {n} {b} more. How many {t} does {n} have now?", "+"),
    Story("{n} has {a} {t}. {m} has {b} {t}. How many {t} do they have together?", "+"),
    Story("{n} has {a} {t} and {m} has {b}. How many {t} do they have in total?", "+"),
    Story("{n} and {m} have {a} and {b} {t}. How many {t} is that altogether?", "+"),
    Story("There are {a} {t} in the {p}. {n} puts {b} more in. How many {t} are in the {p} now?", "+"),
    Story("{n} finds {a} {t} in the morning and {b} in the evening. How many {t} does {n} find in all?", "+"),
    Story("{n} collected {a} {t} on Monday and {b} {t} on Tuesday. How many {t} did {n} collect?", "+"),
    Story("A {p} holds {a} {t}. Another {p} holds {b} {t}. How many {t} are there altogether?", "+"),
    Story("{n} sold {a} {t} in May and {b} in June. How many {t} were sold in total?", "+"),
    Story("{n} has {a} {t}. {m} has {b} more than {n}. How many {t} does {m} have?", "+"),
    Story("{n} reads {a} pages today and {b} pages tomorrow. How many pages is that?", "+"),
    Story("{n} pays {a} dollars for a bike and {b} dollars for a lamp. How much does {n} pay?", "+"),
    Story("{n} spent {a} euros on {t} and {b} euros on food. How many euros did {n} spend in total?", "+"),
    Story("{n} walks {a} metres to the {p} and {b} metres home. How many metres does {n} walk?", "+"),
    Story("A {p} had {a} {t} when {b} more came. How many {t} are there now?", "+"),
    Story("{n} has {a} {t} and gives {b} to {m}. How many {t} does {n} have left?", "-"),
    Story("{n} has {a} {t} and loses {b}. How many {t} are left?", "-"),
    Story("{n} had {a} {t} and ate {b} of them. How many {t} remain?", "-"),
    Story("{n} has {a} {t}. {m} has {b} {t}. How many more {t} does {n} have than {m}?", "-"),
    Story("{n} has {a} {t} and {m} has {b} {t}. How many fewer {t} does {m} have than {n}?", "-"),
    Story("There are {a} {t} in the {p}. {n} takes {b} away. How many {t} are left in the {p}?", "-"),
    Story("There were {a} {t} in the {p}, but {b} broke. How many {t} are left?", "-"),
    Story("{n} had {a} {t} and sold {b}. How many {t} does {n} still have?", "-"),
    Story("{n} needs {a} {t} and has {b}. How many more {t} does {n} need?", "-"),
    Story("{n} wants {a} {t} but has only {b}. How many {t} are missing?", "-"),
    Story("{n} has {a} dollars and spends {b} dollars on {t}. How many dollars are left?", "-"),
    Story("A book has {a} pages. {n} has read {b}. How many pages are left to read?", "-"),
    Story("Of {a} {t} in the {p}, {b} are red and the rest are blue. How many {t} are blue?", "-"),
    Story("A {p} holds {a} {t}. {n} uses {b} of them. How many {t} remain?", "-"),
    Story("{n} is {a} years old and {m} is {b} years old. How many years older is {n}?", "-"),
    Story("{n} has {a} {t}. {m} has {b} fewer than {n}. How many {t} does {m} have?", "-"),
    Story("{n} picked {a} {t} and threw {b} away. How many {t} did {n} keep?", "-"),
    Story("{n} has {a} {t}, finds {b} and loses {c}. How many {t} does {n} have now?", "+-"),
    Story("{n} has {a} {t}, buys {b} more and gives {c} to {m}. How many {t} does {n} have left?", "+-"),
    Story("A bus has {a} people. {b} get on and {c} get off. How many people are on the bus?", "+-"),
    Story("{n} had {a} {t}, lost {b} and then found {c}. How many {t} does {n} have now?", "-+"),
    Story("{n} has {a} {t}, sells {b} and buys {c}. How many {t} does {n} have at the end?", "-+"),
    Story("{n} has {a} {t}. {n} gives {b} to {m} and {c} to a friend. How many {t} are left?", "--"),
    Story("There are {a} {t} in the {p}. {n} takes {b} and {m} takes {c}. How many {t} are left?", "--"),
    Story("Two {p}s hold {a} and {b} {t}. How many {t} are there in total?", "+"),
    Story("In the {p} there are {a} {t} and {b} toys. How many things are in the {p}?", "+"),
    Story("In a {p} there are {a} women and {b} men. How many people are in the {p}?", "+"),
    Story("{n} walks {a} metres, {m} walks {b} metres. How many metres more does {n} walk?", "-"),
    Story("{n} got {a} points and {m} got {b} points. How many points more did {n} get?", "-"),
    Story("{n} reads {a} pages on Friday and {b} on Sunday. How many pages does {n} read?", "+"),
    Story("{n} has {a} red, {b} blue and {c} green {t}. How many {t} does {n} have in total?", "++"),
    Story("{n} bought {a} {t} on Monday, {b} on Tuesday and {c} on Friday. How many {t} did {n} buy?", "++"),
)


STARTS: Final[Sequence[str]] = (
    "{n} has {a} {t}", "{n} had {a} {t}", "{n} owns {a} {t}", "{n} starts with {a} {t}", "{n} keeps {a} {t} in a {p}",
    "{n} collected {a} {t}", "There are {a} {t} in the {p}", "There were {a} {t}", "A {p} holds {a} {t}",
    "{n} made {a} {t}", "{a} {t} are in the {p}", "{n} saved {a} {t}", "At first {n} has {a} {t}",
    "The {p} has {a} {t}", "We have {a} {t}",
)  # fmt: skip
GAINS: Final[Sequence[str]] = (
    "buys {b} more", "finds {b}", "gets {b} from {m}", "receives {b} more", "wins {b}", "bought another {b}",
    "got {b} back", "{m} brings {b} more", "{m} adds {b}", "{b} more arrive", "makes {b} more",
    "takes {b} more from {m}", "earns {b} more", "picks {b} more", "is given {b}", "collects another {b}",
    "{b} {t} are added", "{m} gives {n} another {b}", "gained {b}",
)  # fmt: skip
LOSSES: Final[Sequence[str]] = (
    "gives {b} to {m}", "loses {b}", "sells {b}", "eats {b}", "gave away {b}", "uses {b} of them", "throws {b} away",
    "{m} takes {b}", "{b} are stolen", "{b} break", "spends {b}", "donates {b}", "hands {b} to {m}", "drops {b}",
    "lost {b}", "{b} {t} are removed", "returns {b}", "sold {b} of them", "{m} steals {b}", "spent {b} on a gift",
    "{b} of them leave",
)  # fmt: skip
LAST: Final[Sequence[str]] = (
    "How many {t} does {n} have now?", "How many {t} are left?", "How many {t} are there now?", "How many {t} remain?",
    "How many {t} does {n} have at the end?", "How many {t} is that?", "What is the number of {t} now?",
    "How many {t}?", "How many are there now?", "Work out how many {t} there are now.", "How many does {n} have?",
    "How many {t} are in the {p}?",
)  # fmt: skip
DEEDS: Final[Sequence[tuple[str, str]]] = (
    ("has", "have"), ("had", "have"), ("baked", "bake"), ("sold", "sell"), ("picked", "pick"), ("made", "make"),
    ("collected", "collect"), ("bought", "buy"), ("counted", "count"), ("found", "find"), ("won", "win"),
    ("drew", "draw"), ("ordered", "order"), ("carried", "carry"), ("saw", "see"), ("threw", "throw"),
    ("packed", "pack"), ("cut", "cut"),
)  # fmt: skip
TOGETHER: Final[Sequence[str]] = (
    "How many {t} did they {v} together?", "How many {t} is that in total?", "How many {t} are there altogether?",
    "What is the total number of {t}?", "How many {t} in all?", "How many {t} did both {v}?", "How many {t} in total?",
)  # fmt: skip
MORE: Final[Sequence[str]] = (
    "How many more {t} did {n} {v} than {m}?", "How many more {t} did {n} {v}?", "How many {t} more did {n} {v}?",
    "How many fewer {t} did {m} {v} than {n}?", "How many fewer did {m} {v}?", "By how many {t} is {n} ahead of {m}?",
    "What is the difference?", "How many {t} fewer did {m} {v}?", "How many more did {n} {v} than {m}?",
)  # fmt: skip


def compose(rng: random.Random) -> Story:
    """A story from parts: a start with one or two events, or two people who are added up or compared."""
    if rng.random() < 0.35:
        deed, verb = rng.choice(DEEDS)
        operator = rng.choice("+-")
        links = (". {m} <deed> {b} {t}. ", " and {m} <deed> {b}. ", ", {m} {b}. ", "; {m} <deed> {b}. ")
        link = rng.choice(links).replace("<deed>", deed)
        question = rng.choice(TOGETHER if operator == "+" else MORE).replace("{v}", verb)
        return Story("{n} " + deed + " {a} {t}" + link + question, operator)
    operators = rng.choice(("+", "-", "+", "-", "++", "+-", "-+", "--"))
    text = rng.choice(STARTS)
    for index, operator in enumerate(operators):
        event = rng.choice(GAINS if operator == "+" else LOSSES).replace("{b}", "{b}" if index == 0 else "{c}")
        # Events name their own person or go on with the one of the start.
        subject = "" if event[0] == "{" else "{n} "
        text += rng.choice((". Then ", ". ", " and ", ", ", ", then ")) + subject + event
    return Story(text + rng.choice((". ", ". ", ". Now: ", ", ")) + rng.choice(LAST), operators)


def tell(rng: random.Random, story: Story, numbers: Sequence[int]) -> str:
    """The story in words, with people, things and a place drawn at random."""
    first, second = rng.sample(NAMES, 2)
    spelled = {letter: number_text(rng, number) for letter, number in zip("abc", numbers, strict=False)}
    return story.template.format(n=first, m=second, t=rng.choice(THINGS), p=rng.choice(PLACES), **spelled)
